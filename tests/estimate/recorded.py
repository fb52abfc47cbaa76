"""What was traced, as the estimator takes it."""

from typing import Any

from iisft.estimate.memory import StepShape

SAME = (
    "weights", "autocast", "attention", "batch", "length", "checkpointing", "rank", "dropout"
)  # fmt: skip
STEP = ("layers_kept", "positions", "chunk")


def shape_of(case: dict[str, Any]) -> StepShape:
    way = "exact" if case["arithmetic"] == "float32" else "native"
    step = {name: case[name] for name in STEP if name in case}
    return StepShape(way=way, **{name: case[name] for name in SAME}, **step)
