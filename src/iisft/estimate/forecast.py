"""One preset on one kind of GPU: memory, time and disk together, and what a change to it would
bring.
"""

import math
from dataclasses import dataclass, replace

from iisft.estimate import step, timing
from iisft.estimate.architecture import Architecture
from iisft.estimate.memory import GIB, Layout, Memory, estimate_memory
from iisft.estimate.shape import Measured, StepShape
from iisft.estimate.timing import Span
from iisft.gpu_table import Device
from iisft.presets.schema import Preset

_CHECKPOINT_BYTES = 12  # per adapter parameter: float32 and AdamW's two moments
_TOKENIZER_BYTES = 20 * 2**20


@dataclass(frozen=True, slots=True)
class Situation:
    """What a forecast is made for, beside the preset. None = not known."""

    model: Architecture
    stored_dtype: str
    ranks: int
    arch: str
    gpu_gib: float
    device: Device | None = None
    rows: int | None = None
    row_tokens: Span | None = None
    on_cpu: bool = False
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """`step_s` is None where the device's rate is unknown, `total_s` where the rows are."""

    shape: StepShape
    layout: Layout
    memory: Memory
    fits: str
    step_s: Span | None
    steps: int | None
    total_s: Span | None
    checkpoint_gib: float
    disk_gib: float

    @property
    def peak_gib(self) -> float:
        return self.memory.peak / GIB

    @property
    def phase_text(self) -> str:
        """Where in a step the peak is, for people."""
        return f"worst in {self.memory.phase}"


def forecast(preset: Preset, situation: Situation) -> Forecast:
    """What this preset needs there. Milliseconds."""
    model = situation.model
    shape = step.shape_of(preset, model, situation.stored_dtype, situation.arch)
    layout = step.layout_of(preset, situation.ranks, on_cpu=situation.on_cpu)
    memory = _corrected(
        estimate_memory(model, shape, layout, situation.gpu_gib), situation.measured
    )
    seconds = _step_seconds(shape, layout, situation)
    steps = _steps(preset, situation)
    one = model.adapter_parameters(shape.rank) * _CHECKPOINT_BYTES + _TOKENIZER_BYTES
    return Forecast(
        shape=shape,
        layout=layout,
        memory=memory,
        fits=memory.fits(situation.gpu_gib),
        step_s=seconds,
        steps=steps,
        total_s=seconds.times(steps) if seconds and steps else None,
        checkpoint_gib=one / GIB,
        disk_gib=one * (preset.save.keep + 2) / GIB,
    )


def _step_seconds(shape: StepShape, layout: Layout, situation: Situation) -> Span | None:
    rate = situation.measured.tflops if situation.measured else None
    device = situation.device
    if device is None:
        if rate is None:
            return None
        device = Device("", "", situation.arch, situation.gpu_gib, 1.0, 1.0, None, 1.0, 0)
    length = situation.row_tokens
    if length is not None:
        low, typical, high = (
            min(tokens, shape.length) for tokens in (length.low, length.typical, length.high)
        )
        length = Span(low, typical, high)
    return timing.step_seconds(
        situation.model, shape, layout, device, length=length, measured_rate=rate
    )


def _steps(preset: Preset, situation: Situation) -> int | None:
    if preset.train.max_steps is not None:
        return preset.train.max_steps
    if situation.rows is None:
        return None
    # transformers: per epoch the micro-batches of one rank over the accumulation, rounded up
    micro = math.ceil(math.ceil(situation.rows / situation.ranks) / preset.train.batch_size)
    return max(1, math.ceil(preset.train.epochs * math.ceil(micro / preset.train.accumulation)))


def _corrected(memory: Memory, measured: Measured | None) -> Memory:
    """A measured excess counts from now on.

    A measured peak below the prediction only had shorter rows.
    """
    excess = (measured.peak_ratio or 1.0) - 1.0 if measured else 0.0
    if excess <= 0:
        return memory
    more = int(memory.peak * excess)
    return replace(memory, overhead=memory.overhead | {"measured excess": more})
