"""The waiting line: one small file for each run in the workspace's queue/, beside the run's folder,
which has everything else.

The folder is made when the run is queued, so that what was asked for is fixed then. Whether a run
was started is told by its folder alone (processes.json, exit.json): a file of the queue that is
torn or lost costs the run its place, never a start too many or too few.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iisft import files, process
from iisft.errors import Finding
from iisft.process import ProcessIdentity
from iisft.quoting import shell_word
from iisft.runs.record import given_cards
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord, count
from iisft.runs.record.state import QUEUED, RunStatus, brief_of
from iisft.workspace import Workspace

LARGEST = 64 * 1024  # bytes of an entry; one that iisft writes has a few hundred
LAST, MOST = float("inf"), 1e12
_MOST_HOURS = 1e6  # a century; beyond, no calendar has the day


def _number(value: Any) -> float | None:
    """What a broken record has instead (a text, NaN, a number of 400 digits) is None."""
    return float(value) if type(value) in (int, float) and 0 <= value <= MOST else None


@dataclass(frozen=True, slots=True)
class Need:
    """The GPUs that a run waits for: so many alike, of at least that memory; none for CPU ranks."""

    cards: int = 0
    vendor: str = ""
    arch: str = ""
    memory_gib: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Need":
        cards, gib = count(values.get("cards")) or 0, _number(values.get("memory_gib")) or 0.0
        return cls(cards, str(values.get("vendor", "")), str(values.get("arch", "")), gib)

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of the queue: waiting, running, or ended since the queue was last empty.

    `position` counts the waiting ones from 1; `python` is the interpreter that trains, as it was
    when the run was queued.
    """

    folder: RunFolder
    place: float
    status: RunStatus
    record: RunRecord
    python: str = ""
    position: int | None = None

    @property
    def id(self) -> str:
        return self.folder.id

    @property
    def family(self) -> str | None:
        """The name that the runs of one sweep share."""
        family = self._queue.get("family")
        return family if isinstance(family, str) else None

    @property
    def need(self) -> Need:
        return Need.from_json(self._queue)

    @property
    def hours(self) -> float | None:
        """How long the plan says it takes."""
        hours = _number((self.record.forecast or {}).get("total_h"))
        return hours if hours is not None and hours <= _MOST_HOURS else None

    @property
    def waiting(self) -> bool:
        return self.status.state == QUEUED

    @property
    def ended(self) -> bool:
        return not (self.waiting or self.status.live or self.status.state == "lost")

    def as_json(self) -> dict[str, Any]:
        cards = given_cards.read(self.folder)
        return {
            "position": self.position,
            "id": self.id,
            "state": self.status.state,
            "reason": self.status.reason,
            "family": self.family,
            "preset": self.status.preset,
            "needs": self.need.as_json(),
            "cards": list(cards.keys) if cards else [],
        }

    @property
    def _queue(self) -> Mapping[str, Any]:
        return self.record.queue or {}


@dataclass(frozen=True, slots=True)
class Queue:
    """Everything in the queue, in its order; `runner` is the process that starts them, if it lives,
    and `why` what it says of runs that can't start yet.

    `findings`: files that lie there and are no entries.
    """

    entries: tuple[Entry, ...] = ()
    paused: bool = False
    runner: int | None = None
    findings: tuple[Finding, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def waiting(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.waiting]


def read(workspace: Workspace) -> Queue:
    """The queue as it is now. What is torn, foreign or huge is said and never raises."""
    found, findings = [], []
    for file in entry_files(workspace):
        folder = RunFolder(workspace.runs / file.stem)
        values, problem = _values(file)
        if problem:
            findings.append(problem)
        if values is not None and folder.path.is_dir():
            entry = _entry(folder, values)
            if entry is not None:
                found.append(entry)
            elif not problem:
                findings.append(_unusable(file, f"{folder.id} is not a run of the queue"))
    found.sort(key=lambda entry: (entry.place, entry.status.started or 0.0, entry.id))
    number, entries = 0, []
    for entry in found:
        number += entry.waiting
        entries.append(replace(entry, position=number) if entry.waiting else entry)
    paused = (workspace.queue / "paused").exists()
    runner, why = _said_by_runner(workspace)
    return Queue(tuple(entries), paused, runner.pid if runner else None, tuple(findings), why)


def entry_files(workspace: Workspace) -> list[Path]:
    """The files that announce a run, in the order of its names."""
    try:
        names = sorted(path.name for path in workspace.queue.iterdir())
    except OSError:
        return []
    entries = [name for name in names if name.endswith(".json") and not name.startswith(".")]
    return [workspace.queue / name for name in entries]


def _values(file: Path) -> tuple[dict[str, Any] | None, Finding | None]:
    """What an entry says; None where it is not ours to read. A torn one says nothing, and its run
    stands at the end.
    """
    folder = RunFolder(file.parent.parent / "runs" / file.stem)
    try:
        if file.lstat().st_uid != os.geteuid():
            text = "an entry of the queue belongs to another user: it is left out"
            return None, _unusable(file, text)
    except OSError:
        return None, None  # it was just removed
    values = files.read_json_object(file, LARGEST)
    if values is not None:
        return values, None
    if folder.path.is_dir():
        text = f"the queue's entry of {folder.id} can't be read: it waits at the end"
        return {}, _unusable(file, text, f"iisft queue move {shell_word(folder.id)} 1")
    return None, _unusable(file, "a file of the queue can't be read, and no run has its name")


def _unusable(file: Path, text: str, fix: str = "") -> Finding:
    fix = fix or f"rm -r {shell_word(str(file))}"
    return Finding("queue-entry", text, where=str(file), fix=fix, severity="warn")


def _entry(folder: RunFolder, values: Mapping[str, Any]) -> Entry | None:
    record = folder.read_record()
    if record is None or record.queue is None:
        return None
    place, python = values.get("place"), values.get("python")
    python = python if isinstance(python, str) else ""
    known = isinstance(place, int | float) and abs(place) <= MOST
    return Entry(folder, float(place or 0) if known else LAST, brief_of(folder), record, python)


def runner_of(workspace: Workspace) -> ProcessIdentity | None:
    """The process that starts the queue's runs, if it lives."""
    return _said_by_runner(workspace)[0]


def _said_by_runner(workspace: Workspace) -> tuple[ProcessIdentity | None, dict[str, str]]:
    said = files.read_json_object(workspace.queue / "runner", LARGEST) or {}
    found, marker = ProcessIdentity.from_json(said), str(workspace.queue)
    if found is None or not found.alive_for(process.SUPERVISOR_MARKER, marker, os.geteuid()):
        return None, {}
    why = said.get("why")
    return found, {str(k): str(v) for k, v in why.items()} if isinstance(why, dict) else {}


def ensure_runner(workspace: Workspace, *, added: bool = False) -> None:
    """Have a runner where there is something for it to do. After something was added, always begin
    one: the one that lives may have looked for the last time.
    """
    if not workspace.queue.is_dir():
        return
    if added or (runner_of(workspace) is None and has_work(read(workspace))):
        env = {**os.environ, process.SUPERVISOR_MARKER: str(workspace.queue)}
        argv = [sys.executable, "-P", "-m", "iisft.runs.queue.runner", str(workspace.root)]
        # somebody else's workspace may be looked at
        with contextlib.nullcontext() if added else contextlib.suppress(OSError):
            process.Child(argv, cwd=Path("/"), env=env, output=workspace.queue / "runner.log")


def has_work(queue: Queue) -> bool:
    """Whether a runner has to look; while the queue is paused only at what already runs."""
    if queue.paused:
        return any(not entry.ended and not entry.waiting for entry in queue.entries)
    return bool(queue.entries)
