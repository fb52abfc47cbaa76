"""What one open page is told: the whole picture first, then with each look what has changed.

A look reads files and what `Machine` has seen; it remembers only what was said before, so that a
page that comes back gets everything once more, and nothing ever waits for a page.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

from iisft import __version__
from iisft.evaluation.locate import finite
from iisft.files import LineFollower
from iisft.machine.facts import sensors
from iisft.quoting import plain
from iisft.report.live.listing import Fresh, Listing, Queue, Row, newest, queue_of, row_of
from iisft.report.provenance import facts_of
from iisft.report.series import CURVES, Series, event_of
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.history import last_lines
from iisft.runs.record.state import brief_of
from iisft.workspace import Workspace

_LOG_LINES = 200
_FINDINGS = 100
_MOST_POINTS = 20_000  # of a curve that is sent whole; a longer one is thinned out
_FIGURES = ("epoch", "learning_rate", "grad_norm", "tokens_per_s", "median_step_s")
# Events that come all the time, and of which curves and figures tell.
_STEADY = ("metrics", "redone", "checkpoint", "power")


class Hello(TypedDict):
    """Where this is."""

    workspace: str
    iisft: str


class Runs(TypedDict):
    """Lines of the list that are new or changed, and the ids of runs that are gone."""

    changed: list[Row]
    gone: list[str]


class Run(TypedDict):
    """The run that is shown. `facts`: what a report says of it; None when there is none of that id,
    or none at all (`id` None).
    """

    id: str | None
    facts: dict[str, Any] | None


class Now(Row):
    """The shown run's figures of this moment, and why it is in its state."""

    reason: str
    figures: dict[str, float | None]


class Curves(TypedDict):
    """Points of the curves: `whole` or those that are new. `eval` and `marks` are always whole."""

    whole: bool
    step: list[int]
    time: list[float]
    curves: dict[str, list[float | None]]
    eval: dict[str, list[Any]]
    marks: list[dict[str, Any]]


class Gpus(TypedDict):
    """What the machine's GPUs do."""

    gpus: list[dict[str, Any]]


class Log(TypedDict):
    """The end of the trainer's log."""

    lines: list[str]


Name = Literal["hello", "runs", "queue", "run", "now", "curves", "gpus", "log"]
Event = tuple[Name, Hello | Runs | Queue | Run | Now | Curves | Gpus | Log]


class Machine:
    """What all pages share: the runs, the queue, and what the GPUs answered last."""

    def __init__(self, workspace: Workspace, fresh_s: float) -> None:
        self.workspace = workspace
        self.runs = Fresh(Listing(workspace).look, fresh_s)
        self.queue = Fresh(lambda: queue_of(workspace), fresh_s)
        self.gpus: list[dict[str, Any]] = []

    def ask_gpus(self) -> None:
        """Takes seconds where a driver is slow, which no page has to wait for."""
        self.gpus = [asdict(gpu) for gpu in sensors.sample()]


class Page:
    """One open page, which shows the run `asked`, or without it whichever is the newest."""

    def __init__(self, machine: Machine, asked: str | None) -> None:
        self._machine = machine
        self._asked = asked
        self._sent: dict[str, Row] | None = None
        self._queue: Queue | None = None
        self._gpus: list[dict[str, Any]] | None = None
        self._shown: _Shown | None = None
        self._named: tuple[str | None, bool] | None = None

    def look(self) -> Iterator[Event]:
        """What the page does not know yet."""
        rows = self._machine.runs.now()
        if self._sent is None:
            yield "hello", Hello(workspace=str(self._machine.workspace.root), iisft=__version__)
        yield from self._list(rows)
        if (queue := self._machine.queue.now()) != self._queue:
            self._queue = queue
            yield "queue", queue
        if (gpus := self._machine.gpus) != self._gpus:
            self._gpus = gpus
            yield "gpus", Gpus(gpus=gpus)
        name = self._asked if self._asked is not None else newest(rows)
        yield from self._run(name, name in rows)

    def _list(self, rows: dict[str, Row]) -> Iterator[Event]:
        sent = self._sent or {}
        changed = [row for name, row in rows.items() if sent.get(name) is not row]
        gone = [name for name in sent if name not in rows]
        if changed or gone or self._sent is None:
            yield "runs", Runs(changed=changed, gone=gone)
        self._sent = rows

    def _run(self, name: str | None, there: bool) -> Iterator[Event]:
        if self._named != (name, there):
            self._named = (name, there)
            self._shown = None
            if name is not None and there:
                folder = RunFolder(self._machine.workspace.runs / name)
                self._shown = _Shown(folder, self._machine.workspace)
            else:
                yield "run", Run(id=name, facts=None)
        if self._shown is not None:
            yield from self._shown.look()


@dataclass(frozen=True)
class _Place:
    """Which file the events are in: another one begins the curves again."""

    device: int
    inode: int


class _Shown:
    """The run that a page shows."""

    def __init__(self, folder: RunFolder, workspace: Workspace) -> None:
        self._folder = folder
        self._workspace = workspace
        self._state: tuple[str, str] | None = None
        self._now: Now | None = None
        self._log: list[str] | None = None
        self._begin(None, 0)

    def _begin(self, place: _Place | None, size: int) -> None:
        self._place, self._size = place, size
        self._events = LineFollower(self._folder.events)
        self._series = Series()
        self._told: tuple[int, int, int] | None = None

    def look(self) -> Iterator[Event]:
        news = self._take()
        brief = brief_of(self._folder)
        if news or (brief.state, brief.reason) != self._state:
            self._state = (brief.state, brief.reason)
            facts = facts_of(self._folder, self._workspace)
            facts["findings"] = facts["findings"][-_FINDINGS:]
            yield "run", Run(id=self._folder.id, facts=facts)
        figures = {name: finite(brief.metrics.get(name)) for name in _FIGURES}
        now = Now(**row_of(brief), reason=brief.reason, figures=figures)
        if now != self._now:
            self._now = now
            yield "now", now
        yield from self._curves()
        lines = [plain(line) for line in last_lines(self._folder.train_log, _LOG_LINES)]
        if lines != self._log:
            self._log = lines
            yield "log", Log(lines=lines)

    def _take(self) -> bool:
        """Take in what was written. Whether there was something that the facts tell of."""
        place, size = None, 0
        with contextlib.suppress(OSError):
            found = self._folder.events.stat()
            place, size = _Place(found.st_dev, found.st_ino), found.st_size
        if place != self._place or size < self._size:
            self._begin(place, size)
        self._size = size
        news = False
        for line in self._events.read():
            if (event := event_of(line)) is not None:
                self._series.take(event)
                news = news or event.get("kind") not in _STEADY
        return news

    def _curves(self) -> Iterator[Event]:
        series = self._series
        told = (len(series.steps), len(series.evaluated["step"]), len(series.marks))
        if told == self._told:
            return
        whole, start = self._told is None, (self._told or (0,))[0]
        self._told = told
        # counted from the end, so that the last point is always among them
        every = max(1, -(-(told[0] - start) // _MOST_POINTS))
        chosen = slice(start + (told[0] - 1 - start) % every, None, every)
        yield (
            "curves",
            Curves(
                whole=whole,
                step=series.steps[chosen],
                time=series.times[chosen],
                curves={name: series.curves[name][chosen] for name in CURVES},
                eval=series.evaluated,
                marks=series.shown_marks(),
            ),
        )
