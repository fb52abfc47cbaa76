"""Following a run in the terminal: a progress bar, or the trainer's own lines.

Leaving never disturbs the run.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iisft.child.constants_iisft import SAID_MARK
from iisft.cli import console
from iisft.cli.figures import describe_metrics
from iisft.files import LineFollower
from iisft.llamafactory.library_warnings import LIBRARY_WARNING
from iisft.quoting import shell_word, visible
from iisft.runs.record.folder import RunFolder, parse_event
from iisft.runs.record.state import RunStatus
from iisft.runs.supervise import control

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID


_WIDTH_WITH_LONG_BAR = 120


@dataclass(frozen=True, slots=True)
class Since:
    """Where a run's files ended before what is to be followed, in bytes."""

    log: int = 0
    events: int = 0

    @classmethod
    def here(cls, folder: RunFolder) -> "Since":
        def size(path: Path) -> int:
            return path.stat().st_size if path.exists() else 0

        return cls(size(folder.train_log), size(folder.events))


def follow(
    folder: RunFolder, *, verbose: bool, to_stdout: bool, since: Since = Since()
) -> RunStatus:
    """Show the run until it ends. Ctrl-C asks it to stop with a checkpoint, a second one kills it.

    Args:
        folder: the run.
        verbose: the trainer's own lines instead of a bar, or of a line for each step.
        to_stdout: whether what is shown is data, where standard output goes to a file or a pipe.
        since: what was there before.
    """
    shown: _LogLines | _StepLines | _Bar
    if verbose:
        shown = _LogLines(folder, since.log)
    elif to_stdout and not sys.stdout.isatty():
        shown = _StepLines(folder, since.events, console.out)
    elif not sys.stderr.isatty():
        shown = _StepLines(folder, since.events, console.say)
    else:
        shown = _Bar(folder)
    interrupts = 0
    try:
        while True:
            try:
                return control.wait(folder, shown.update)
            except KeyboardInterrupt:
                interrupts += 1
                if status := _stop(folder, now=interrupts > 1):
                    return status
    finally:
        shown.close()


def next_steps(run: str) -> str:
    """What a finished run is for."""
    name = shell_word(run)
    return "   ".join(
        f"iisft {command}"
        for command in (
            f"predict {name}", f"evaluate {name}", f"report {name}", f"chat {name}",
            f"export {name} -o DIR",
        )
    )  # fmt: skip


def better_before(ended: RunStatus) -> str:
    """The checkpoint that did better than the run's end, "" where there is none."""
    best = ended.best
    if best is None or best.step == ended.metrics.get("step"):
        return ""
    loss = ended.eval_losses[best.step]
    return f"checkpoint-{best.step}, eval_loss {loss:.4f}: take it with --checkpoint best"


def say_end(ended: RunStatus) -> None:
    """How a run ended: what the libraries warned of, the cause and the fix, and the way to go on
    where there is one.
    """
    say_warnings(ended)
    console.say(f"{ended.folder.id}: {ended.state} - {ended.reason}")
    if ended.state == "finished":
        if line := better_before(ended):
            console.say(f"  best: {line}")
        console.say(f"  next: {next_steps(ended.folder.id)}")
        return
    if ended.state == "failed" and ended.fix:
        errors = [finding for finding in ended.findings if finding.get("fix") == ended.fix]
        cause = errors[-1].get("message", "") if errors else ""
        if cause and str(cause) not in ended.reason:
            console.say(f"  cause: {cause}")
        console.say(f"  fix: {ended.fix}")
    console.say(f"  log: {ended.folder.train_log}")
    if ended.can_go_on:
        where = "   (on node 0)" if ended.folder.node_rank else ""
        console.say(f"  go on with: iisft resume {ended.folder.id}{where}")


def say_warnings(ended: RunStatus) -> None:
    """What the libraries said while the trainer loaded."""
    for finding in ended.findings:
        if finding.get("id") == LIBRARY_WARNING:
            console.say(f"warning: {finding.get('message', '')}")


def _stop(folder: RunFolder, *, now: bool) -> RunStatus | None:
    from iisft.errors import RunStateError
    from iisft.runs.record.state import status_of

    try:
        control.request_stop(folder, now=now)
    except RunStateError:
        return status_of(folder)  # it ended by itself meanwhile
    console.say(
        "killing the run" if now else "stopping with a checkpoint; Ctrl-C again kills it at once"
    )
    return None


class _LogLines:
    """Copies the trainer's lines to stderr."""

    def __init__(self, folder: RunFolder, offset: int) -> None:
        self._lines = LineFollower(folder.train_log, offset)

    def update(self) -> None:
        for line in self._lines.read():
            if not line.startswith(SAID_MARK):  # the trainer's own line stands beside it
                console.say(line)

    def close(self) -> None:
        pass


class _Told(ABC):
    """What a run's events tell somebody who follows it."""

    def __init__(self, folder: RunFolder, offset: int) -> None:
        self._events = LineFollower(folder.events, offset)
        self._step_s: list[float] = []

    def update(self) -> None:
        for line in self._events.read():
            event = parse_event(line)
            if event is None:
                continue
            if event["kind"] in ("metrics", "redone"):
                if (seconds := event.get("step_s")) is not None:
                    self._step_s = [*self._step_s[-20:], float(seconds)]
                self.metrics(event)
            elif event.get("state") == "restarting":
                self.say(f"restarting: {event.get('message', '')}")
            elif event["kind"] == "observed":
                self.proven()
            elif event["kind"] == "finding":
                self.say(f"{event.get('severity', '')}: {event.get('message', '')}")

    @abstractmethod
    def metrics(self, event: dict[str, Any]) -> None: ...

    @abstractmethod
    def say(self, text: str) -> None: ...

    def proven(self) -> None:  # noqa: B027 - a line for each step needs no word of it
        pass


class _StepLines(_Told):
    """One line for each step or evaluation, where no bar can be drawn."""

    def __init__(self, folder: RunFolder, offset: int, out: Callable[[str], None]) -> None:
        super().__init__(folder, offset)
        self._out = out

    def say(self, text: str) -> None:
        console.say(text)

    def metrics(self, event: dict[str, Any]) -> None:
        total = event.get("total_steps") or "?"
        self._out(f"step {event['step']}/{total}  {describe_metrics(event, self._step_s)}")

    def close(self) -> None:
        pass


class _Bar(_Told):
    """Step, epoch, loss, lr, grad_norm, seconds per step, ETA."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, 0)
        self._progress, self._task = _new_bar()
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(visible(text), markup=False)

    def proven(self) -> None:
        self._progress.update(self._task, description="training")

    def metrics(self, event: dict[str, Any]) -> None:
        self._progress.update(
            self._task,
            description="training",
            completed=event["step"],
            total=event["total_steps"],
            facts=describe_metrics(event, self._step_s),
        )


def _new_bar() -> "tuple[Progress, TaskID]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Facts(ProgressColumn):
        """Cut at its end where the line is full: the columns before it never shrink."""

        def render(self, task: "Task") -> Text:
            return Text(task.fields["facts"], no_wrap=True, overflow="ellipsis")

    terminal = console.rich_stderr()
    whole = Column(no_wrap=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24 if terminal.width >= _WIDTH_WITH_LONG_BAR else 8, table_column=whole),
        MofNCompleteColumn(table_column=whole.copy()),
        Facts(),
        console=terminal,
    )
    return progress, progress.add_task(
        "loading", total=None, facts="the trainer imports torch, loads model and data"
    )
