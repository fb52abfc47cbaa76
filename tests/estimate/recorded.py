"""What was traced, as the estimator takes it."""

from typing import Any

from iisft.estimate.memory import StepShape

SAME = (
    "weights", "autocast", "attention", "batch", "length", "checkpointing", "rank", "dropout"
)  # fmt: skip


def shape_of(case: dict[str, Any]) -> StepShape:
    way = "exact" if case["arithmetic"] == "float32" else "native"
    return StepShape(way=way, **{name: case[name] for name in SAME})
