"""Training and evaluation loss at a checkpoint, from the run's events."""

import math
from functools import lru_cache
from typing import Any

from iisft.evaluation.locate import FINAL, Source
from iisft.quoting import is_count
from iisft.runs.record.folder import RunFolder

_STEPS_IN_MEAN = 10  # one batch's loss says little
_Point = tuple[int, float]


def losses_at(source: Source) -> dict[str, Any]:
    """`step`, `train_loss` (mean of the last ten logged up to it), `eval_loss`; None if unknown."""
    checkpoint = source.checkpoint or ""
    if source.run is None or not (checkpoint == FINAL or is_count(checkpoint)):
        return {"step": None, "train_loss": None, "eval_loss": None}
    size = source.run.events.stat().st_size if source.run.events.exists() else 0
    trained, evaluated = _history(source.run, size)
    last = math.inf if checkpoint == FINAL else int(checkpoint)
    recent = [loss for step, loss in trained if step <= last][-_STEPS_IN_MEAN:]
    known = [loss for step, loss in evaluated if step <= last]
    final_step = trained[-1][0] if trained else None
    return {
        "step": final_step if checkpoint == FINAL else last,
        "train_loss": sum(recent) / len(recent) if recent else None,
        "eval_loss": known[-1] if known else None,
    }


def finite(value: Any) -> float | None:
    """A number that can be drawn and averaged; None for NaN, infinities and anything else."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


@lru_cache(maxsize=4)
def _history(folder: RunFolder, size: int) -> tuple[list[_Point], list[_Point]]:
    """Steps and losses of training and of evaluation.

    Cached, so that the events are read once for all checkpoints; `size` tells a grown file apart.
    """
    trained: list[_Point] = []
    evaluated: list[_Point] = []
    for event in folder.read_events():
        step = event.get("step")
        if event["kind"] != "metrics" or not isinstance(step, int):
            continue
        for points, name in ((trained, "loss"), (evaluated, "eval_loss")):
            if (loss := finite(event.get(name))) is not None:
                points.append((step, loss))
    return trained, evaluated
