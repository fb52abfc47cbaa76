"""The queue's files: adding, order, and what is torn, foreign or huge."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.errors import IisftError, RunStateError
from iisft.runs.plan.make import make_plan
from iisft.runs.plan.plan import Preflight
from iisft.runs.plan.request import Request
from iisft.runs.queue import changes, entries, times
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import brief_of
from iisft.workspace import Workspace

CLI = Callable[..., Any]
Add = Callable[..., RunFolder]


@pytest.fixture
def add(iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]) -> Add:
    """Queue a run of that name."""
    assert iisft("data", "stage", str(rows), "--name", "数据").code == 0
    workspace = Workspace.current()

    def queue(name: str, family: str | None = None) -> RunFolder:
        request = Request(
            "mi50", ("train.accumulation=2",), str(model), "数据", name, gpus=1
        )  # fmt: skip
        plan = make_plan(request, workspace, Preflight.here(workspace, queued=True))
        plan.require_sound()
        return changes.add(plan, workspace, family)

    return queue


def waiting() -> list[str]:
    return [entry.id for entry in entries.read(Workspace.current()).waiting]


def test_runs_wait_in_the_order_in_which_they_were_queued(add: Add, iisft: CLI) -> None:
    for name, family in (("乙", "family-1"), ("a", "family-1"), ("z", None)):
        add(name, family)
    queue = entries.read(Workspace.current())
    assert [(one.position, one.id, one.family) for one in queue.entries] == [
        (1, "乙", "family-1"), (2, "a", "family-1"), (3, "z", None)
    ]  # fmt: skip
    first = queue.entries[0]
    assert first.need == entries.Need()  # no GPU is here: CPU ranks
    assert first.waiting and first.python == os.environ["IISFT_PYTHON"]
    assert first.folder.dataset.joinpath("数据.jsonl").exists()  # fixed now
    listed = json.loads(iisft("runs", "--json").out)
    assert {run["id"]: run["state"] for run in listed} == dict.fromkeys(("乙", "a", "z"), "queued")


def test_positions_are_changed_and_given_up(add: Add, workspace: Path) -> None:
    here = Workspace.current()
    for name in "abcd":
        add(name)
    changes.move(here, "d", 1)
    changes.move(here, "a", 3)
    assert waiting() == ["d", "b", "a", "c"]
    changes.move(here, "d", 99)
    assert waiting() == ["b", "a", "c", "d"]
    changes.remove(here, ["a"])
    assert waiting() == ["b", "c", "d"]
    assert not (workspace / "runs" / "a").exists()
    with pytest.raises(
        RunStateError, match="no run named 'a' is in the queue; there wait: b, c, d"
    ):
        changes.remove(here, ["b", "a"])
    assert waiting() == ["b", "c", "d"]


def test_positions_are_changed_as_often_as_one_likes(add: Add) -> None:
    here = Workspace.current()
    for name in "abc":
        add(name)
    for _ in range(40):
        changes.move(here, "c", 2)
        assert waiting() == ["a", "c", "b"]
        changes.move(here, "b", 2)
        assert waiting() == ["a", "b", "c"]


def test_torn_entries_have_positions_too(add: Add) -> None:
    for name in "abc":
        add(name).queue_entry.write_text("{")
    changes.move(Workspace.current(), "c", 2)
    assert waiting() == ["a", "c", "b"]


@pytest.mark.parametrize(
    "broken",
    [
        {"queue": {"cards": 10**15, "memory_gib": 10**400, "arch": "gfx906", "vendor": []}},
        {"queue": {"cards": -1, "memory_gib": float("nan"), "arch": {}}},
        {"forecast": {"total_h": 1e300}},
        {"forecast": {"total_h": 10**400}},
    ],
)
def test_a_record_of_impossible_numbers_is_listed(
    add: Add, iisft: CLI, broken: dict[str, Any]
) -> None:
    folder = add("one")
    record = json.loads(folder.record.read_text())
    folder.record.write_text(json.dumps(record | broken))
    expected = times.expected(entries.read(Workspace.current()))["one"]
    assert expected.starts and time.localtime(expected.ends)
    changes.pause(Workspace.current())
    assert iisft("queue").code == 0
    assert len(json.loads(iisft("queue", "--json").out)["entries"]) == 1


@pytest.mark.parametrize("content", ["", '{"place": 0', "[" * 5000, '{"place": NaN}', "x" * 70000])
def test_a_torn_entry_costs_a_run_its_place_and_nothing_else(add: Add, content: str) -> None:
    one, _ = add("one"), add("two")
    one.queue_entry.write_text(content)
    assert waiting() == ["two", "one"]
    changes.move(Workspace.current(), "one", 1)
    assert waiting() == ["one", "two"]
    assert entries.read(Workspace.current()).findings == ()


def test_what_is_no_entry_is_said_and_left_alone(add: Add, workspace: Path) -> None:
    folder = add("one")
    for name in ("huge", "folder"):
        (workspace / "queue").joinpath(f"{name}.json").write_text("y" * 100_000)
    (workspace / "queue" / "folder.json").unlink()
    (workspace / "queue" / "folder.json").mkdir()
    os.mkfifo(workspace / "queue" / "pipe 管.json")
    queue = entries.read(Workspace.current())
    assert [entry.id for entry in queue.entries] == ["one"]
    assert [finding.fix for finding in queue.findings] == [
        f"rm -r '{workspace}/queue/{name}.json'" for name in ("folder", "huge", "pipe 管")
    ]
    # a copy of a queued run on another machine, or one whose entry is gone: lost, not queued
    folder.queue_entry.unlink()
    assert brief_of(folder).state == "lost"
    assert waiting() == []


def test_a_name_is_given_once(add: Add, workspace: Path) -> None:
    add("one")
    with pytest.raises(IisftError, match="one"):
        add("one")
    assert waiting() == ["one"]
