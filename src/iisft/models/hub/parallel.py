"""Work on many files at once that Ctrl-C ends at once: daemon threads, a stop flag, and a tally for
the bar.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_SHOW_EVERY_S = 0.2
_GRACE_S = 1.0  # for a thread to see the stop flag; one that waits for a socket is left behind


class Cancelled(Exception):
    """The work was told to stop."""


@dataclass
class Tally:
    """How far a piece of work is, for a progress bar: bytes and files, and what went wrong on the
    way.
    """

    what: str
    total_bytes: int
    total_files: int
    done_bytes: int = 0
    moved_bytes: int = 0  # without those that were there before: what the rate is made from
    done_files: int = 0
    notes: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def advance(self, count: int, *, moved: bool = True) -> None:
        """Add bytes; negative when they turned out to be worthless."""
        with self._lock:
            self.done_bytes += count
            if moved and count > 0:
                self.moved_bytes += count

    def file_done(self) -> None:
        with self._lock:
            self.done_files += 1

    def note(self, text: str) -> None:
        with self._lock:
            self.notes.append(text)


Show = Callable[[Tally], None]


class Stop:
    """Tells the workers to end; `pause` is a sleep that ends with it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise Cancelled

    def pause(self, seconds: float) -> None:
        self._event.wait(seconds)
        self.check()


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Item, Answer]):
    """What each item gave, and which failed with what."""

    answers: dict[Item, Answer]
    errors: dict[Item, Exception]


def each(
    items: Sequence[Item],
    work: Callable[[Item, Stop], Answer],
    *,
    workers: int,
    tally: Tally,
    show: Show,
    fatal: Callable[[Exception], bool] = lambda _: False,
) -> Outcome[Item, Answer]:
    """Do `work` for every item with a few threads, calling `show` from this thread a few times a
    second.

    An item's exception is kept and the others go on, unless `fatal` says that none of them can
    succeed.

    Raises:
        KeyboardInterrupt: at once; the threads are told to stop.
    """
    waiting, answers, errors = list(reversed(items)), {}, {}
    stop, lock = Stop(), threading.Lock()

    def loop() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                item = waiting.pop()
            try:
                answer = work(item, stop)
            except Cancelled:
                return
            except Exception as error:
                errors[item] = error
                if fatal(error):
                    stop.set()
                    return
            else:
                answers[item] = answer

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(min(workers, len(items)))]
    for thread in threads:
        thread.start()
    _wait_for(threads, stop, tally, show)
    return Outcome(answers, errors)


def _wait_for(threads: Sequence[threading.Thread], stop: Stop, tally: Tally, show: Show) -> None:
    try:
        for thread in threads:
            while thread.is_alive():
                show(tally)
                thread.join(_SHOW_EVERY_S)
    except BaseException:
        stop.set()
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        raise
    show(tally)
