"""A run's curves and the events to mark on them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from iisft import files, json_values
from iisft.evaluation.locate import finite
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import count, moment

CURVES = (
    "loss",
    "grad_norm",
    "learning_rate",
    "step_s",
    "tokens_per_s",
    "vram_allocated_gib",
    "vram_reserved_gib",
)
_DIGITS = 6
_MOST_MARKS = 500
_MOST_CHECKPOINTS = 200


class Series:
    """A run's curves and the events to mark on them, growing with every event that it takes.

    Attributes:
        steps: every logged step.
        times: when they were logged, Unix seconds.
        curves: a list per curve, null where a step has no number of it.
        evaluated: {step, time, loss}.
        marks: [{kind, step, time, text, severity, fix}]: restarts, stops, findings, checkpoints,
        NaN.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.times: list[float] = []
        self.curves: dict[str, list[float | None]] = {name: [] for name in CURVES}
        self.evaluated: dict[str, list[Any]] = {"step": [], "time": [], "loss": []}
        self.marks: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> None:
        """Take in the next event; a step that was done again is not drawn a second time."""
        kind, step, time = event.get("kind"), count(event.get("step")), moment(event.get("time"))
        if time is None:
            return
        if kind != "metrics":
            self.marks += _marks(event, self.steps[-1] if self.steps else 0)
        elif step is None:
            return
        elif "loss" in event and (not self.steps or step > self.steps[-1]):
            self.steps.append(step)
            self.times.append(time)
            for name, values in self.curves.items():
                values.append(_rounded(event.get(name)))
            self.marks += _not_finite(event, self.marks)
        elif (loss := finite(event.get("eval_loss"))) is not None:
            for name, value in (("step", step), ("time", time), ("loss", _rounded(loss))):
                self.evaluated[name].append(value)

    def shown_marks(self) -> list[dict[str, Any]]:
        """In the order of time as many as one can look at: the last 200 checkpoints, the first 500
        of all others.
        """
        saved = [mark for mark in self.marks if mark["kind"] == "checkpoint"]
        others = [mark for mark in self.marks if mark["kind"] != "checkpoint"]
        shown = saved[-_MOST_CHECKPOINTS:] + others[:_MOST_MARKS]
        return sorted(shown, key=lambda mark: float(mark["time"]))


def series_of(folder: RunFolder) -> dict[str, Any]:
    """The curves of a run so far, those that have a number.

    Returns:
        `step` and `time` of every logged step, a list per curve, `eval` and `marks`.
    """
    series = Series()
    for event in _events(folder.events):
        series.take(event)
    drawn = {
        name: values
        for name, values in series.curves.items()
        if any(value is not None for value in values)
    }
    return {
        "step": series.steps,
        "time": series.times,
        "eval": series.evaluated,
        "marks": series.shown_marks(),
    } | drawn


def _marks(event: dict[str, Any], last_step: int) -> Iterator[dict[str, Any]]:
    """What a person wants to see marked on the axis."""
    place = {"step": last_step, "time": event["time"]}
    kind = event.get("kind")
    if kind == "checkpoint":
        yield place | {
            "kind": "checkpoint",
            "step": last_step if (step := count(event.get("step"))) is None else step,
            "text": "",
            "severity": "info",
        }
    elif kind == "finding":
        texts = {key: str(event.get(key) or "") for key in ("message", "fix")}
        severity = str(event.get("severity") or "warn")
        yield place | {
            "kind": "finding",
            "text": texts["message"],
            "fix": texts["fix"],
            "severity": severity,
        }
    elif kind == "state" and event.get("state") in (
        "restarting",
        "stopping",
        "stopped",
        "failed",
        "lost",
    ):
        text = str(event.get("message") or event.get("reason") or "")
        yield place | {"kind": str(event["state"]), "text": text, "severity": "warn"}
    elif kind == "state" and (step := count(event.get("from_step"))):
        yield place | {
            "kind": "resumed",
            "step": step,
            "text": "",
            "severity": "info",
        }


def _not_finite(event: dict[str, Any], marks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first step whose loss or gradient is not finite; later ones add nothing."""
    bad = [
        f"{name} = {event[name]}"
        for name in ("loss", "grad_norm")
        if name in event and finite(event[name]) is None
    ]
    if bad and not any(mark["kind"] == "nan" for mark in marks):
        place = {"step": event["step"], "time": event["time"]}
        yield place | {"kind": "nan", "text": ", ".join(bad), "severity": "error"}


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Complete events; torn lines are skipped."""
    try:
        stream = files.open_regular(path)
    except OSError:
        return
    with stream:
        for line in files.lines_of(stream):
            if (event := event_of(line)) is not None:
                yield event


def event_of(line: bytes | str) -> dict[str, Any] | None:
    """One line of events.jsonl, or None when it is torn. By orjson: 50,000 steps are 15 MB."""
    try:
        event = orjson.loads(line)
    except ValueError:
        try:
            event = json_values.parse_json(line)  # NaN and Infinity, as json.dumps writes them
        except ValueError:
            return None
    return event if isinstance(event, dict) else None


def _rounded(value: Any) -> float | None:
    number = finite(value)
    if number is None or number == 0:
        return number
    return round(number, _DIGITS - 1 - math.floor(math.log10(abs(number))))
