"""The same rows in every format are the same rows, and what a file is is found in it."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from iisft.data.check.checking import Check
from iisft.data.read import readers
from iisft.data.read.source import open_source, read_rows
from iisft.errors import InputError, UsageError

ROWS = [
    {"instruction": "评估", "input": '第一行\n第二行, "引用"; 😀', "output": '{"keep": true}'},
    {"instruction": "rate", "input": "a,b;c\td", "output": "no\r\nyes"},
    {"instruction": "空", "input": "", "output": "x" * 3000},
]


def lines(rows: list[Any], **options: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, **options) + "\n" for row in rows).encode()


def table(delimiter: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with file.open("w", encoding=encoding, newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)

    return write


def written(content: bytes) -> Callable[[Path], None]:
    return lambda file: (file.write_bytes(content), None)[1]


WRITERS: dict[str, tuple[Callable[[Path], None], str, list[int]]] = {
    "lines": (written(lines(ROWS)), "JSON lines", [1, 2, 3]),
    "lines without the last line end": (written(lines(ROWS).rstrip()), "JSON lines", [1, 2, 3]),
    "lines with a byte order mark": (
        written(b"\xef\xbb\xbf" + lines(ROWS)),
        "JSON lines",
        [1, 2, 3],
    ),
    "lines from Windows": (written(lines(ROWS).replace(b"\n", b"\r\n")), "JSON lines", [1, 2, 3]),
    "lines with blank ones": (
        written(b"\n" + lines(ROWS).replace(b"\n", b"\n\n \n")),
        "JSON lines",
        [2, 5, 8],
    ),
    "lines in ASCII": (
        written("".join(json.dumps(row) + "\n" for row in ROWS).encode()),
        "JSON lines",
        [1, 2, 3],
    ),
    "lines, gzipped": (written(gzip.compress(lines(ROWS))), "JSON lines (gzip)", [1, 2, 3]),
    "lines, gzipped in two parts": (
        written(gzip.compress(lines(ROWS[:1])) + gzip.compress(lines(ROWS[1:]))),
        "JSON lines (gzip)",
        [1, 2, 3],
    ),
    "array": (written(json.dumps(ROWS, ensure_ascii=False).encode()), "JSON array", [1, 1, 1]),
    "array, a field a line": (
        written(json.dumps(ROWS, ensure_ascii=False, indent=2).encode("utf-8-sig")),
        "JSON array",
        [2, 7, 12],
    ),
    "array, gzipped": (
        written(gzip.compress(json.dumps(ROWS).encode())),
        "JSON array (gzip)",
        [1, 1, 1],
    ),
    "CSV": (table(","), "CSV", [2, 4, 6]),
    "CSV from Excel": (table(";", "utf-8-sig"), "CSV", [2, 4, 6]),
    "TSV": (table("\t"), "CSV", [2, 4, 6]),
    "Parquet": (
        lambda file: parquet.write_table(pyarrow.Table.from_pylist(ROWS), file),
        "Parquet",
        [0, 0, 0],
    ),
}


@pytest.mark.parametrize("chunk", [7, 2**20])
@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_from_every_format(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK", chunk)
    write, container, expected_lines = WRITERS[name]
    file = tmp_path / "文件 with no ending"
    write(file)
    source = open_source(file)
    assert source.describe() == f"{container}, Alpaca (instruction, input, output)"
    rows = list(read_rows(source))
    assert [row.value for row in rows] == ROWS
    assert [(row.number, row.line) for row in rows] == list(
        zip([1, 2, 3], expected_lines, strict=True)
    )
    one = Check([source])
    assert [row.value for row in one.sound_rows()] == ROWS
    assert (one.report.rows, one.report.sound, list(one.findings)) == (3, 3, [])


def turns(
    *contents: str, role: str = "role", content: str = "content", names: str = "user assistant"
) -> list[Any]:
    sides = names.split()
    return [{role: sides[number % 2], content: text} for number, text in enumerate(contents)]


STAGED = {"messages": turns("a", "b", "c", "d"), "system": "s", "tools": ""}
CALL = {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("row", "described", "staged"),
    [
        (
            {
                "conversations": turns(
                    "a", "b", "c", "d", role="from", content="value", names="human gpt"
                ),
                "system": "s",
            },
            "ShareGPT (conversations/from/value)",
            STAGED,
        ),
        (
            {"conversations": turns("a", "b", role="from", content="value"), "extra": 1},
            "ShareGPT (conversations/from/value)",
            {"messages": turns("a", "b"), "system": "", "tools": ""},
        ),
        (
            {"messages": [{"role": "system", "content": "s"}, *turns("a", "b", "c", "d")]},
            "OpenAI messages (messages/role/content)",
            STAGED,
        ),
        (
            {"dialog": [{"role": "developer", "content": "s"}, *turns("a", "b", "c", "d")]},
            "OpenAI messages (dialog/role/content)",
            STAGED,
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": '{"x": 1}'},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "1", "content": "r"},
                    {"role": "assistant", "content": "b"},
                ],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            },
            "OpenAI messages (messages/role/content)",
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "function_call", "content": '[{"name": "f", "arguments": {"x": 1}}]'},
                    {"role": "observation", "content": "r"},
                    {"role": "assistant", "content": "b"},
                ],
                "system": "",
                "tools": '[{"type": "function", "function": {"name": "f", "parameters": {}}}]',
            },
        ),
        (
            {
                "instruction": "q",
                "output": "a",
                "system": "s",
                "history": [["h", "i"]],
                "source": "web",
            },
            "Alpaca (instruction, input, output)",
            {
                "instruction": "q",
                "input": "",
                "output": "a",
                "system": "s",
                "history": [["h", "i"]],
            },
        ),
        (
            {"instruction": "q", "output": "a", "messages": turns("x", "y")},
            "Alpaca (instruction, input, output)",
            {"instruction": "q", "input": "", "output": "a"},
        ),
        (
            {"input": "q", "output": "a"},
            "Alpaca (instruction, input, output)",
            {"instruction": "", "input": "q", "output": "a"},
        ),
    ],
)
def test_the_layouts(row: Any, described: str, staged: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(lines([row]))
    source = open_source(file)
    assert source.layout.describe() == described
    one = Check([source])
    assert [row.value for row in one.sound_rows()] == [staged]
    assert list(one.findings) == []


def test_columns_and_format_overrule_what_was_found(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(lines([{"q": "a", "messages": turns("b", "c"), "gold": "d", "model": "e"}]))
    found = open_source(file)
    assert (found.layout.name, found.layout.unused) == ("openai", ("q", "gold", "model"))
    told = open_source(file, "alpaca,jsonl", ["instruction=q", "answer=gold"])
    assert told.describe() == "JSON lines, Alpaca (instruction=q, input, output=gold)"
    assert [row.value for row in Check([told]).sound_rows()] == [
        {"instruction": "a", "input": "", "output": "d"}
    ]


def test_a_table_that_is_told_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("output\na\n", encoding="utf-8")
    with pytest.raises(InputError, match="neither JSON"):
        open_source(tmp_path / "x")
    assert (
        open_source(tmp_path / "x", "csv").describe() == "CSV, Alpaca (instruction, input, output)"
    )


def test_words_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(lines(ROWS))
    with pytest.raises(
        UsageError,
        match="--format knows alpaca, sharegpt, openai, json, jsonl, csv, parquet, not 'xml'",
    ):
        open_source(file, "xml")
    with pytest.raises(UsageError, match=r"FIELD=KEY, not 'anwser=x'; did you mean answer=x\?"):
        open_source(file, None, ["anwser=x"])
    with pytest.raises(UsageError, match="takes FIELD=KEY, not 'answer'"):
        open_source(file, None, ["answer"])


def test_the_first_users_rows_name_their_answer(tmp_path: Path, iisft: Callable[..., Any]) -> None:
    file = tmp_path / "eval rows.jsonl"
    row = {
        "instruction": "q",
        "input": "t",
        "ground_truth": "{}",
        "model_output": "x",
        "adapter": "y",
    }
    file.write_bytes(lines([row] * 2))
    refused = iisft("data", "check", str(file))
    assert (refused.code, refused.out) == (3, "")
    assert refused.err == (
        "error: no answer (output) in these rows; their keys are "
        "instruction, input, ground_truth, model_output, adapter\n"
        f"  where: {file}\n"
        "  fix:   --columns answer=ground_truth if that is what is meant\n"
    )
    checked = iisft("data", "check", str(file), "--columns", "answer=ground_truth")
    assert (checked.code, checked.err) == (0, "")
    assert checked.out == (
        f"{file}: JSON lines, Alpaca (instruction, input, output=ground_truth)\n"
        "  not read: model_output, adapter\n"
        "\n"
        "warning: duplicate, 1 row\n"
        f"  {file}:2  row 2: the same as row 1\n"
        "\n"
        "all 2 rows can be staged\n"
    )


def test_rows_without_any_known_column_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(lines([{"question": "a", "reply": "b"}]))
    with pytest.raises(InputError) as caught:
        open_source(file)
    assert (
        caught.value.fix == "--columns instruction=question,answer=reply if that is what is meant"
    )
