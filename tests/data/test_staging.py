"""Staging: every row is checked, and what is staged is what trains."""

import json
from pathlib import Path
from typing import Any

import pytest

from iisft.data.stage import staging
from iisft.errors import CheckFailed, InputError, TransferError, UsageError
from iisft.workspace import Workspace

ROW = {"instruction": "说 hi", "input": "", "output": "hi"}


@pytest.fixture
def workspace() -> Workspace:
    return Workspace.current()


def write(workspace: Workspace, rows: Any, *, name: str = "数据 rows.json") -> Path:
    file = workspace.root / name
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


def test_a_staged_dataset_by_value(workspace: Workspace) -> None:
    file = write(workspace, [ROW, {"instruction": "b", "output": "c", "more": 1}])
    staged = staging.stage(file, "情报", workspace).dataset
    assert (staged.rows, staged.keys) == (2, ("instruction", "input", "output"))
    lines = [json.loads(line) for line in staged.file.read_text(encoding="utf-8").splitlines()]
    assert lines == [ROW, {"instruction": "b", "input": "", "output": "c"}]
    info = (staged.folder / "dataset_info.json").read_bytes()
    assert info.isascii()
    assert json.loads(info) == {
        "情报": {
            "file_name": staged.file.name,
            "formatting": "alpaca",
            "columns": {"prompt": "instruction", "query": "input", "response": "output"},
        }
    }
    assert staging.load("情报", workspace) == staged


def test_system_and_history_are_mapped_when_a_row_has_them(workspace: Workspace) -> None:
    rows = [ROW, {**ROW, "system": "be short", "history": [["q", "a"]]}]
    staged = staging.stage(write(workspace, rows), "x", workspace).dataset
    lines = [json.loads(line) for line in staged.file.read_text(encoding="utf-8").splitlines()]
    assert lines == [{**ROW, "system": "", "history": []}, rows[1]]
    columns = json.loads((staged.folder / "dataset_info.json").read_text())["x"]["columns"]
    assert (columns["system"], columns["history"]) == ("system", "history")


def test_every_wrong_row_is_told_with_number_line_and_field(workspace: Workspace) -> None:
    file = workspace.root / "rows.jsonl"
    rows: list[Any] = [
        ROW,
        {"instruction": "a"},
        {**ROW, "output": ""},
        {**ROW, "input": 5},
        [1],
        {**ROW, "history": [["q"]]},
        {**ROW, "output": {"a": 1}},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    with pytest.raises(CheckFailed) as caught:
        staging.stage(file, "x", workspace)
    assert {
        (finding.text, finding.where.rpartition(":")[2]) for finding in caught.value.findings
    } == {
        ("row 2: output: missing (LLaMA-Factory would drop or garble the row)", "2"),
        ("row 3: output: an empty answer trains on the end-of-turn alone", "3"),
        ("row 4: input: text is expected, not a number: 5", "4"),
        ("row 5: an object is expected, not a list: [1]", "5"),
        ("row 6: history: a list of [question, answer] texts is expected: [['q']]", "6"),
        ("row 7: output: text is expected, not an object: {'a': 1}", "7"),
    }
    assert list(workspace.data.iterdir()) == []


def test_many_wrong_rows_are_counted(workspace: Workspace) -> None:
    with pytest.raises(CheckFailed) as caught:
        staging.stage(write(workspace, [{} for _ in range(60)]), "x", workspace)
    assert caught.value.findings[-1].message == "and 115 more of the same kind (field-missing)"


def test_a_byte_order_mark_is_no_fault(workspace: Workspace) -> None:
    file = workspace.root / "x.json"
    file.write_text(json.dumps([ROW]), encoding="utf-8-sig")
    assert staging.stage(file, "x", workspace).dataset.rows == 1


def test_staging_again_replaces(workspace: Workspace) -> None:
    staging.stage(write(workspace, [ROW]), "x", workspace)
    assert staging.stage(write(workspace, [ROW, ROW]), "x", workspace).dataset == staging.load(
        "x", workspace
    )
    assert staging.load("x", workspace).rows == 2


def test_touched_rows_are_fine_but_changed_ones_are_not(workspace: Workspace) -> None:
    staged = staging.stage(write(workspace, [ROW]), "x", workspace).dataset
    staged.file.touch()
    assert staging.load("x", workspace) == staged
    staged.file.write_text(staged.file.read_text().replace("hi", "ho"))
    with pytest.raises(InputError, match="changed after they were checked"):
        staging.load("x", workspace)


@pytest.mark.parametrize("content", ["{}", '{"rows": "many"}', "torn {"])
def test_a_torn_record_is_never_taken_for_a_whole_one(workspace: Workspace, content: str) -> None:
    staged = staging.stage(write(workspace, [ROW]), "x", workspace).dataset
    (staged.folder / "staged.json").write_text(content)
    with pytest.raises(InputError):
        staging.load("x", workspace)


@pytest.mark.parametrize("name", ["a,b", "../x", "a b", "", ".x"])
def test_names_that_llamafactory_would_split_or_that_leave_the_folder(
    workspace: Workspace, name: str
) -> None:
    with pytest.raises(UsageError):
        staging.stage(write(workspace, [ROW]), name, workspace)


def test_a_place_that_can_not_be_written(workspace: Workspace) -> None:
    workspace.data.write_text("a file where the folder should be")
    with pytest.raises(TransferError, match="can't be written"):
        staging.stage(write(workspace, [ROW]), "x", workspace)
