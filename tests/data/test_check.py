"""What repeats: duplicates, conflicts, leaks; and the report as text and JSON."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_rows
from iisft.data.check import repeats
from iisft.data.check.checking import check, checker_for
from iisft.data.read.source import open_source, read_rows
from iisft.errors import InputError

CLI = Callable[..., Any]
BAD = Path(__file__).parent / "bad"


@pytest.fixture
def home() -> Path:
    return Path(os.environ["IISFT_HOME"])


def row(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"instruction": "评估", "input": prompt, "output": answer, **more}


def test_a_report_by_value(iisft: CLI, home: Path) -> None:
    rows = [row("a", "1"), row("b", "2"), row("a", "1"), row("b", "3"), row("c", ""), row("b", "3")]
    file = write_rows(home / "数据 rows.jsonl", rows)
    result = iisft("data", "check", str(file))
    assert result.code == 3
    assert result.out == (
        f"{file}: JSON lines, Alpaca (instruction, input, output)\n"
        "\n"
        "error: answer-empty, 1 row\n"
        f"  {file}:5  row 5: output: an empty answer trains on the end-of-turn alone\n"
        "\n"
        "warning: duplicate, 2 rows\n"
        f"  {file}:3  row 3: the same as row 1\n"
        f"  {file}:6  row 6: the same as row 4\n"
        "\n"
        "warning: conflict, 1 row\n"
        f"  {file}:4  row 4: the prompt of row 2 with another answer\n"
        "\n"
        "1 of 6 rows can't be staged\n"
    )
    document = json.loads(iisft("data", "check", str(file), "--json").out)
    assert (document["rows"], document["sound"]) == (6, 5)
    assert document["counts"] == {"answer-empty": 1, "duplicate": 2, "conflict": 1}
    assert document["findings"][0] == {
        "file": str(file),
        "row": 3,
        "line": 3,
        "field": "row",
        "code": "duplicate",
        "severity": "warn",
        "message": "the same as row 1",
        "excerpt": "",
    }


def test_a_prompt_that_two_files_share_is_a_leak(iisft: CLI, home: Path) -> None:
    train = write_rows(home / "train.jsonl", [row("a", "1"), row("b", "2"), row("a", "1")])
    messages = [{"role": "user", "content": "评估\nb"}, {"role": "assistant", "content": "9"}]
    val = write_rows(home / "val.jsonl", [{"messages": messages}])
    test = write_rows(home / "test.jsonl", [row("c", "1"), row("a", "1"), row("c", "1")])
    document = json.loads(iisft("data", "check", str(train), str(val), str(test), "--json").out)
    found = [
        (Path(one["file"]).name, one["row"], one["code"], one["message"])
        for one in document["findings"]
    ]
    assert sorted(found) == [
        (
            "test.jsonl",
            2,
            "leak",
            "the prompt of row 1 of train.jsonl again, with the same answer: a leak between files",
        ),
        ("test.jsonl", 3, "duplicate", "the same as row 1"),
        ("train.jsonl", 3, "duplicate", "the same as row 1"),
        (
            "val.jsonl",
            1,
            "leak",
            "the prompt of row 2 of train.jsonl again, with another answer: a leak between files",
        ),
    ]
    assert iisft("data", "check", str(train), str(val)).code == 3


def test_all_files_that_can_not_be_opened_are_told_at_once(iisft: CLI, home: Path) -> None:
    good = write_rows(home / "good.jsonl", [row("a", "1")])
    result = iisft("data", "check", str(home / "gone.jsonl"), str(good), str(home))
    assert (result.code, result.out) == (3, "")
    assert "can't be read: no such file or directory" in result.err
    assert "this is a folder, not a file" in result.err


def test_staged_datasets_are_checked_by_name(iisft: CLI, home: Path) -> None:
    for name in ("训练", "val"):
        assert (
            iisft(
                "data",
                "stage",
                str(write_rows(home / f"{name}.jsonl", [row("a", "1")])),
                "--name",
                name,
            ).code
            == 0
        )
    result = iisft("data", "check", "训练", "val", "--json")
    assert [(one["code"], one["row"]) for one in json.loads(result.out)["findings"]] == [
        ("leak", 1)
    ]


@pytest.mark.parametrize("in_memory", [50, 10**6])
def test_repeats_are_those_that_a_plain_comparison_finds(
    home: Path, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_IN_MEMORY", in_memory)
    pick = random.Random(5)
    rows = [row(f"prompt {pick.randrange(150)}", str(pick.randrange(2))) for _ in range(600)]
    duplicates, conflicts = set(), set()
    for number, one in enumerate(rows, 1):
        same_prompt = [other for other in rows[: number - 1] if other["input"] == one["input"]]
        if same_prompt:
            (duplicates if one in same_prompt else conflicts).add(number)
    report = check([open_source(write_rows(home / "x.jsonl", rows))])
    found = {
        code: {one.row for one in group.kept} for code, group in report.findings.groups.items()
    }
    assert found == {"duplicate": duplicates, "conflict": conflicts}


def test_prompts_that_differ_only_in_system_history_or_tools_are_different(home: Path) -> None:
    rows = [row("a", "1"), row("a", "1", system="s"), row("a", "1", history=[["h", "i"]])]
    assert check([open_source(write_rows(home / "x.jsonl", rows))]).findings.groups == {}


@pytest.mark.parametrize("name", sorted(path.name for path in BAD.glob("*.jsonl")))
def test_the_quick_way_and_the_thorough_one_agree(name: str) -> None:
    """Without a row's bytes the checkers search every text.

    With them they first look whether they have to.
    """
    try:
        source = open_source(BAD / name)
    except InputError:
        return  # no rows to compare
    check_row = checker_for(source)
    for one in read_rows(source):
        staged, problems = check_row(one)
        thorough, the_same = check_row(one._replace(raw=None))
        assert (staged, list(problems)) == (thorough, list(the_same))


def test_answers_without_json_are_told_only_where_most_have_it(home: Path) -> None:
    mostly = [row(str(number), '{"n": 1}' if number % 3 else "prose") for number in range(9)]
    report = check([open_source(write_rows(home / "x.jsonl", mostly))])
    assert [one.row for one in report.findings.groups["answer-no-json"].kept] == [1, 4, 7]
    rarely = [row(str(number), "prose" if number % 3 else '{"n": 1}') for number in range(9)]
    assert check([open_source(write_rows(home / "x.jsonl", rarely))]).findings.groups == {}


def test_what_the_terminal_can_not_show_ends_no_command(home: Path) -> None:
    file = home / "x.json"
    rows = [row("a", "😀 " * 3), {"instruction": "a", "output": "", "\ud800": "half a character"}]
    file.write_text(json.dumps(rows), encoding="utf-8")
    for encoding in ("utf-8", "gbk", "ascii"):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        argv = [sys.executable, "-m", "iisft", "data", "check", str(file)]
        done = subprocess.run(argv, env=env, capture_output=True, check=False)
        assert done.returncode == 3
        assert b"not read: \\ud800" in done.stdout
        assert b"an empty answer trains on the end-of-turn alone" in done.stdout
