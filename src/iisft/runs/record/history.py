"""What a run's events add up to, taken in as they come, and the end of its log.

Garbage in them is passed over.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft import files
from iisft.child.constants_iisft import SAID_MARK
from iisft.files import LineFollower
from iisft.runs.record.folder import RunFolder, parse_event

_STEPS_IN_MEDIAN = 21
_FIGURES = ("loss", "grad_norm", "learning_rate", "epoch", "tokens_per_s", "eval_loss")
_MOST_STEPS = 10**12


@dataclass
class History:
    """Grows with every `update`.

    Attributes:
        steps: the steps with a loss. After a resume from an earlier step, those that are trained
        again are replaced.
        loss: one value per step; may be NaN.
        grad_norm: one value per step; None where the trainer said none.
        latest: step, total_steps and the figures last heard of, as describe_metrics takes them.
        step_s: seconds per step of the last steps.
        restarts: why, for every time that the supervisor started the trainer again.
    """

    folder: RunFolder
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    grad_norm: list[float | None] = field(default_factory=list)
    latest: dict[str, Any] = field(default_factory=dict)
    step_s: list[float] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events = LineFollower(self.folder.events)

    def update(self) -> bool:
        """Take in what was written since the last call.

        Whether the run's status may have changed.
        """
        changed = False
        for line in self._events.read():
            event = parse_event(line) or {}
            match event.get("kind"):
                case "metrics" | "redone":
                    self._metrics(event)
                case "checkpoint" if (step := _count(event.get("step"))) is not None:
                    self.checkpoints = sorted({*self.checkpoints, step})
                case "state" | "finding":
                    changed = True
                    if event.get("state") == "restarting":
                        self.restarts.append(str(event.get("message") or ""))
        return changed

    def _metrics(self, event: dict[str, Any]) -> None:
        step = _count(event.get("step"))
        if step is None:
            return
        figures = {
            name: number for name in _FIGURES if (number := _number(event.get(name))) is not None
        }
        total = _count(event.get("total_steps")) or self.latest.get("total_steps", 0)
        self.latest = {**self.latest, **figures, "step": step, "total_steps": total}
        seconds = _number(event.get("step_s"))
        if seconds is not None and math.isfinite(seconds) and seconds > 0:
            self.step_s = [*self.step_s, seconds][-_STEPS_IN_MEDIAN:]
        if "loss" in figures:
            while self.steps and self.steps[-1] >= step:
                for series in (self.steps, self.loss, self.grad_norm):
                    series.pop()
            self.steps.append(step)
            self.loss.append(figures["loss"])
            self.grad_norm.append(figures.get("grad_norm"))


def last_lines(log: Path, count: int, tail_bytes: int = 32 * 1024) -> list[str]:
    """The last lines of a log as a terminal shows them: of a line with carriage returns only what
    was written last.

    Reads no more than `tail_bytes` however long the log is; none when it can't be read.
    """
    try:
        with files.open_regular(log) as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - tail_bytes)
            stream.seek(start)
            tail = stream.read(tail_bytes).decode("utf-8", "replace")
    except OSError:
        return []
    lines = tail.split("\n")
    whole = lines[1:] if start and len(lines) > 1 else lines
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in whole]
    return [line for line in shown if line.strip() and not line.startswith(SAID_MARK)][-count:]


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_STEPS else None


def _number(value: Any) -> float | None:
    """A number of an event; NaN and infinities stand there as text."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
