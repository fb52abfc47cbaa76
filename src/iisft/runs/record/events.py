"""What the trainer reports becomes events.jsonl: every step once, however often the trainer was
started.
"""

import contextlib
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from iisft import files
from iisft.errors import Finding
from iisft.llamafactory.logs import Metrics
from iisft.runs.record.folder import RunFolder, event_line, parse_event

_Position = tuple[int, bool]  # step, and whether it is the evaluation after that step


class Events:
    """Appends to events.jsonl in order.

    What finds no room on a full disk waits in memory until there is some.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.events
        self._waiting: deque[str] = deque()
        self._writing = threading.Lock()  # notices are sent in threads, and what fails is on record
        self.listener: Callable[[Finding], None] | None = None

    def lines(self) -> list[str]:
        """All of them so far."""
        return [*files.LineFollower(self._file).read(), *self._waiting]

    def append(self, kind: str, **values: Any) -> None:
        """One event with the present time.

        Never raises: a full disk must not end the supervision.
        """
        self._waiting.append(event_line(kind, **values))
        self.flush()

    def finding(self, finding: Finding) -> None:
        """Put a finding on record."""
        self.append("finding", **finding.as_json())
        if self.listener is not None:
            self.listener(finding)

    def flush(self) -> None:
        """Write what waits, as far as there is room."""
        with self._writing, contextlib.suppress(OSError):
            while self._waiting:
                files.append_line(self._file, self._waiting[0])
                self._waiting.popleft()


class Recorder:
    """Writes metrics of one trainer's life.

    A step that an earlier life of the run has recorded already is an event of kind `redone`, so
    that the events of kind `metrics` are one curve.

    Args:
        events: where to, and what was there before.
        adopted: the trainer was running before: what an earlier supervisor wrote of this life is
        not written again.
    """

    def __init__(self, events: Events, *, adopted: bool) -> None:
        self._events = events
        self.last: Metrics | None = None
        self._recorded, written = _positions(events)
        self._written: _Position = written if adopted else (-1, False)
        self._step_times: deque[float] = deque(maxlen=50)
        self._last_step_at: float | None = None
        self._counted: tuple[int, int] | None = None  # a step, and the tokens up to it

    @property
    def median_step_s(self) -> float | None:
        """Seconds per step over the last fifty."""
        return statistics.median(self._step_times) if self._step_times else None

    def take(self, arrived: list[Metrics]) -> list[Metrics]:
        """Record what is new and return it.

        Steps that arrived together share the time since those before.
        """
        new = [metrics for metrics in arrived if _position(metrics) > self._written]
        now = time.monotonic()
        steps = new[-1].step - self.last.step if new and self.last else 0
        step_s = (
            round((now - self._last_step_at) / steps, 4)
            if steps > 0 and self._last_step_at is not None
            else None
        )
        for metrics in new:
            self._record(metrics, step_s)
        # an evaluation is not a part of the step after it
        if arrived and (steps > 0 or self.last is None or arrived[-1].loss is None):
            self.last, self._last_step_at = arrived[-1], now
        return new

    def _record(self, metrics: Metrics, step_s: float | None) -> None:
        trained = metrics.loss is not None
        timed = {"step_s": step_s} if step_s is not None and trained else {}
        self._step_times.extend(timed.values())
        if trained and metrics.tokens is not None:
            before, tokens = self._counted or (0, 0)
            if step_s and metrics.step > before and self._counted:
                per_step = (metrics.tokens - tokens) / (metrics.step - before)
                timed["tokens_per_s"] = round(per_step / step_s, 1)
            self._counted = (metrics.step, metrics.tokens)
        kind = "metrics" if _position(metrics) > self._recorded else "redone"
        self._events.append(kind, **metrics.as_json(), **timed)
        self._written = _position(metrics)
        self._recorded = max(self._recorded, self._written)


def _position(metrics: Metrics) -> _Position:
    return metrics.step, metrics.loss is None


def _positions(events: Events) -> tuple[_Position, _Position]:
    """The furthest place of the curve, and the last one that was written."""
    furthest = last = (-1, False)
    for line in events.lines():
        event = parse_event(line)
        if (
            event is not None
            and event["kind"] in ("metrics", "redone")
            and isinstance(event.get("step"), int)
        ):
            last = (event["step"], "loss" not in event)
            furthest = max(furthest, last)
    return furthest, last
