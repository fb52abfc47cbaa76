"""Files of predictions that are torn, doubled, broken, or not what their name says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLI = Callable[..., Any]
Write = Callable[..., Path]
ROWS = [{"row": i, "prompt": f"p{i}", "reference": "yes", "prediction": "yes"} for i in range(1, 7)]


def evaluated(iisft: CLI, file: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    result = iisft("evaluate", str(file), "--json", *argv)
    return result.code, json.loads(result.out)


def test_a_half_written_last_line_is_left_out_and_said(iisft: CLI, write: Write) -> None:
    file = write(ROWS)
    file.write_bytes(file.read_bytes()[:-20])
    code, found = evaluated(iisft, file)
    assert (code, found["rows"]) == (0, 5)
    [finding] = found["findings"]
    assert (finding["id"], finding["where"]) == ("half-written-line", f"{file}:6")


def test_every_broken_line_in_the_middle_is_named(iisft: CLI, write: Write) -> None:
    file = write(ROWS)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + "{oops\n" + lines[1] + "[1]\n" + lines[2])
    code, found = evaluated(iisft, file)
    wheres = [finding["where"] for finding in found["error"]["findings"]]
    assert (code, wheres) == (3, [f"{file}:2", f"{file}:4"])


def test_a_row_that_stands_there_twice_counts_once(iisft: CLI, write: Write) -> None:
    again = ROWS[2] | {"prediction": "no"}
    code, found = evaluated(iisft, write([*ROWS, again]))
    assert (code, found["rows"], found["metrics"]["exact_match"]) == (0, 6, 1.0)
    [finding] = found["findings"]
    assert finding["message"] == "1 rows occur twice (row 3): the first of each counts"


def test_questions_that_come_again_are_counted_and_said(iisft: CLI, write: Write) -> None:
    rows = [{"prompt": f"p{i % 4}", "reference": "yes", "prediction": "yes"} for i in range(6)]
    code, found = evaluated(iisft, write(rows))
    assert (code, found["rows"]) == (0, 6)
    [finding] = found["findings"]
    assert finding["message"] == "2 rows repeat prompt and reference of an earlier row; each counts"


def test_a_json_array_is_read_and_a_torn_one_refused(iisft: CLI, tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    file.write_text(" \n" + json.dumps(ROWS, indent=1))
    code, found = evaluated(iisft, file)
    assert (code, found["rows"]) == (0, 6)
    file.write_text(json.dumps(ROWS)[:-30])
    code, found = evaluated(iisft, file)
    assert (code, found["error"]["code"]) == (3, "not-json")
    assert "after element 5" in found["error"]["message"]


def test_what_pythons_json_writes_is_read(iisft: CLI, tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    rows = [
        {"reference": "x", "prediction": "half \ud83d", "score": float("nan")},
        {"reference": 5, "prediction": 5},
    ]
    file.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\r\n")
    code, found = evaluated(iisft, file)
    assert (code, found["rows"], found["metrics"]["exact_match"]) == (0, 2, 0.5)
    del rows[0]["score"]
    file.write_text("\ufeff" + json.dumps(rows))
    code, found = evaluated(iisft, file)
    assert (code, found["rows"], found["metrics"]["exact_match"]) == (0, 2, 0.5)


def test_references_that_are_parsed_already_are_text_again(iisft: CLI, write: Write) -> None:
    rows = [
        {"reference": {"a": i, "字": "b"}, "prediction": json.dumps({"a": i, "字": "b"})}
        for i in range(3)
    ]
    code, found = evaluated(iisft, write(rows))
    assert (code, found["metrics"]["fields"]["/a"]["exact"]) == (0, 1.0)


def test_a_file_without_predictions_says_what_it_has(
    iisft: CLI, write: Write, tmp_path: Path
) -> None:
    code, found = evaluated(iisft, write([{"id": 1, "score": 2}]))
    assert (code, found["error"]["code"]) == (3, "no-predictions")
    assert "'id', 'score'" in found["error"]["message"]
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    code, found = evaluated(iisft, empty)
    assert (code, found["error"]["message"]) == (3, "the file has no rows")


def test_columns_can_be_named(iisft: CLI, write: Write) -> None:
    rows = [{"gold answer": "x", "out": "x", "reference": "other"}] * 2
    code, found = evaluated(iisft, write(rows), "--columns", "reference=gold answer,prediction=out")
    assert (code, found["metrics"]["exact_match"]) == (0, 1.0)
