"""A bar with the time left, on a terminal, for what takes longer than two seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE_S = 2.0


def bytes_bar(label: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Gives the function to call with the bytes done and the bytes in all."""
    return _shown(_Bar(label, in_bytes=True))


def rows_bar(label: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Gives the function to call with the rows done and the rows in all."""
    return _shown(_Bar(label, in_bytes=False))


@contextmanager
def _shown(bar: "_Bar") -> Iterator[Callable[[int, int], None]]:
    try:
        yield bar.update if sys.stderr.isatty() else _nothing
    finally:
        bar.close()


def _nothing(done: int, total: int) -> None:
    pass


class _Bar:
    def __init__(self, label: str, *, in_bytes: bool) -> None:
        self._label = label
        self._in_bytes = in_bytes
        self._started = time.monotonic()
        self._progress: Progress | None = None

    def update(self, done: int, total: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._started < _PATIENCE_S:
                return
            self._progress = _bar(in_bytes=self._in_bytes)
            self._progress.start()
            self._task = self._progress.add_task(self._label, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _bar(*, in_bytes: bool) -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from iisft.cli import console

    amount = TaskProgressColumn() if in_bytes else MofNCompleteColumn()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        amount,
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console.rich_stderr(), transient=True)
