"""What a step computes with, apart from the model: dtypes, kernel, batch, adapter."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step computes with, dtypes by torch's names.

    `attention` is a kernel: eager, math, efficient, flash.
    """

    weights: str
    way: str  # native, exact or nf4
    autocast: str | None
    attention: str
    batch: int
    length: int
    checkpointing: bool
    rank: int
    dropout: float
    adapter_dtype: str = "float32"

    @property
    def rows(self) -> int:
        return self.batch * self.length
