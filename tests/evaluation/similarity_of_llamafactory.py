"""Runs in the training interpreter: LLaMA-Factory's own ComputeSimilarity over pairs of texts, on
standard output.
"""

import json
import sys
from pathlib import Path

import numpy
from llamafactory.train.sft.metric import ComputeSimilarity


class Letters:
    """A tokenizer of which every code point is a token."""

    pad_token_id = 0

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(chr(code) for code in row if code) for row in rows]


class Predictions:
    def __init__(self, pair):
        self.label_ids, self.predictions = (
            numpy.array([[ord(letter) for letter in text] or [0]]) for text in pair
        )


pairs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
print(
    "\n" + json.dumps([ComputeSimilarity(tokenizer=Letters())(Predictions(pair)) for pair in pairs])
)
