"""What training said at a checkpoint: its loss and the last evaluation loss, from the run's events."""

import math
from typing import Any

from iisft.evaluation.sources import FINAL, Source

_STEPS_IN_MEAN = 10


def losses_at(source: Source) -> dict[str, Any]:
    """`step`, `train_loss` (mean of the last ten logged ones up to it) and `eval_loss`; None where nothing is known."""
    found: dict[str, Any] = {"step": None, "train_loss": None, "eval_loss": None}
    checkpoint = source.checkpoint or ""
    if source.run is None or not (checkpoint == FINAL or checkpoint.isdigit()):
        return found
    last = math.inf if checkpoint == FINAL else int(checkpoint)
    losses: list[float] = []
    for event in source.run.read_events():
        step = event.get("step")
        if event["kind"] not in ("metrics", "redone") or not isinstance(step, int) or step > last:
            continue
        if (loss := finite(event.get("loss"))) is not None:
            losses.append(loss)
            found["step"] = step
        if (loss := finite(event.get("eval_loss"))) is not None:
            found["eval_loss"] = loss
    recent = losses[-_STEPS_IN_MEAN:]
    found["train_loss"] = sum(recent) / len(recent) if recent else None
    if checkpoint != FINAL:
        found["step"] = int(checkpoint)
    return found


def finite(value: Any) -> float | None:
    """A number of an event that can be drawn and averaged; None for NaN, infinities, text and what is no number."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
