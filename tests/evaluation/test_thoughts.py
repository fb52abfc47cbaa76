"""A thought before an answer is taken off and reported; what comes after it is judged."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.evaluation.reading import after_thought


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("<think>\n\n</think>\n\n{}", ("", "{}")),
        (" <think>hm</think>{}", ("hm", "{}")),
        ("<think>\nhm, </think> 甲\n", ("hm,", "甲\n")),
        ("<think>cut off", (None, "<think>cut off")),
        ('{"text": "<think>a</think>"}', (None, '{"text": "<think>a</think>"}')),
        (" plain", (None, " plain")),
        ("", (None, "")),
    ],
)
def test_what_is_a_thought(text: str, split: tuple[str | None, str]) -> None:
    assert after_thought(text) == split


def test_answers_are_judged_after_their_thoughts(iisft: Callable[..., Any]) -> None:
    file = Path(os.environ["IISFT_HOME"]) / "有 thoughts.jsonl"
    thoughts = ["<think>\n\n</think>\n\n", "<think>\nhm?\n</think>\n\n", "", "<think>"]
    rows = [
        {"row": n, "prompt": "q", "reference": '{"keep": true}', "prediction": t + '{"keep": true}'}
        for n, t in enumerate(thoughts, 1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = json.loads(iisft("evaluate", str(file), "--json").out)
    assert {key: found[key] for key in ("valid_json", "thoughts", "empty_thoughts")} == {
        "valid_json": 3,
        "thoughts": 2,
        "empty_thoughts": 1,
    }
    assert found["thought_characters"] == 3
    said = iisft("evaluate", str(file)).out
    assert "2 of 4 answers (50.0 %) begin with a thought, 3 characters in all" in said
    assert "1 of 2 thoughts are empty" in said
