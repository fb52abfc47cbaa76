"""Every run of the workspace as one line, cheap enough to be looked at every second."""

import contextlib
import os
import threading
import time
from typing import TypedDict

from iisft.evaluation.locate import finite
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import count
from iisft.runs.record.state import RunStatus, brief_of
from iisft.workspace import Workspace

# A change in the same tick of the file system's clock as the look before it leaves the same time
# behind (git calls that racy); ticks are at most 2 s (FAT).
_SURE_AFTER_S = 3.0
_OVER = ("finished", "failed", "stopped", "lost")  # of itself such a run never changes again


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


class Listing:
    """The workspace's runs, read again when a look is older than `fresh_s`; any thread may ask.

    A run that is over is read once: nothing about it changes without a change in its folder. That
    is one stat(2) for each of 10,000 runs.
    """

    def __init__(self, workspace: Workspace, fresh_s: float) -> None:
        self._runs = workspace.runs
        self._fresh_s = fresh_s
        self._asking = threading.Lock()
        self._looked: float | None = None
        self._known: dict[str, tuple[int, Row]] = {}  # the folder's time of change, and its line
        self._rows: dict[str, Row] = {}

    def rows(self) -> dict[str, Row]:
        """The runs by id. A row that has not changed is the same object as before."""
        with self._asking:
            now = time.monotonic()
            if self._looked is None or now - self._looked >= self._fresh_s:
                self._rows = self._look()
                self._looked = time.monotonic()
            return self._rows

    def _look(self) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        with contextlib.suppress(OSError), os.scandir(self._runs) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    with contextlib.suppress(OSError):  # removed in this moment
                        if entry.is_dir():
                            rows[entry.name] = self._row(entry)
        for name in self._known.keys() - rows.keys():
            del self._known[name]
        return rows

    def _row(self, entry: os.DirEntry[str]) -> Row:
        changed = entry.stat().st_mtime_ns
        before = self._known.get(entry.name)
        if before is not None and before[0] == changed:
            return before[1]
        row = row_of(brief_of(RunFolder(self._runs / entry.name)))
        if row["state"] in _OVER and time.time() - changed / 1e9 > _SURE_AFTER_S:
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


def newest(rows: dict[str, Row]) -> str | None:
    """The run that a person wants to see who names none: one that trains, or else one that is over,
    or else one that waits; of these the one that began last.
    """

    def rank(row: Row) -> tuple[bool, bool, float, str]:
        return row["live"], row["state"] in _OVER, row["started"] or 0.0, row["id"]

    found = max(rows.values(), key=rank, default=None)
    return None if found is None else found["id"]
