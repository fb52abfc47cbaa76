"""When the runs of a queue will begin and end, as their plans and those that run say."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from iisft.runs.queue.entries import Entry, Queue

_PROCESSOR = "cpu"
_MOST_CARDS = 1024  # of a machine; a broken record may say any number


class Times(NamedTuple):
    """Seconds since 1970; None where nobody knows."""

    starts: float | None
    ends: float | None


def expected(queue: Queue, now: float | None = None) -> dict[str, Times]:
    """For each run of the queue, by its id: nobody overtakes, and each takes as long as its plan
    says. What others will do with the GPUs is not known.
    """
    now = time.time() if now is None else now
    found: dict[str, Times] = {}
    lanes: dict[str, list[float | None]] = {}  # when each GPU of a kind is free
    for entry in queue.entries:
        if not entry.waiting:
            found[entry.id] = _of_begun(entry, now)
            if not entry.ended:
                _occupy(_lanes(lanes, entry, now), entry, found[entry.id].ends)
    before: float | None = now
    for entry in queue.waiting:
        free = _lanes(lanes, entry, now)
        free.sort(key=lambda moment: float("inf") if moment is None else moment)
        last = free[min(_cards(entry), len(free)) - 1]
        before = None if before is None or last is None else max(before, last)
        starts = None if queue.paused else before
        ends = None if starts is None or entry.hours is None else starts + entry.hours * 3600
        found[entry.id] = Times(starts, ends)
        _occupy(free, entry, ends)
    return found


def _of_begun(entry: Entry, now: float) -> Times:
    status = entry.status
    if entry.ended:
        return Times(status.started, status.ended)
    if status.eta_s is not None:
        return Times(status.started, now + status.eta_s)
    if entry.hours is None or status.started is None:
        return Times(status.started, None)
    return Times(status.started, max(now, status.started + entry.hours * 3600))


def _lanes(lanes: dict[str, list[float | None]], entry: Entry, now: float) -> list[float | None]:
    """Those of the GPUs that it needs, as many as it saw when it was queued."""
    arch = entry.need.arch or _PROCESSOR
    count = max(sum(one == arch for one in entry.record.gpus), _cards(entry))
    found = lanes.setdefault(arch, [])
    found += [now] * (count - len(found))
    return found


def _occupy(free: list[float | None], entry: Entry, ends: float | None) -> None:
    for index in _first(free, _cards(entry)):
        free[index] = ends


def _first(free: Sequence[float | None], count: int) -> list[int]:
    """The ones that are free first."""
    order = sorted(range(len(free)), key=lambda i: (free[i] is None, free[i] or 0.0))
    return order[:count]


def _cards(entry: Entry) -> int:
    return min(max(entry.need.cards, 1), _MOST_CARDS)
