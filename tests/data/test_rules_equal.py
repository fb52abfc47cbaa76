"""The rules of rows are the real LLaMA-Factory's: generated rows of each kind are judged by both.

What iisft takes it stages as LLaMA-Factory would read it; what it refuses LLaMA-Factory would drop,
end at, or train on something that is not what the row says.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from iisft.data.check.checking import checker_for
from iisft.data.read.conversation import from_row
from iisft.data.read.rows import Row
from iisft.data.read.source import open_source
from iisft.llamafactory.tools import CALL_WORDS

PYTHON = os.environ.get("IISFT_PYTHON") or sys.executable
ROWS = 500
# Refused though LLaMA-Factory trains them: the model would learn to say nothing, or to answer
# nothing. Names are needed by most tool formats.
STRICTER = {"answer-empty", "prompt-empty", "tools-shape"}

OPENAI = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
FORMATS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "alpaca": (
        "alpaca",
        {
            "prompt": "instruction", "query": "input", "response": "output", "system": "system",
            "history": "history", "tools": "tools",
        },
        {},
    ),
    "sharegpt": (
        "sharegpt", {"messages": "conversations", "system": "system", "tools": "tools"}, {},
    ),
    "openai": ("openai", {"messages": "messages", "tools": "tools"}, OPENAI),
}  # fmt: skip
TOOLS = [{"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}]
CALL = '{"name": "f", "arguments": {"x": 1}}'


def text(rng: random.Random) -> str:
    words = ["央行", "rates", "{{content}}", "a\nb", '"x"', "<think>", "0", "{}"]
    return " ".join(rng.choices(words, k=rng.randrange(1, 4)))


def tools(rng: random.Random) -> str:
    whole = json.dumps(TOOLS)
    odd = [json.dumps(TOOLS[0]), "[{", "[]", '[{"x": 1}]']
    return rng.choice(["", "", whole]) if rng.random() < 0.9 else rng.choice(odd)


def alpaca(rng: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {
        "instruction": rng.choice([text(rng)] * 4 + [""]),
        "input": rng.choice([text(rng), ""]),
        "output": rng.choice([text(rng)] * 8 + ["", None]),
        "system": rng.choice(["", "", text(rng)]),
        "history": [[text(rng), text(rng)] for _ in range(rng.choice([0, 0, 1, 2]))],
        "tools": tools(rng),
    }
    if row["history"] and rng.random() < 0.2:
        row["history"][-1] = rng.choice([["one"], ["a", "b", "c"], "ab!", ["a", ""]])
    return row


def call(rng: random.Random) -> str:
    broken = ['{"name": "f"}', "[f(x)]", '{"arguments": {}}', "", f"text {CALL}"]
    sound = [
        CALL, CALL, f"[{CALL}, {CALL}]", f"<think>\nhm\n</think>\n\n{CALL}",
        f"<think>hm</think>{CALL}",
        f"look:\n<tool_call>\n{CALL}\n</tool_call>", f"<tool_call>{CALL}</tool_call> after",
        f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>",
    ]  # fmt: skip
    return rng.choice(sound * 4 + broken)


def roles(rng: random.Random) -> list[str]:
    """Mostly in order: a system text perhaps, questions and answers, calls and results."""
    found = ["system"] if rng.random() < 0.3 else []
    for _ in range(rng.randrange(1, 4)):
        found.append("user")
        while rng.random() < 0.3:
            found += ["function_call", *["tool"] * rng.choice([1, 1, 1, 1, 2])]
        found.append("assistant")
    if rng.random() < 0.15:
        found.insert(rng.randrange(len(found)), rng.choice(["user", "assistant", "system", "tool"]))
    if rng.random() < 0.1:
        found.pop(rng.randrange(len(found)))
    return found


def sharegpt(rng: random.Random) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    messages = []
    for role in roles(rng):
        said = call(rng) if role == "function_call" else rng.choice([text(rng)] * 25 + [""])
        messages.append({"from": names.get(role, role), "value": said})
    return {
        "conversations": messages,
        "system": rng.choice(["", "", text(rng)]) if messages[0]["from"] != "system" else "",
        "tools": tools(rng),
    }


def openai(rng: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for role in roles(rng):
        message: dict[str, Any] = {"role": role, "content": text(rng)}
        if role == "function_call" and rng.random() < 0.7:
            calls = [{"type": "function", "function": json.loads(CALL)}] * rng.choice([1, 2])
            beside = rng.choice(["", "", None, "Let me look.", "<think>\nhm\n</think>\n\n"])
            message = {"role": "assistant", "content": beside, "tool_calls": calls}
        elif role == "function_call":
            message["content"] = call(rng)
        messages.append(message)
    given = tools(rng)
    return {"messages": messages, "tools": rng.choice([given, TOOLS])}


def test_both_judge_alike(tmp_path: Path) -> None:
    rng = random.Random(14)
    rows = {
        name: [make(rng) for _ in range(ROWS)]
        for name, make in (("alpaca", alpaca), ("sharegpt", sharegpt), ("openai", openai))
    }
    jobs = [[*FORMATS[name], row] for name, made in rows.items() for row in made]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    script = Path(__file__).with_name("llamafactory_rules.py")
    done = subprocess.run(
        [PYTHON, str(script), str(tmp_path / "jobs.json"), str(tmp_path / "answers.json")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = iter(json.loads((tmp_path / "answers.json").read_text(encoding="utf-8")))
    seen: Counter[tuple[str, str]] = Counter()
    for name, made in rows.items():
        file = tmp_path / f"{name} 行.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        check = checker_for(open_source(file))
        for number, row in enumerate(made, 1):
            real = next(answers)
            staged, problems = check(Row(number, number, row))
            codes = {one.id for one in problems if one.severity == "error"}
            seen[name, "taken" if staged else "refused"] += 1
            if staged is None:
                assert codes & STRICTER or isinstance(real, str) or _lost(row, real), (row, real)
                continue
            conversation = from_row(staged)
            mine = [[one.role, one.content] for one in conversation.messages]
            assert not isinstance(real, str), (row, real)
            assert mine == _with_beside(row, real[0]), row
            assert conversation.tools == (real[2] if row["tools"] else ""), row
            if name != "openai":  # which adds "detailed thinking off"
                assert conversation.system == real[1], row
    assert all(count > ROWS / 5 for count in seen.values()) and len(seen) == 6, seen


def _lost(row: dict[str, Any], real: list[Any]) -> bool:
    """Whether LLaMA-Factory trains on something else than the row says: a text of it is gone."""
    trained = "".join(content for _, content in real[0]) + real[1]
    said = row.get("messages", row.get("conversations", []))
    contents = [one.get("value", one.get("content")) or "" for one in said]
    contents.append(row.get("system") or "")
    return any(content not in trained for content in contents)


def _with_beside(row: dict[str, Any], turns: list[list[str]]) -> list[list[str]]:
    """LLaMA-Factory's turns with iisft's names, and with the text beside calls: in OpenAI rows it
    leaves that out, though its ShareGPT rows have a place for it.
    """
    beside = [
        one["content"]
        for one in row.get("messages", ())
        if one["role"] in ("assistant", "function_call") and one.get("tool_calls")
    ]
    calls = [
        one.get("tool_calls")
        for one in row.get("messages", ())
        if one["role"] in ("assistant", "function_call")
    ]
    answers = iter(calls)
    texts = iter(beside)
    found = []
    for role, content in turns:
        if role in ("assistant", "function") and next(answers, None) and (said := next(texts)):
            content = f"{said}\n{content.join(CALL_WORDS)}"
        found.append(["function_call" if role == "function" else role, content])
    return found
