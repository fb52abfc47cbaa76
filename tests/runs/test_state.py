"""A state is read from files that may be anything, and from processes that may be anybody's."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft import process
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import all_runs, brief_of, status_of
from iisft.workspace import Workspace

CLI = Callable[..., Any]
OfRun = Callable[[RunFolder, str], dict[str, Any]]


@pytest.fixture
def folder(workspace: Path) -> RunFolder:
    made = RunFolder(workspace / "runs" / "run")
    made.path.mkdir(parents=True)
    record = {
        "id": "run",
        "preset_name": "mi50",
        "created": 1000.0,
        "expected": {"world_size": 2},
        "observed": None,
    }
    made.record.write_text(json.dumps(record))
    return made


def me() -> dict[str, Any]:
    identity = process.identity_of(os.getpid())
    assert identity is not None
    return identity.as_json()


def state(folder: RunFolder) -> tuple[str, str]:
    status, brief = status_of(folder), brief_of(folder)
    assert (status.state, status.reason) == (brief.state, brief.reason)
    return status.state, status.reason


GONE = "the supervisor and the trainer are gone and left no exit record"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("running", "")),
        ({"start_ticks": 1}, ("lost", GONE)),  # the pid was given to another process
        ({"boot_id": "of another machine, or before the reboot"}, ("lost", GONE)),
    ],
)
def test_a_process_is_known_by_more_than_its_pid(
    change: dict[str, Any],
    expected: tuple[str, str],
    folder: RunFolder,
    of_run: OfRun,
) -> None:
    supervisor = of_run(folder, process.SUPERVISOR_MARKER) | change
    folder.processes.write_text(json.dumps({"run": folder.marker, "supervisor": supervisor}))
    assert state(folder) == expected


def test_a_process_is_the_runs_only_when_it_was_started_for_it(
    folder: RunFolder, of_run: OfRun
) -> None:
    for role, other in (("supervisor", process.RUN_MARKER), ("trainer", process.SUPERVISOR_MARKER)):
        for forged in (
            me(),
            of_run(folder, other),
            {"pid": 1, "start_ticks": 1e999, "boot_id": ""},
        ):
            folder.processes.write_text(json.dumps({"run": folder.marker, role: forged}))
            assert brief_of(folder).state == status_of(folder).state == "lost"


def test_a_copy_of_a_running_run_does_not_run(folder: RunFolder, of_run: OfRun) -> None:
    record = json.loads(folder.record.read_text())
    folder.record.write_text(json.dumps(record | {"launcher": me()}))
    folder.processes.write_text(
        json.dumps({"run": folder.marker, "supervisor": of_run(folder, process.SUPERVISOR_MARKER)})
    )
    copy = RunFolder(folder.path.with_name("copy"))
    shutil.copytree(folder.path, copy.path)
    assert (state(folder), state(copy)) == (("running", ""), ("lost", GONE))


def test_pending_lasts_as_long_as_the_command_that_starts_it(folder: RunFolder) -> None:
    record = json.loads(folder.record.read_text())
    folder.record.write_text(json.dumps(record | {"launcher": me(), "created": time.time()}))
    assert state(folder) == ("pending", "")
    folder.record.write_text(json.dumps(record | {"launcher": me(), "created": time.time() - 9999}))
    assert state(folder) == ("lost", GONE)
    folder.record.write_text(
        json.dumps(record | {"launcher": me() | {"start_ticks": 1}, "created": time.time()})
    )
    assert state(folder) == ("lost", GONE)


def test_a_clock_that_was_set_back_changes_no_state(folder: RunFolder, of_run: OfRun) -> None:
    record = json.loads(folder.record.read_text())
    folder.record.write_text(json.dumps(record | {"created": time.time() + 10**6}))
    supervisor = of_run(folder, process.SUPERVISOR_MARKER)
    folder.processes.write_text(json.dumps({"run": folder.marker, "supervisor": supervisor}))
    for step, when in ((1, 5000.0), (2, 10.0)):
        event = {
            "time": when,
            "kind": "metrics",
            "step": step,
            "total_steps": 10,
            "loss": 1.0,
            "step_s": 3.0,
        }
        with folder.events.open("a") as stream:
            stream.write(json.dumps(event) + "\n")
    status = status_of(folder)
    assert (status.state, status.metrics["step"], status.eta_s) == ("running", 2, 24.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b'{"id": "ru', "run.json is broken"), (b"\xff\xfe", "run.json is broken")],
)
def test_a_broken_record_is_told_and_hides_no_other_run(
    content: bytes, reason: str, folder: RunFolder, iisft: CLI
) -> None:
    other = RunFolder(folder.path.with_name("other"))
    other.path.mkdir()
    other.exit.write_text(
        json.dumps({"state": "finished", "reason": "all 4 steps", "preset": "mi50", "started": 1.0})
    )
    folder.record.write_bytes(content)
    assert state(folder) == ("lost", reason)
    listed = {run["id"]: run["state"] for run in json.loads(iisft("runs", "--json").out)}
    assert listed == {"run": "lost", "other": "finished"}
    for command in (("resume", "run"), ("runs", "diff", "run", "other")):
        refused = iisft(*command)
        assert (refused.code, reason in refused.err) == (6, True), refused.err
    for command in (
        ("status", "run"),
        ("logs", "run"),
        ("watch", "run", "--once"),
        ("runs", "rm", "run", "-y"),
    ):
        assert iisft(*command).code == 0, command


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", {"created": "yesterday"}),
        ("run.json", {"created": 1e30, "expected": {"world_size": "two"}}),
        (
            "exit.json",
            {
                "preset": 1,
                "state": [],
                "started": "x",
                "ended": {},
                "step": "x",
                "loss": "abc",
                "ranks": [],
            },
        ),
        ("events.jsonl", {"kind": "metrics", "step": "x", "total_steps": None, "loss": "zz"}),
        ("events.jsonl", {"kind": "metrics", "step": 3, "step_s": "fast"}),
        ("events.jsonl", {"kind": "metrics", "step": 3, "total_steps": "many", "loss": {}}),
    ],
)
def test_valid_json_with_nonsense_in_it_hides_no_run_either(
    name: str, content: dict[str, Any], folder: RunFolder, iisft: CLI
) -> None:
    other = RunFolder(folder.path.with_name("other"))
    other.path.mkdir()
    other.exit.write_text(
        json.dumps({"state": "finished", "reason": "all 4 steps", "preset": "mi50", "started": 1.0})
    )
    (folder.path / name).write_text(json.dumps(content) + "\n")
    assert {run["id"] for run in json.loads(iisft("runs", "--json").out)} == {"run", "other"}
    for command in (
        ("runs",),
        ("status", "run"),
        ("status", "run", "--json"),
        ("watch", "run", "--once"),
    ):
        assert iisft(*command).code == 0, command
    refused = iisft("resume", "run")
    assert (refused.code, "bug" in refused.err) == (6, False), refused.err


def test_a_broken_record_is_named_though_the_run_has_ended(folder: RunFolder, iisft: CLI) -> None:
    folder.record.write_text("{")
    folder.exit.write_text(
        json.dumps({"state": "stopped", "reason": "stopped on request", "preset": "mi50"})
    )
    refused = iisft("resume", "run")
    assert (refused.code, "run: run.json is broken" in refused.err) == (6, True), refused.err


def test_a_record_without_read_permission_is_told(folder: RunFolder) -> None:
    if os.geteuid() == 0:
        folder.record.unlink()
        folder.record.mkdir()  # what root can't read either
        assert state(folder) == ("lost", "run.json can't be read: Is a directory")
    else:
        folder.record.chmod(0)
        assert state(folder) == ("lost", "run.json can't be read: Permission denied")


def test_the_list_is_the_newest_first_and_holds_what_ended(
    folder: RunFolder, workspace: Path
) -> None:
    for number in range(3):
        run = RunFolder(workspace / "runs" / f"r{number}")
        run.path.mkdir()
        outcome = {
            "state": "stopped", "reason": "why", "preset": "p", "started": 2000.0 + number,
            "ended": 1.0, "step": number, "total_steps": 9, "loss": 0.5, "ranks": 2,
        }  # fmt: skip
        run.exit.write_text(json.dumps(outcome))
    (workspace / "runs" / ".half-made").mkdir()
    listed = [status.as_json() for status in all_runs(Workspace(workspace))]
    assert [run["id"] for run in listed] == ["r2", "r1", "r0", "run"]
    assert listed[0] == {
        "id": "r2", "state": "stopped", "reason": "why", "preset": "p", "started": 2002.0,
        "ended": 1.0, "step": 2, "total_steps": 9, "loss": 0.5, "eval_loss": None, "eta_s": None,
        "ranks": 2,
    }  # fmt: skip


def test_a_list_of_no_runs_names_the_workspace(
    iisft: CLI, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = iisft("runs")
    assert (listed.code, listed.err) == (0, f"no runs in the workspace {workspace}\n")
    monkeypatch.delenv("IISFT_HOME")
    monkeypatch.chdir(tmp_path)
    assert iisft("runs").err == (
        f"no runs in the workspace {tmp_path}; export IISFT_HOME=DIR names another\n"
    )
    assert iisft("runs", "--quiet").err == ""
