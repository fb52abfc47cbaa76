"""What a file says and nothing reads is an error where it changes what training means; the files
are in bad/. --ignore KEY, and what --columns names, are the user's to say.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.data.check.checking import check
from iisft.data.read.source import open_source

BAD = Path(__file__).parent / "bad"
CLI = Callable[..., Any]
ROW = {"instruction": "q", "input": "", "output": "a"}


@pytest.fixture
def home() -> Path:
    return Path(os.environ["IISFT_HOME"])


def written(file: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return file


def test_ignored_keys_are_a_decision_that_the_manifest_has(iisft: CLI, home: Path) -> None:
    file = written(home / "有 label.jsonl", {**ROW, "label": False, "think": "hm"})
    refused = iisft("data", "stage", str(file), "--name", "x")
    assert refused.code == 3
    assert "--ignore think trains as if it were not there" in refused.err
    staged = iisft("data", "stage", str(file), "--name", "x", "--ignore", "label,think", "--json")
    assert staged.code == 0
    record = json.loads((home / "data/x/staged.json").read_text(encoding="utf-8"))
    assert (record["ignored"], record["not_read"]) == (["label", "think"], ["label", "think"])
    again = iisft("data", "stage", str(file), "--name", "x", "--ignore", "label,think", "--json")
    assert json.loads(again.out)["unchanged"] is True


def test_a_message_s_key_is_ignored_too() -> None:
    ignored = ["loss,loss_mask", "train", "trainable", "masked", "weight"]
    report = check([open_source(BAD / "unread-loss-flags.jsonl", ignore=ignored)])
    assert (report.sound, list(report.findings)) == (16, [])


def test_the_key_that_only_a_late_row_has_is_seen(tmp_path: Path) -> None:
    rows = [{**ROW, "input": str(number)} for number in range(300)]
    rows[250]["rejected"] = "b"
    report = check([open_source(written(tmp_path / "x.jsonl", *rows))])
    assert [(one.row, one.field, one.id) for one in report.findings] == [
        (251, "rejected", "preference-data")
    ]


@pytest.mark.parametrize(
    ("row", "columns", "message", "fix"),
    [
        (
            ROW,
            "input=inptu",
            "--columns input=inptu: none of the first 1 rows has 'inptu'; keys are instruction, "
            "input, output",
            "--columns input=input",
        ),
        (
            ROW,
            "messages=output",
            "--columns messages=output: Alpaca (instruction, input, output) has no such field",
            "fields are instruction, input, output, system, history, tools; --format says what "
            "the rows are",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "content=contents",
            "--columns content=contents: none of the first 1 rows has 'contents'; keys are role, "
            "content",
            "--columns content=content",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "input=messages",
            "--columns input=messages: OpenAI messages (messages/role/content) has no such field",
            "fields are messages, role, content, system, tools; --format says what the rows are",
        ),
    ],
)
def test_columns_that_no_row_has_or_no_layout_reads(
    row: Any, columns: str, message: str, fix: str, iisft: CLI, home: Path
) -> None:
    file = written(home / "x.jsonl", row)
    answer = iisft("data", "stage", str(file), "--name", "x", "--columns", columns, "--json")
    error = json.loads(answer.out)["error"]
    assert (answer.code, error["code"], error["message"], error["fix"]) == (
        3,
        "data-columns",
        message,
        fix,
    )


def test_the_chosen_answers_alone(iisft: CLI, home: Path) -> None:
    refused = iisft("data", "check", str(BAD / "preference-alpaca.jsonl"))
    fix = refused.err.partition("fix:   ")[2].partition(" trains on")[0]
    assert fix == "--columns answer=chosen --ignore rejected"
    staged = iisft(
        "data", "stage", str(BAD / "preference-alpaca.jsonl"), "--name", "x", *fix.split()
    )
    assert staged.code == 0
    (rows,) = (home / "data/x").glob("rows-*.jsonl")
    assert json.loads(rows.read_text()) == {"instruction": "a", "input": "", "output": "hi"}


def test_a_placeholder_of_a_picture_is_text_only_if_it_is_said_to_be(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "a"}]
    for row in ({**ROW, "input": "see <image>"}, {"messages": talk}):
        file = written(tmp_path / "x.jsonl", row)
        (found,) = check([open_source(file)]).findings
        assert (found.id, found.severity, found.fix) == (
            "media-placeholder",
            "error",
            "--ignore '<image>' trains it as the text that it is",
        )
        assert check([open_source(file, ignore=["<image>"])]).sound == 1


@pytest.mark.parametrize(
    ("parts", "kinds", "fix"),
    [
        (
            [{"type": "text", "text": "do"}, {"type": "tool_use", "name": "f", "input": {}}],
            "text, tool_use",
            "write tool_use as tool_calls of the message ",
        ),
        ([{"type": "image", "source": {}}], "image", "leave such rows out (data stage --drop-bad)"),
    ],
)
def test_anthropic_s_parts_are_named(
    tmp_path: Path, parts: list[Any], kinds: str, fix: str
) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]
    found, *_ = check([open_source(written(tmp_path / "x.jsonl", {"messages": talk}))]).findings
    assert (found.id, found.message) == (
        "content-parts",
        f"parts ({kinds}) where LLaMA-Factory reads a text",
    )
    assert found.fix.startswith(fix)


def test_parts_of_text_are_joined_by_the_command_that_is_named(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "问"}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]
    file = written(tmp_path / "x y.jsonl", {"messages": talk})
    (found,) = check([open_source(file)]).findings
    subprocess.run(
        ["bash", "-c", found.fix.replace("FILE", "'x y.jsonl'")], cwd=tmp_path, check=True
    )
    row = json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8"))
    assert row["messages"][0] == {"role": "user", "content": "a 问"}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"instruction": "q", "output": "a", "output": "b"}', "output"),
        ('{"instruction": "q", "output" : "", "input": "{\\"x\\": 1}", "output":"b"}', "output"),
        ('{"instruction": "q", "output": "a", "input": "say \\"output\\": x"}', ""),
        ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],'
         ' "id": 1, "id": 2}', "id"),
        ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],'
         ' "role": "x"}', ""),
        ('{"messages": [{"role": "user", "content": "q", "content": "r"},'
         ' {"role": "assistant", "content": "a"}]}', "content"),
        ('{"instruction": "q", "output": "a", "meta": {"x": [{"y": 1, "z": 2, "y": 3}]}}', "y"),
        ('{"instruction": "q", "output": "a", "o\\u0075tput": "b"}', "output"),
        ('{"instruction": "q \\ud83d\\ude00: \\u003c", "output": "\\"a\\": 1"}', ""),
        ('{"instruction": "q", "output": "a", "n": 12345678901234567890123, "n" : 1}', "n"),
        ('{"instruction": "q", "output": "a", "tools": "[{\\"name\\": \\"f\\", \\"name\\":'
         ' \\"g\\"}]"}', "tools: name"),
        ('{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value":'
         ' "{\\"name\\": \\"f\\", \\"arguments\\": {\\"x\\": 1, \\"x\\": 2}}"}]}',
         "conversations[1].value: x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{0}\n", "[{0}]", "[{0}, {1}, {0}]"])
def test_a_key_that_is_there_twice(
    iisft: CLI, tmp_path: Path, line: str, field: str, form: str
) -> None:
    """At any depth, in lines and in an array whose elements are found in either way."""
    file = tmp_path / "x.jsonl"
    file.write_text(
        form.replace("{0}", line).replace("{1}", line.replace("{", '{"first": 0, ', 1)),
        encoding="utf-8",
    )
    found = [one.field for one in check([open_source(file)]).findings if one.id == "key-twice"]
    assert found == [field] * (1 + form.count(",")) if field else found == []
    if form.startswith("{"):
        assert iisft("data", "stage", str(file), "--name", "x").code == (3 if field else 0)


def test_a_key_that_is_there_twice_in_the_last_of_many_rows(tmp_path: Path) -> None:
    line = '{"instruction": "q", "output": "a"}\n'
    file = tmp_path / "x.jsonl"
    file.write_text(line * 60_000 + '{"instruction": "q", "output": "a", "output": "b"}\n')
    found = check([open_source(file)], repeats=False).findings
    assert [(one.id, one.row) for one in found] == [("key-twice", 60_001)]


def test_arguments_with_a_key_twice(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    (found,) = check([open_source(written(tmp_path / "x.jsonl", {"messages": talk}))]).findings
    assert (found.id, found.message) == (
        "tool-call-shape",
        "arguments with the key x more than once",
    )
