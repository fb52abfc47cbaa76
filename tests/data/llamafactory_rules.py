"""In the training interpreter: what the real LLaMA-Factory makes of single rows, as they lie in a
file.

python llamafactory_rules.py JOBS.json ANSWERS.json

A job is [formatting, columns, tags, row]. Its answer is [turns, system, tools], or why a training
drops the row or ends at it.
"""

import json
import sys
from pathlib import Path

from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments


class Texts:
    """A tokenizer whose tokens are texts."""

    bos_token_id = eos_token_id = "<s>"

    def encode(self, text, add_special_tokens=False):
        if not isinstance(text, str):
            raise TypeError(text)
        return [text]


def judged(formatting, columns, tags, row):
    attributes = DatasetAttr("file", "rows")
    about = {"formatting": formatting, "columns": columns}
    attributes.join({**about, "tags": tags} if tags else about)
    try:
        example = get_dataset_converter(formatting, attributes, DataArguments())(row)
        prompt, response = example["_prompt"], example["_response"]
        if len(prompt) % 2 != 1 or len(response) != 1:  # SupervisedDatasetProcessor
            return "dropped"
        TEMPLATES["qwen3"].encode_multiturn(
            Texts(), prompt + response, example["_system"], example["_tools"]
        )
    except Exception as error:
        return f"ends: {type(error).__name__}"
    turns = [[turn["role"], turn["content"]] for turn in prompt + response]
    return [turns, example["_system"] or "", example["_tools"] or ""]


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps([judged(*job) for job in jobs]), encoding="utf-8")
