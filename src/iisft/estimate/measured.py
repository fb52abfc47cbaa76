"""What earlier runs on this machine reached, as a forecast uses it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """What earlier runs of the same kind reached on this machine: medians over `runs` of them."""

    runs: int
    tflops: float | None
    peak_ratio: float | None  # measured / predicted
    step_ratio: float | None
    row_tokens: float | None = None  # of the same rows
