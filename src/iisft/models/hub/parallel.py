"""Work on many files at a time, which Ctrl-C ends immediately: daemon threads and a stop flag."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_SHOW_EVERY_S = 0.2
_GRACE_S = 1.0  # for a thread to see the stop flag; one that waits on a socket is abandoned


class Cancelled(Exception):
    """The work was told to stop."""


@dataclass
class Tally:
    """Progress of a piece of work in bytes and files, and what went wrong on the way."""

    what: str
    total_bytes: int
    total_files: int
    done_bytes: int = 0
    moved_bytes: int = 0  # without those that were there before; the rate comes from these
    done_files: int = 0
    notes: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def advance(self, count: int, *, moved: bool = True) -> None:
        """Add bytes; a negative count takes useless ones back."""
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
    """Tells the workers to end; `pause` is a sleep that it interrupts."""

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
    """The answer for each item, and the errors of those that failed."""

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
    """Do `work` for every item in a few threads; `show` is called a few times a second from here.

    An item's exception is kept and the others go on, unless `fatal` says that none can succeed.

    Raises:
        KeyboardInterrupt: immediately; the threads are told to stop.
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
