"""Rows as pandas, datasets, TRL and Gemini write them, and rows that are left out by decision."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from iisft.data.check.checking import Check, check
from iisft.data.read.source import open_source
from iisft.errors import InputError

CLI = Callable[..., Any]
ROWS = [{"instruction": "q", "input": "x", "output": "007"}, {"instruction": "评", "output": "b"}]


@pytest.fixture
def home() -> Path:
    return Path(os.environ["IISFT_HOME"])


def sound(file: Path) -> list[Any]:
    one = Check([open_source(file)])
    rows = [row.value for row in one.sound_rows()]
    assert list(one.findings) == []
    return rows


def test_the_index_of_pandas_csv(tmp_path: Path) -> None:
    file = tmp_path / "index 行.csv"
    file.write_text(",instruction,input,output\n0,q,,a\n1,q2,x,b\n", encoding="utf-8")
    source = open_source(file)
    assert (source.container, source.layout.unused) == ("csv", ("Unnamed: 0",))
    assert sound(file) == [
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q2", "input": "x", "output": "b"},
    ]


@pytest.mark.parametrize("name", ["rows 行.xlsx", "rows.XLS"])
def test_a_spreadsheet_is_named_with_the_command_that_converts_it(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    file.write_bytes((ole if name.endswith("XLS") else b"PK\x03\x04") + bytes(600))
    with pytest.raises(InputError) as error:
        open_source(file)
    assert "this is an Excel workbook" in error.value.message
    assert error.value.fix.startswith("libreoffice --headless --convert-to 'csv:")
    assert error.value.fix.endswith(shlex.quote(str(file)))


COLUMNS = {key: [row.get(key, "") for row in ROWS] for key in ("instruction", "input", "output")}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "table",
    [
        {key: {str(n): text for n, text in enumerate(texts)} for key, texts in COLUMNS.items()},
        COLUMNS,
        {str(number): row for number, row in enumerate(ROWS)},
        {
            "columns": list(COLUMNS),
            "index": [0, 1],
            "data": [list(cells) for cells in zip(*COLUMNS.values(), strict=True)],
        },
    ],
)
def test_a_table_by_columns_is_named_and_its_fix_converts(
    table: Any, indent: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "表 by columns.json"
    file.write_text(json.dumps(table, ensure_ascii=False, indent=indent), encoding="utf-8")
    with pytest.raises(InputError, match="a table by columns or by index") as caught:
        open_source(file)
    subprocess.run(["sh", "-c", caught.value.fix], cwd=tmp_path, check=True)
    expected = [{"input": "", **row} for row in ROWS]
    assert sound(tmp_path / "rows.jsonl") == expected


def test_gemini_s_rows_are_named_and_the_fix_converts(tmp_path: Path) -> None:
    file = tmp_path / "gemini 行.jsonl"
    row = {
        "systemInstruction": {"parts": [{"text": "short"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
            {"role": "model", "parts": [{"text": "c"}]},
        ],
    }
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="these are Gemini's rows") as caught:
        open_source(file)
    subprocess.run(["sh", "-c", caught.value.fix], cwd=tmp_path, check=True)
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    assert sound(tmp_path / "rows.jsonl") == [{"messages": turns, "system": "short", "tools": ""}]


def test_trl_s_prompt_and_completion(tmp_path: Path) -> None:
    file = tmp_path / "trl.jsonl"
    row = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    source = open_source(file)
    assert source.layout.describe() == "OpenAI messages (prompt + completion/role/content)"
    assert source.layout.unused == ()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert sound(file) == [{"messages": turns, "system": "s", "tools": ""}]


def call(name: str, **arguments: Any) -> list[Any]:
    called = [{"function": {"name": name, "arguments": arguments}}]
    return [{"role": "user", "content": name}, {"role": "assistant", "tool_calls": called}]


def test_what_datasets_filled_into_parquet_is_not_trained(tmp_path: Path) -> None:
    rows = [{"messages": call("f", city="Graz")}, {"messages": call("g", amount=5, none=None)}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    calls = [row["messages"][1]["content"] for row in sound(tmp_path / "x.parquet")]
    assert [json.loads(one)[0]["arguments"] for one in calls] == [
        {"city": "Graz", "none": None},
        {"amount": 5, "none": None},
    ]


@pytest.mark.parametrize("as_text", [True, False])
def test_an_integer_keeps_its_digits(as_text: bool, tmp_path: Path) -> None:
    arguments: Any = {"id": 12345678901234567890123}
    messages = call("f", **arguments)
    if as_text:
        messages[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(arguments)
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (row,) = sound(tmp_path / "x.jsonl")
    assert row["messages"][1]["content"] == (
        '[{"name": "f", "arguments": {"id": 12345678901234567890123}}]'
    )


def test_roles_have_the_names_that_are_told(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    turns = [{"role": "Q", "content": "a"}, {"role": "bot", "content": "b"}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    assert check([open_source(file)]).findings.errors == 2
    assert check([open_source(file, roles=["Q=user,bot=assistant"])]).sound == 1


def test_rows_that_are_wrong_are_left_out_by_decision(iisft: CLI, home: Path) -> None:
    file = home / "有 errors.jsonl"
    rows = [{**ROWS[0], "output": ""}, ROWS[0], {**ROWS[0], "label": False}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn")
    assert iisft("data", "stage", str(file), "--name", "x").code == 3
    staged = iisft("data", "stage", str(file), "--name", "x", "--drop-bad", "--json")
    counts = {"answer-empty": 1, "preference-data": 1, "row-json": 1}
    assert staged.code == 0
    assert json.loads(staged.out)["left_out"] == {
        "rows": 3,
        "counts": counts,
        "report": "left-out.jsonl",
    }
    listed = (home / "data/x/left-out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(json.loads(one)["row"], json.loads(one)["code"]) for one in listed] == [
        (1, "answer-empty"),
        (3, "preference-data"),
        (4, "row-json"),
    ]
    file.write_text(json.dumps(ROWS))
    whole = iisft("data", "stage", str(file), "--name", "x", "--drop-bad")
    assert (whole.code, (home / "data/x/left-out.jsonl").exists()) == (0, False)
    file.write_text(json.dumps(ROWS)[:-20])
    assert iisft("data", "stage", str(file), "--name", "x", "--drop-bad").code == 3
