"""Shortening: what is cut, what never is, and that it is as little as possible."""

import random
import re
from typing import Any

import pytest
from generated import article, qwen_like, text

from iisft.data.read.conversation import from_row
from iisft.data.stage.bodies import MARKER, clean_cut, find_body
from iisft.data.stage.fitting import Fitter, apply
from iisft.data.tokens.limit import Limit
from iisft.data.tokens.tokenization import Tokenization

URL_OR_UUID = re.compile(
    r"(?:https?://|www\.)[\x21-\x7e]+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenization:
    return Tokenization(qwen_like(tmp_path_factory.mktemp("fit") / "模型"), "qwen", {})


def fit(tokens: Tokenization, row: dict[str, Any], cutoff: int) -> dict[str, Any] | None:
    cut = Fitter(Limit(tokens, cutoff, {}), from_row).fit(row)
    return None if cut is None else apply(row, cut)


def total(tokens: Tokenization, row: dict[str, Any]) -> int:
    return Limit(tokens, 1, {}).total(tokens.lengths([from_row(row)])[0])


def test_only_the_end_of_the_body_is_cut(tokens: Tokenization) -> None:
    question = "\n\n问题：这是情报吗？请用 JSON 回答。"
    rng = random.Random(3)
    for _ in range(60):
        row = {
            "instruction": "评估",
            "input": article(rng, 300).rstrip() + question,
            "output": text(rng, 30),
        }
        fitted = fit(tokens, row, 600)
        assert fitted is not None and total(tokens, fitted) <= 600
        assert (fitted["instruction"], fitted["output"]) == (row["instruction"], row["output"])
        kept, marker, rest = fitted["input"].partition(f"\n{MARKER}")
        assert marker and rest == question and row["input"].startswith(kept)
        metadata = row["input"][: row["input"].index("## 正文内容")]
        assert kept.startswith(metadata)
        assert set(URL_OR_UUID.findall(kept)) <= set(URL_OR_UUID.findall(row["input"]))


def test_as_little_as_possible_is_cut(tokens: Tokenization) -> None:
    rng = random.Random(4)
    for cutoff in (300, 800, 1500):
        row = {"instruction": "评估", "input": article(rng, 1500), "output": "{}"}
        fitted = fit(tokens, row, cutoff)
        assert fitted is not None and cutoff - 90 < total(tokens, fitted) <= cutoff


def test_a_url_over_the_limit_is_left_out_whole(tokens: Tokenization) -> None:
    address = "https://example.com/" + "a1" * 300
    row = {
        "instruction": "",
        "input": "A first sentence that is long enough. " + address,
        "output": "x",
    }
    fitted = fit(tokens, row, 160)
    assert fitted is not None and fitted[
        "input"
    ] == f"A first sentence that is long enough. {MARKER}".replace("  ", " ")


def test_a_row_that_is_all_answer_or_metadata_cannot_be_fitted(tokens: Tokenization) -> None:
    assert (
        fit(tokens, {"instruction": "question", "input": "", "output": "answer " * 400}, 200)
        is None
    )
    metadata = "".join(f"- key{i}: {'v' * 40}\n" for i in range(30))
    assert (
        fit(tokens, {"instruction": "", "input": metadata + "\nbody", "output": "x"}, 100) is None
    )


def test_the_longest_question_of_a_conversation_is_shortened(tokens: Tokenization) -> None:
    turns = [("user", "hi"), ("assistant", "a" * 50), ("user", "word " * 900), ("assistant", "yes")]
    row = {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "system": "s",
    }
    fitted = fit(tokens, row, 400)
    assert fitted is not None and total(tokens, fitted) <= 400
    assert [a == b for a, b in zip(row["messages"], fitted["messages"], strict=True)] == [
        True,
        True,
        False,
        True,
    ]
    history = {
        "instruction": "and now?",
        "input": "",
        "output": "x",
        "history": [["long " * 900, "ok"]],
    }
    fitted = fit(tokens, history, 300)
    assert (
        fitted is not None
        and fitted["history"][0][1] == "ok"
        and fitted["instruction"] == "and now?"
    )


def test_the_task_is_not_shortened_while_the_input_will_do(tokens: Tokenization) -> None:
    row = {"instruction": "task " * 40, "input": "text " * 38, "output": "x"}
    fitted = fit(tokens, row, 300)
    assert fitted is not None and fitted["instruction"] == row["instruction"]


@pytest.mark.parametrize(
    ("whole", "at"),
    [
        ("👩‍👩‍👧" * 30, 60),
        ("🇨🇳" * 60, 61),
        ("e\u0301" * 60, 61),
        ("👍🏽" * 60, 61),
        ("한국" * 60, 61),
    ],
)
def test_no_written_character_is_cut(whole: str, at: int) -> None:
    place = clean_cut(whole, find_body(whole), at)
    unit = {"👩": 5, "🇨": 2, "e": 2, "👍": 2, "한": 1}[whole[0]]
    assert 0 < place <= at and place % unit == 0


def test_metadata_lines_are_no_body() -> None:
    head = (
        "## metadata\n- UUID: 94a1d86d-6c1c-4f80-82e8-2af69b378d2d\ntitle: 一\n来源：新华社\n\n## "
        "正文内容\n"
    )
    assert find_body(head + "正文。" * 20).start == len(head)
    assert find_body("Plain text.\n- key: value\nmore").start == 0
    assert find_body("- a: b\n- c: d\n").start == 0
