"""A run's curves and the events to mark on them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from iisft import files, json_values
from iisft.evaluation.locate import finite
from iisft.runs.record.folder import RunFolder

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


def series_of(folder: RunFolder) -> dict[str, Any]:
    """The run's curves.

    Returns:
        `step` and `time` (Unix seconds) of every logged step, a list per curve that has a number
        (null where it is missing or not finite), `eval` {step, time, loss}, and `marks` [{kind,
        step, time, text, severity, fix}] in the order of time: restarts, stops, findings,
        checkpoints, NaN.
    """
    steps: list[int] = []
    times: list[float] = []
    curves: dict[str, list[float | None]] = {name: [] for name in CURVES}
    evaluated: dict[str, list[Any]] = {"step": [], "time": [], "loss": []}
    marks: list[dict[str, Any]] = []
    for event in _events(folder.events):
        kind, step, time = event.get("kind"), event.get("step"), event.get("time")
        if not isinstance(time, int | float):
            continue
        if kind != "metrics":
            marks += _marks(event, steps[-1] if steps else 0)
        elif not isinstance(step, int):
            continue
        elif "loss" in event and (not steps or step > steps[-1]):
            steps.append(step)
            times.append(time)
            for name, values in curves.items():
                values.append(_rounded(event.get(name)))
            marks += _not_finite(event, marks)
        elif (loss := finite(event.get("eval_loss"))) is not None:
            evaluated["step"].append(step)
            evaluated["time"].append(time)
            evaluated["loss"].append(_rounded(loss))
    drawn = {
        name: values
        for name, values in curves.items()
        if any(value is not None for value in values)
    }
    return {"step": steps, "time": times, "eval": evaluated, "marks": _few(marks)} | drawn


def _few(marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many marks as one can look at: the last 200 checkpoints, the first 500 of all others."""
    saved = [mark for mark in marks if mark["kind"] == "checkpoint"][-_MOST_CHECKPOINTS:]
    others = [mark for mark in marks if mark["kind"] != "checkpoint"][:_MOST_MARKS]
    return sorted(saved + others, key=lambda mark: float(mark["time"]))


def _marks(event: dict[str, Any], last_step: int) -> Iterator[dict[str, Any]]:
    """What a person wants to see marked on the axis."""
    place = {"step": last_step, "time": event["time"]}
    kind = event.get("kind")
    if kind == "checkpoint":
        yield place | {
            "kind": "checkpoint",
            "step": event.get("step", last_step),
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
    elif kind == "state" and event.get("from_step"):
        yield place | {
            "kind": "resumed",
            "step": event["from_step"],
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
    """Complete events; torn lines are skipped. Uses orjson: 50,000 steps are 15 MB."""
    try:
        stream = files.open_regular(path)
    except OSError:
        return
    with stream:
        for line in files.lines_of(stream):
            try:
                event = orjson.loads(line)
            except ValueError:
                try:
                    event = json_values.parse_json(
                        line
                    )  # NaN and Infinity, as json.dumps writes them
                except ValueError:
                    continue
            if isinstance(event, dict):
                yield event


def _rounded(value: Any) -> float | None:
    number = finite(value)
    if number is None or number == 0:
        return number
    return round(number, _DIGITS - 1 - math.floor(math.log10(abs(number))))
