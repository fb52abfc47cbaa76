"""Staging is whole or not at all: kills, full disks, a second process, the same input twice."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft import files
from iisft.data.stage import rowsfile, staging
from iisft.errors import CheckFailed, EnvironmentFault, TransferError
from iisft.workspace import Workspace

CLI = Callable[..., Any]
ROW = {"instruction": "评估", "input": "正文", "output": "{}"}


@pytest.fixture
def workspace() -> Workspace:
    return Workspace.current()


def write(workspace: Workspace, rows: list[Any], name: str = "数据 rows.jsonl") -> Path:
    file = workspace.root / name
    file.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return file


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_input_twice_changes_nothing(iisft: CLI, workspace: Workspace) -> None:
    file = write(workspace, [ROW])
    first = iisft("data", "stage", str(file), "--name", "x")
    assert first.out == f"x: 1 rows in {workspace.data / 'x'}\n"
    before = tree(workspace.data)
    times = {path: path.stat().st_mtime_ns for path in workspace.data.rglob("*")}
    again = iisft("data", "stage", str(file), "--name", "x")
    assert (again.code, again.out) == (0, "x: 1 rows were staged already, nothing is changed\n")
    assert tree(workspace.data) == before
    assert {path: path.stat().st_mtime_ns for path in workspace.data.rglob("*")} == times
    other = json.loads(
        iisft("data", "stage", str(file), "--name", "x", "--columns", "answer=input", "--json").out
    )
    assert (other["unchanged"], other["rows"]) == (False, 1)


def test_another_column_for_the_system_text_is_another_staging(workspace: Workspace) -> None:
    file = write(workspace, [{**ROW, "role": "分析师"}])
    assert staging.stage(file, "x", workspace).dataset.record["not_read"] == ["role"]
    told = staging.stage(file, "x", workspace, columns=["system=role"])
    assert (told.unchanged, told.dataset.keys, told.dataset.record["not_read"]) == (
        False,
        ("instruction", "input", "output", "system"),
        [],
    )


def test_changed_input_replaces_and_leaves_one_file_of_rows(workspace: Workspace) -> None:
    staging.stage(write(workspace, [ROW]), "x", workspace)
    staged = staging.stage(write(workspace, [ROW, {**ROW, "input": "b"}]), "x", workspace).dataset
    assert sorted(path.name for path in staged.folder.iterdir()) == [
        ".lock", "dataset_info.json", staged.file.name, "staged.json",
    ]  # fmt: skip
    assert staging.load("x", workspace) == staged


def test_a_file_of_the_users_in_the_folder_stays(workspace: Workspace) -> None:
    (workspace.data / "x").mkdir(parents=True)
    own = write(workspace, [ROW], "data/x/rows.jsonl")
    before = own.read_bytes()
    with pytest.raises(CheckFailed):
        staging.stage(write(workspace, [{**ROW, "output": ""}]), "x", workspace)
    staging.stage(own, "x", workspace)
    staging.stage(write(workspace, [ROW, {**ROW, "input": "b"}]), "x", workspace)
    assert own.read_bytes() == before


def test_bad_rows_leave_the_old_set_untouched(workspace: Workspace) -> None:
    staging.stage(write(workspace, [ROW]), "x", workspace)
    before = tree(workspace.data)
    with pytest.raises(CheckFailed):
        staging.stage(write(workspace, [ROW, {**ROW, "output": ""}]), "x", workspace)
    assert tree(workspace.data) == before


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_the_old_set_and_its_rest_is_cleared(
    workspace: Workspace,
) -> None:
    old = staging.stage(write(workspace, [ROW]), "x", workspace).dataset
    big = write(
        workspace,
        [{**ROW, "input": f"{number} " + "文" * 600} for number in range(60_000)],
        "big.jsonl",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "iisft", "data", "stage", str(big), "--name", "x"],
        stderr=subprocess.PIPE,
    )
    while not any(path.stat().st_size > 10**6 for path in old.folder.glob(".rows.*.tmp")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert staging.load("x", workspace) == old
    assert len(list(old.folder.glob(".rows.*.tmp"))) == 1
    staged = staging.stage(big, "x", workspace).dataset
    assert (staged.rows, list(staged.folder.glob(".rows.*.tmp")), old.file.exists()) == (
        60_000,
        [],
        False,
    )


@pytest.mark.parametrize("moment", ["rows", "publish", "register", "record"])
def test_a_full_disk_at_any_moment_leaves_the_old_set(
    workspace: Workspace, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = staging.stage(write(workspace, [ROW]), "x", workspace).dataset

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place, name = {
        "rows": (rowsfile._Temporary, "write"),
        "publish": (files, "move_into_place"),
        "register": (files, "write_text_atomically"),
        "record": (files, "write_json_atomically"),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, full)
        for dataset in ("x", "new"):
            with pytest.raises(EnvironmentFault, match="can't be written: No space left on device"):
                staging.stage(write(workspace, [ROW] * 3), dataset, workspace)
    assert staging.load("x", workspace) == old
    assert not (workspace.data / "new").exists()
    assert staging.stage(write(workspace, [ROW] * 3), "x", workspace).dataset.rows == 3


def test_two_at_a_time_do_not_disturb_each_other(workspace: Workspace) -> None:
    (workspace.data / "x").mkdir(parents=True)
    unfinished = workspace.data / "x" / ".rows.other.tmp"
    unfinished.write_bytes(b"rows of the process that holds the lock")
    with (
        files.exclusive_lock(workspace.data / "x" / ".lock"),
        pytest.raises(TransferError, match="another process is staging this dataset"),
    ):
        staging.stage(write(workspace, [ROW]), "x", workspace)
    assert unfinished.exists()


def test_a_policy_gets_the_sound_rows_and_its_output_is_what_is_staged(
    workspace: Workspace,
) -> None:
    rows = [ROW, {**ROW, "input": "lang " * 50}, {**ROW, "input": "c"}]
    policy = staging.Policy(
        {"keep": "short"},
        lambda given: (row for row in given if len(row.value["input"]) < 50),
        for_record=lambda file: {"overlong": {"dropped": 1}},
    )
    staged = staging.stage(write(workspace, rows), "x", workspace, policy=policy).dataset
    assert [json.loads(line)["input"] for line in staged.file.read_text().splitlines()] == [
        "正文",
        "c",
    ]
    originals = staged.folder / staged.record["originals"]["file"]
    assert [json.loads(line) for line in originals.read_text().splitlines()] == rows
    assert (staged.record["overlong"], staged.record["rows_read"]) == ({"dropped": 1}, 3)
    assert staging.stage(write(workspace, rows), "x", workspace, policy=policy).unchanged
    assert not staging.stage(write(workspace, rows), "x", workspace).unchanged


def test_warnings_are_said_and_recorded_but_stop_nothing(iisft: CLI, workspace: Workspace) -> None:
    result = iisft("data", "stage", str(write(workspace, [ROW, ROW])), "--name", "x")
    assert (result.code, "warning: row 2: the same as row 1" in result.err) == (0, True)
    assert staging.load("x", workspace).record["warnings"] == {"duplicate": 1}


def test_show_prints_one_row(iisft: CLI, workspace: Workspace) -> None:
    iisft("data", "stage", str(write(workspace, [ROW, {**ROW, "system": "简短"}])), "--name", "x")
    assert json.loads(iisft("data", "show", "x", "--row", "2", "--json").out)["system"] == "简短"
    beyond = iisft("data", "show", "x", "--row", "3")
    assert (beyond.code, beyond.err) == (2, "error: x has rows 1 to 2, not 3\n")
