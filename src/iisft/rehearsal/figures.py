"""What a rehearsal measured, and what that makes of the long run."""

import math
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iisft.errors import Finding
from iisft.estimate.memory import GIB
from iisft.rehearsal.short import CHECKPOINT, evaluates
from iisft.runs.plan.plan import Plan
from iisft.runs.record import measurements

KILLED = "rehearsal-kill"  # the kind of the event
STEPS = ("metrics", "redone")  # the kinds of events that tell of one

Event = dict[str, Any]


@dataclass
class Ended:
    """What is left of the short run. `seconds`: what the trainer took for `checkpoint_s` and
    `eval_s`.
    """

    state: str
    reason: str
    fix: str
    events: list[Event]
    observed: dict[str, Any]
    seconds: dict[str, Any]
    checkpoint_bytes: int
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = [event["kind"] for event in self.events]
        at = kinds.index(KILLED) if KILLED in kinds else len(kinds)
        self.before, self.after = self.events[:at], self.events[at:]

    @property
    def killed(self) -> bool:
        return bool(self.after)


def losses(events: Iterable[Event]) -> dict[int, Event]:
    """The steps with a loss."""
    return {
        event["step"]: event
        for event in events
        if event["kind"] in STEPS and "loss" in event and "step" in event
    }


def measured(plan: Plan, short: Plan, ended: Ended) -> dict[str, Any]:
    """Seconds of a step of the long run, from ordinary steps: the first of a trainer's life has
    caches to fill.
    """
    found = measurements.measure(ended.events)
    before, after = losses(ended.before), losses(ended.after)
    ordinary = [event for step, event in before.items() if step >= CHECKPOINT - 1]
    ordinary += [event for step, event in after.items() if step > CHECKPOINT + 1]
    seconds, speeds = [], []
    for event in ordinary:
        spent, whole = sum((event.get("spent") or {}).values()), event.get("step_s")
        each = spent or whole
        if each:
            seconds.append(float(each))
            if whole and "tokens_per_s" in event:
                speeds.append(event["tokens_per_s"] * whole / each)
    for name in ("step_s", "tokens_per_s"):
        found.pop(name, None)
    if seconds:
        times = plan.preset.train.accumulation / short.preset.train.accumulation
        found["step_s"] = round(statistics.median(seconds) * times, 4)
    if speeds:
        found["tokens_per_s"] = round(statistics.median(speeds), 2)
    return found


def figures(plan: Plan, short: Plan, ended: Ended, found: Mapping[str, Any]) -> dict[str, Any]:
    result, save = plan.forecast, plan.preset.save
    steps, step_s = result.steps if result else None, found.get("step_s")
    checkpoint_s, eval_s = _seconds(ended, "checkpoint_s"), _eval_s(plan, short, ended)
    total_s = None
    if steps and step_s:
        total_s = steps * step_s + steps // save.every_steps * (checkpoint_s or 0.0)
        if evaluates(plan.preset) and save.eval_every_steps:
            total_s += steps // save.eval_every_steps * (eval_s or 0.0)
    checkpoint = ended.checkpoint_bytes / GIB or None
    return {
        "ok": False,
        "name": short.folder.id,
        "preset": plan.document.name,
        "model": plan.preset.model.id,
        "machine": platform.node(),
        "ended": round(time.time(), 3),
        "peak_gib": found.get("peak_gib"),
        "planned_gib": round(result.peak_gib, 3) if result else None,
        "card_gib": round(plan.accelerator.memory_gib, 3),
        "step_s": step_s,
        "steps": steps,
        "total_h": round(total_s / 3600, 6) if total_s else None,
        "finish": _finish(total_s),
        "accumulation": short.preset.train.accumulation,
        "checkpoint_s": checkpoint_s,
        "checkpoint_gib": round(checkpoint, 6) if checkpoint else None,
        "eval_s": eval_s,
        "disk_gib": _disk_gib(plan, checkpoint),
        "free_gib": round(shutil.disk_usage(short.folder.path).free / GIB, 3),
        "prediction": ended.state == "finished" and not ended.findings,
        "observed": ended.observed,
    }


def _finish(total_s: float | None) -> str | None:
    if not total_s:
        return None
    end = time.time() + min(total_s, 1e9)  # no calendar has later days
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(end))


def _seconds(ended: Ended, name: str) -> float | None:
    value = ended.seconds.get(name)
    known = isinstance(value, int | float) and math.isfinite(value)
    return round(float(value), 3) if known and value is not None else None


def _eval_s(plan: Plan, short: Plan, ended: Ended) -> float | None:
    """An evaluation of all its rows."""
    seconds = _seconds(ended, "eval_s")
    if seconds is None or len(plan.datasets) < 2:
        return None
    return round(seconds * plan.datasets[1].rows / short.datasets[1].rows, 3)


def _disk_gib(plan: Plan, checkpoint_gib: float | None) -> float | None:
    """At the end of the long run: the plan's, with the checkpoints as they are."""
    result, kept = plan.forecast, plan.preset.save.keep + 2
    if checkpoint_gib is None:
        return round(result.disk_gib, 3) if result else None
    rows = result.disk_gib - result.checkpoint_gib * kept if result else 0.0
    return round(rows + checkpoint_gib * kept, 3)
