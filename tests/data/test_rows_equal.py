"""What the real LLaMA-Factory loads from a staged set are the rows that were given, in every format
and shape.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson
import pytest

from iisft.data.check.checking import Check
from iisft.data.read.conversation import from_row
from iisft.data.read.source import open_source
from iisft.data.stage import staging
from iisft.llamafactory.dataset_info import CHUNK_BYTES
from iisft.workspace import Workspace

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("llamafactory_rows.py")
PYTHON = os.environ.get("IISFT_PYTHON") or sys.executable
ROW = {"instruction": "评估", "input": "正文 \u2028 😀", "output": '{"keep": true}'}
LONG = 11 * 2**20  # more than a chunk of LLaMA-Factory's reader


def alpaca(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{**ROW, "input": f"第 {number} 条 " + "x" * 2000, **more} for number in range(count)]


def _rows_of_a_chunk() -> int:
    """So many rows that the first chunk of LLaMA-Factory's reader ends with the last of them."""
    sizes = accumulate(len(orjson.dumps(row)) + 1 for row in alpaca(10_000))
    return next(number for number, size in enumerate(sizes, 1) if size > CHUNK_BYTES)


def turns(*contents: str, role: str, content: str, names: tuple[str, str]) -> list[dict[str, str]]:
    return [{role: names[number % 2], content: text} for number, text in enumerate(contents)]


OPENAI = {"role": "role", "content": "content", "names": ("user", "assistant")}
SHAREGPT = {"role": "from", "content": "value", "names": ("human", "gpt")}
CALLS = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "北京"}'}}],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
]
CASES: dict[str, list[Any]] = {
    "alpaca": [ROW, {**ROW, "input": ""}],
    "alpaca-system-history": [ROW, {**ROW, "system": "简短", "history": [["q", "a"], ["r", "b"]]}],
    "sharegpt": [
        {"conversations": turns("a", "b", "c", "d", **SHAREGPT), "system": "s"},
        {"conversations": turns("e", "f", **SHAREGPT)},
    ],
    "openai": [
        {"messages": [{"role": "system", "content": "s"}, *turns("a", "b", **OPENAI)]},
        {"messages": turns("c", "d", **OPENAI)},
    ],
    "openai-tools": [{"messages": CALLS, "tools": [{"type": "function",
                                                    "function": {"name": "f"}}]}],
    # Read as they stand, LLaMA-Factory would make timestamps of these, or end with an error.
    "all-answers-dates": alpaca(20, output="2025-01-02"),
    "all-inputs-dates": [{**ROW, "input": f"2025-01-{day:02}"} for day in range(1, 20)],
    "dates-in-the-last-chunk": [*alpaca(_rows_of_a_chunk()), *alpaca(10, output="2025-01-02")],
    "dates-in-the-middle": [*alpaca(10), *alpaca(LONG // 1000, output="2025-01-02T10:00"),
                            *alpaca(10)],
    "late-history": [*alpaca(LONG // 2000), *alpaca(2, history=[["q", "a"]])],
    "late-system": [*alpaca(LONG // 2000), *alpaca(2, system="s")],
}  # fmt: skip
_ROLES = {"function": "function_call"}  # LLaMA-Factory's name inside


def test_llamafactory_loads_what_was_staged(tmp_path: Path) -> None:
    workspace = Workspace.current()
    folders, expected, shapes = [], [], {}
    for name, rows in CASES.items():
        file = workspace.root / f"{name} 行.jsonl"
        file.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        sound = Check([open_source(file)], repeats=False).sound_rows()
        expected.append([_as_loaded(from_row(row.value)) for row in sound])
        staged = staging.stage(file, name, workspace).dataset
        assert len(expected[-1]) == len(rows) == staged.rows
        folders.append(str(staged.folder))
        shapes[name] = staged.keys[0]
    assert {name for name, first in shapes.items() if first == "instruction"} == {
        "alpaca", "alpaca-system-history", "late-system",
    }  # fmt: skip
    answers = tmp_path / "answers.json"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, str(CHILD), str(tmp_path / "cache"), str(answers), *folders],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, loaded, wanted in zip(
        CASES, json.loads(answers.read_text(encoding="utf-8")), expected, strict=True
    ):
        assert len(loaded) == len(wanted), name
        for row, (messages, system, tools) in enumerate(loaded):
            named = [[_ROLES.get(role, role), content] for role, content in messages]
            assert [named, system or "", tools or ""] == wanted[row], (name, row)


def _as_loaded(conversation: Any) -> list[Any]:
    messages = [[message.role, message.content] for message in conversation.messages]
    return [messages, conversation.system, conversation.tools]


def test_an_alpaca_row_and_its_messages_are_the_same_conversation(
    iisft: Callable[..., Any],
) -> None:
    from iisft.data.stage.rowshape import MESSAGES, shaped

    row = {**ROW, "system": "s", "history": [["q", "a"]]}
    assert from_row(shaped(row, MESSAGES)) == from_row(row)
