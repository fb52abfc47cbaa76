"""How far a download or a check is: a bar with rate and ETA on a terminal, now and then a line
elsewhere.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from iisft.cli import console
from iisft.cli.follow import duration
from iisft.models.folder.manifest import gb
from iisft.models.hub.parallel import Show, Tally

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_S = 30.0
_RATE_OVER_S = 10.0


@contextlib.contextmanager
def transfer_bar(*, quiet: bool) -> Iterator[Show]:
    """Yields the function that shows a Tally; what it says goes to stderr."""
    if quiet:
        yield lambda tally: None
    elif sys.stderr.isatty():
        with contextlib.closing(_Bar()) as bar:
            yield bar.show
    else:
        yield _Lines().show


class _Rate:
    """Bytes per second over the last seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, tally: Tally) -> str:
        """`12.3 MB/s  ETA 3m 20s`, as far as they are known."""
        now = time.monotonic()
        self._seen = [(when, count) for when, count in self._seen if now - when < _RATE_OVER_S]
        self._seen.append((now, tally.moved_bytes))
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        if last - first < 0.5 or after <= before:
            return ""
        rate = (after - before) / (last - first)
        return f"{gb(round(rate))}/s  ETA {duration((tally.total_bytes - tally.done_bytes) / rate)}"


class _Bar:
    def __init__(self) -> None:
        self._tally: Tally | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._rate = _Rate()
        self._told = 0

    def show(self, tally: Tally) -> None:
        if tally is not self._tally:
            self.close()
            self._begin(tally)
        assert self._progress is not None and self._task is not None
        for note in tally.notes[self._told :]:
            self._progress.console.print(note, markup=False)
        self._told = len(tally.notes)
        self._progress.update(
            self._task,
            completed=tally.done_bytes,
            facts=f"{gb(tally.done_bytes)} of {gb(tally.total_bytes)}  "
            f"{tally.done_files}/{tally.total_files} files  " + self._rate.add(tally),
        )

    def _begin(self, tally: Tally) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._tally, self._told, self._rate = tally, 0, _Rate()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
        )
        self._progress = Progress(*columns, console=console.rich_stderr())
        self._task = self._progress.add_task(tally.what, total=max(tally.total_bytes, 1), facts="")
        self._progress.start()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class _Lines:
    def __init__(self) -> None:
        self._tally: Tally | None = None
        self._rate = _Rate()
        self._said = 0.0
        self._told = 0

    def show(self, tally: Tally) -> None:
        if tally is not self._tally:
            self._tally, self._told, self._rate, self._said = tally, 0, _Rate(), time.monotonic()
            files = "1 file" if tally.total_files == 1 else f"{tally.total_files} files"
            console.say(f"{tally.what} {files}, {gb(tally.total_bytes)}")
        for note in tally.notes[self._told :]:
            console.say(f"  {note}")
        self._told = len(tally.notes)
        rate = self._rate.add(tally)
        if time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            share = 100 * tally.done_bytes / max(tally.total_bytes, 1)
            size = f"{gb(tally.done_bytes)} of {gb(tally.total_bytes)}"
            console.say(f"  {share:.0f} %  {size}  {rate}".rstrip())
