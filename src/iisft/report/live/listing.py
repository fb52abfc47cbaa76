"""Every run of the workspace as a line, and its queue, cheap enough to be looked at each second."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypedDict, TypeVar

from iisft.evaluation.locate import finite
from iisft.runs.queue import entries, times
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import count
from iisft.runs.record.state import QUEUED, RunStatus, brief_of
from iisft.workspace import Workspace

# A change in the same tick of the file system's clock as the look before it leaves the same time
# behind (git calls that racy); ticks are at most 2 s (FAT).
_SURE_AFTER_S = 3.0
_T = TypeVar("_T")


class Row(TypedDict):
    """What a list shows of a run; as_json of RunStatus says what each is."""

    id: str
    state: str
    live: bool
    preset: str
    started: float | None
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    eta_s: float | None


class Queued(TypedDict):
    """One line of the queue. `starts`, `ends`: when it is expected to, Unix seconds; `why` it
    can't start yet.
    """

    id: str
    state: str
    position: int | None
    starts: float | None
    ends: float | None
    why: str


class Queue(TypedDict):
    """The runs that wait for GPUs or were started from there, in their order."""

    paused: bool
    runs: list[Queued]


class Fresh(Generic[_T]):
    """What a look has found; looked for again when that is older than `fresh_s`, whichever thread
    asks.
    """

    def __init__(self, look: Callable[[], _T], fresh_s: float) -> None:
        self._look, self._fresh_s = look, fresh_s
        self._asking = threading.Lock()
        self._found: tuple[float, _T] | None = None

    def now(self) -> _T:
        with self._asking:
            if self._found is None or time.monotonic() - self._found[0] >= self._fresh_s:
                found = self._look()
                self._found = (time.monotonic(), found)
            return self._found[1]


class Listing:
    """The workspace's runs.

    A run that is over is read once: nothing about it changes without a change in its folder. That
    is one stat(2) for each of 10,000 runs.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._runs = workspace.runs
        self._known: dict[str, tuple[int, Row]] = {}  # the folder's time of change, and its line
        self._rows: dict[str, Row] = {}

    def look(self) -> dict[str, Row]:
        """The runs by id. A row that has not changed is the same object as before."""
        rows: dict[str, Row] = {}
        with contextlib.suppress(OSError), os.scandir(self._runs) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    with contextlib.suppress(OSError):  # removed in this moment
                        if entry.is_dir():
                            rows[entry.name] = self._row(entry)
        for name in self._known.keys() - rows.keys():
            del self._known[name]
        self._rows = rows
        return rows

    def _row(self, entry: os.DirEntry[str]) -> Row:
        changed = entry.stat().st_mtime_ns
        before = self._known.get(entry.name)
        if before is not None and before[0] == changed:
            return before[1]
        status = brief_of(RunFolder(self._runs / entry.name))
        row = row_of(status)
        if status.over and time.time() - changed / 1e9 > _SURE_AFTER_S:
            self._known[entry.name] = (changed, row)
        previous = self._rows.get(entry.name)
        return previous if previous == row else row


def row_of(status: RunStatus) -> Row:
    """A run's line; what its files say is a number only where it is one."""
    said = status.as_json()
    return Row(
        id=status.folder.id,
        state=status.state,
        live=status.live,
        preset=status.preset,
        started=status.started,
        step=count(said["step"]) or 0,
        total_steps=count(said["total_steps"]),
        loss=finite(said["loss"]),
        eval_loss=finite(said["eval_loss"]),
        eta_s=finite(said["eta_s"]),
    )


def queue_of(workspace: Workspace) -> Queue:
    """The queue as it stands; what is expected to the minute, for it moves with every second."""
    found = entries.read(workspace)
    expected = times.expected(found)
    runs = [
        Queued(
            id=entry.id,
            state=entry.status.state,
            position=entry.position,
            starts=_minute(expected[entry.id].starts),
            ends=_minute(expected[entry.id].ends),
            why=found.why.get(entry.id, ""),
        )
        for entry in found.entries
    ]
    return Queue(paused=found.paused, runs=runs)


def _minute(moment: float | None) -> float | None:
    return None if moment is None else 60.0 * round(moment / 60)


def newest(rows: dict[str, Row]) -> str | None:
    """The run that a person wants to see who names none: one that trains, or else one that is over,
    or else one that waits; of these the one that began last.
    """

    def rank(row: Row) -> tuple[bool, bool, float, str]:
        return row["live"], row["state"] != QUEUED, row["started"] or 0.0, row["id"]

    found = max(rows.values(), key=rank, default=None)
    return None if found is None else found["id"]
