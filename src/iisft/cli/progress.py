"""What stderr has while one waits: bars on a terminal, an occasional line elsewhere, and what a
run's models need that chat, serve and export load.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iisft.cli import console
from iisft.errors import UsageError
from iisft.models.folder.manifest import gb
from iisft.quoting import visible
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from iisft.inference.base_model import Source
    from iisft.models.hub.parallel import Show, Tally
    from iisft.runs.record.selection import Chosen


_LINE_EVERY_S = 30.0
_RATE_OVER_S = 10.0
_PATIENCE_S = 2.0


def bytes_bar(label: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Yields a function to call with the bytes done and in all; shown after two seconds."""
    return _shown(_PatientBar(label, in_bytes=True))


def rows_bar(label: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """The same for rows."""
    return _shown(_PatientBar(label, in_bytes=False))


@contextmanager
def _shown(bar: "_PatientBar") -> Iterator[Callable[[int, int], None]]:
    try:
        yield bar.update if sys.stderr.isatty() else _nothing
    finally:
        bar.close()


def _nothing(done: int, total: int) -> None:
    pass


class _PatientBar:
    def __init__(self, label: str, *, in_bytes: bool) -> None:
        self._label = label
        self._in_bytes = in_bytes
        self._started = time.monotonic()
        self._progress: Progress | None = None

    def update(self, done: int, total: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._started < _PATIENCE_S:
                return
            self._progress = self._bar()
            self._progress.start()
            self._task = self._progress.add_task(self._label, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _bar(self) -> "Progress":
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        amount = TaskProgressColumn() if self._in_bytes else MofNCompleteColumn()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            amount,
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=console.rich_stderr(), transient=True)


def facts_bar(
    what: str, *, total: int | None = None, counted: bool = False
) -> "tuple[Progress, TaskID]":
    """A started bar with a field `facts`, and with done/total if `counted`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
    ]
    if counted:
        columns.append(MofNCompleteColumn())
    columns.append(TextColumn("{task.fields[facts]}", markup=False))
    progress = Progress(*columns, console=console.rich_stderr())
    task = progress.add_task(visible(what), total=total, facts="")
    progress.start()
    return progress, task


@contextlib.contextmanager
def transfer_bar(*, quiet: bool) -> "Iterator[Show]":
    """Yields the function that shows a Tally."""
    if quiet:
        yield lambda tally: None
    elif sys.stderr.isatty():
        with contextlib.closing(_TransferBar()) as bar:
            yield bar.show
    else:
        yield _TransferLines().show


class _Rate:
    """Bytes per second over the last seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, tally: "Tally") -> str:
        """`12.3 MB/s  ETA 3m 20s`, as far as known."""
        now = time.monotonic()
        self._seen = [(when, count) for when, count in self._seen if now - when < _RATE_OVER_S]
        self._seen.append((now, tally.moved_bytes))
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        if last - first < 0.5 or after <= before:
            return ""
        rate = (after - before) / (last - first)
        left = console.duration((tally.total_bytes - tally.done_bytes) / rate)
        return f"{gb(round(rate))}/s  ETA {left}"


class _TransferBar:
    def __init__(self) -> None:
        self._tally: Tally | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._rate = _Rate()
        self._told = 0

    def show(self, tally: "Tally") -> None:
        if tally is not self._tally:
            self.close()
            self._begin(tally)
        assert self._progress is not None and self._task is not None
        for note in tally.notes[self._told :]:
            self._progress.console.print(visible(note), markup=False)
        self._told = len(tally.notes)
        self._progress.update(
            self._task,
            completed=tally.done_bytes,
            facts=f"{gb(tally.done_bytes)} of {gb(tally.total_bytes)}  "
            f"{tally.done_files}/{tally.total_files} files  " + self._rate.add(tally),
        )

    def _begin(self, tally: "Tally") -> None:
        self._tally, self._told, self._rate = tally, 0, _Rate()
        self._progress, self._task = facts_bar(tally.what, total=max(tally.total_bytes, 1))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class _TransferLines:
    def __init__(self) -> None:
        self._tally: Tally | None = None
        self._rate = _Rate()
        self._said = 0.0
        self._told = 0

    def show(self, tally: "Tally") -> None:
        if tally is not self._tally:
            self._tally, self._told, self._rate = tally, 0, _Rate()
            self._said = time.monotonic()
            files = "1 file" if tally.total_files == 1 else f"{tally.total_files} files"
            console.say(f"{tally.what} {files}, {gb(tally.total_bytes)}")
        for note in tally.notes[self._told :]:
            console.say(f"  {note}")
        self._told = len(tally.notes)
        rate = self._rate.add(tally)
        if time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            share = 100 * tally.done_bytes / max(tally.total_bytes, 1)
            amount = f"{gb(tally.done_bytes)} of {gb(tally.total_bytes)}"
            console.say(f"  {share:.0f} %  {amount}  {rate}".rstrip())


@dataclass(frozen=True)
class Ready:
    """A model that may be loaded. `max_new_tokens`: the longest answer."""

    source: "Source"
    chosen: "Chosen"
    max_new_tokens: int


def prepare(
    run: str | None,
    checkpoint: str | None,
    model: str | None,
    *,
    cpu: bool,
    max_tokens: int | None = None,
) -> Ready:
    """Check everything that can be wrong before the model is loaded, and say what it will take."""
    from iisft.inference import base_model as sources
    from iisft.runs.record import selection
    from iisft.runs.record.state import find_run

    if max_tokens is not None and max_tokens < 1:
        raise UsageError("max-tokens", f"--max-tokens must be at least 1, not {max_tokens}")
    workspace = Workspace.current()
    folder = find_run(workspace, run)
    chosen = selection.choose_one(folder, checkpoint)
    source = sources.find(folder, workspace, model=model, cpu=cpu)
    if source.drift:
        console.say(source.drift)
    if chosen.reason:
        console.say(chosen.reason)
    need = source.need(chosen)
    console.say(f"{folder.id} {need.sentence}")
    need.require()
    return Ready(source, chosen, max_tokens or int(source.record.setting("train.cutoff_len")))
