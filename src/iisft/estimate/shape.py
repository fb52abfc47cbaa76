"""What a forecast starts from, apart from the model: the step's shape, and what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step computes with, dtypes by torch's names.

    `attention` is a kernel: eager, eager_blocks, math, efficient, flash. `layers_kept` of the
    checkpointed layers keep their big products (child/step_iisft.py). `positions` of each row have
    logits, None = all of them, and `logit_share` of all rows' on average; `chunk` of them at a
    time, 0 = together.
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
    layers_kept: int = 0
    positions: int | None = None
    chunk: int = 0
    logit_share: float = 1.0

    @property
    def rows(self) -> int:
        return self.batch * self.length

    @property
    def logit_rows(self) -> int:
        """Rows of the largest matrix of logits."""
        positions = self.length if self.positions is None else min(self.positions, self.length)
        return self.batch * (min(positions, self.chunk) if self.chunk else positions)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run is spread over its GPUs. `mixed`: fp16 or bf16 by autocast."""

    ranks: int
    sharding: str
    optimizer: str
    accumulation: int
    mixed: bool
    on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What earlier runs of the same kind reached on this machine: medians over `runs` runs."""

    runs: int
    tflops: float | None
    peak_ratio: float | None  # measured / predicted
    step_ratio: float | None
    row_tokens: float | None = None  # of the same rows
