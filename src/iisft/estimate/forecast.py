"""The forecast for a preset on one kind of GPU: memory, time and disk together."""

import math
from dataclasses import dataclass, replace

from iisft.estimate import disk, step, timing
from iisft.estimate.architecture import Architecture
from iisft.estimate.fitting import fitted
from iisft.estimate.memory import GIB, Memory, estimate_memory
from iisft.estimate.shape import Layout, Measured, StepShape
from iisft.estimate.timing import Span
from iisft.gpu_table import Device
from iisft.llamafactory.arguments import LABELS_MORE, is_packed, of_data
from iisft.llamafactory.truncation import PADDING_MULTIPLE
from iisft.presets.schema import Preset


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What each rank computes on: a GPU, or its share of this machine's memory.

    `device` is None for a card that the table doesn't know; `source` says where this is from.
    """

    arch: str
    memory_gib: float
    device: Device | None = None
    source: str = ""
    on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """What a forecast depends on, beside the preset. None = unknown.

    `exact`: float32 products over stored weights are proven for this architecture. `trained_share`
    of the rows' tokens have a label, and no row has more than `most_trained`. `longest` is the
    tokens of the longest row; packing makes `packs` of the rows.
    """

    model: Architecture
    stored_dtype: str
    ranks: int
    accelerator: Accelerator
    rows: int | None = None
    row_tokens: Span | None = None
    measured: Measured | None = None
    exact: bool = False
    trained_share: float | None = None
    most_trained: int | None = None
    longest: int | None = None
    packs: int | None = None
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a preset needs for its `workload`.

    `step_s` is None where the device's rate is unknown, `total_s` where the rows are.
    """

    workload: Workload
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
    def slow_layers(self) -> int:
        """Gated delta layers that are computed without their kernels."""
        arch = self.workload.accelerator.arch
        return timing.slow_layers(self.workload.model, self.shape, arch)

    @property
    def phase_text(self) -> str:
        """Where in a step the peak is, for people."""
        return f"worst in {self.memory.phase}"


def forecast(preset: Preset, workload: Workload) -> Forecast:
    """What this preset needs there. Takes milliseconds."""
    model = workload.model
    shape = step.shape_of(preset, model, workload.stored_dtype, workload.accelerator.arch)
    shape = replace(shape, length=_length(preset, workload))
    layout = step.layout_of(preset, workload.ranks, on_cpu=workload.accelerator.on_cpu)
    gib = workload.accelerator.memory_gib
    keeps = preset.train.gradient_checkpointing == "fit"
    shape, memory = fitted(
        _with_logits(preset, workload, shape),
        lambda one: _corrected(estimate_memory(model, one, layout, gib), workload.measured),
        gib,
        layers=model.layers if keeps else 0,
        unit=1 if model.taking else model.unit,  # there each layer is counted
    )
    seconds = _step_seconds(shape, layout, workload, packed=is_packed(preset))
    steps = _steps(preset, workload)
    adapter = model.adapter_parameters(shape.rank)
    return Forecast(
        workload=workload,
        shape=shape,
        layout=layout,
        memory=memory,
        fits=memory.fits(gib),
        step_s=seconds,
        steps=steps,
        total_s=seconds.times(steps) if seconds and steps else None,
        checkpoint_gib=disk.checkpoint_bytes(adapter) / GIB,
        disk_gib=(disk.run_bytes(adapter, preset.save.keep) + _rows_bytes(preset, workload)) / GIB,
    )


def _length(preset: Preset, workload: Workload) -> int:
    """Tokens of the longest row that a step meets; packed rows are as long as they may be."""
    limit = preset.train.cutoff_len
    if workload.longest is None or is_packed(preset):
        return limit
    return min(limit, -(-workload.longest // PADDING_MULTIPLE) * PADDING_MULTIPLE)


def _rows_bytes(preset: Preset, workload: Workload) -> int:
    each = workload.row_tokens.high if workload.row_tokens else 0.0
    tokens = (workload.rows or 0) * min(each, preset.train.cutoff_len)
    return disk.rows_bytes(workload.data_bytes, tokens)


def _with_logits(preset: Preset, workload: Workload, shape: StepShape) -> StepShape:
    """Of a batch's rows all positions are made that one of them trains."""
    if preset.train.logits == "all" or step.needs_all_logits(preset):
        return shape
    most, share = workload.most_trained, workload.trained_share
    given = of_data(preset)
    whole = any(given.get(name) for name in LABELS_MORE)
    if most is None or share is None or whole:
        return replace(shape, positions=shape.length)
    positions = min(shape.length, shape.batch * most)
    return replace(shape, positions=positions, logit_share=min(1.0, shape.batch * share))


def _step_seconds(
    shape: StepShape, layout: Layout, workload: Workload, *, packed: bool
) -> Span | None:
    rate = workload.measured.tflops if workload.measured else None
    device = workload.accelerator.device
    if device is None:
        if rate is None:
            return None
        here = workload.accelerator
        device = Device("", "", here.arch, here.memory_gib, 1.0, 1.0, None, 1.0, 0)
    length = None if packed else workload.row_tokens
    if length is not None:
        low, typical, high = (
            min(tokens, shape.length) for tokens in (length.low, length.typical, length.high)
        )
        length = Span(low, typical, high)
    return timing.step_seconds(
        workload.model, shape, layout, device, length=length, measured_rate=rate
    )


def _steps(preset: Preset, workload: Workload) -> int | None:
    if preset.train.max_steps is not None:
        return preset.train.max_steps
    rows = workload.packs if is_packed(preset) else workload.rows
    if rows is None:
        return None
    # transformers: per epoch the micro-batches of one rank over the accumulation, rounded up
    micro = math.ceil(math.ceil(rows / workload.ranks) / preset.train.batch_size)
    return max(1, math.ceil(preset.train.epochs * math.ceil(micro / preset.train.accumulation)))


def _corrected(memory: Memory, measured: Measured | None) -> Memory:
    """Add what earlier runs used beyond their prediction; runs below it had shorter rows."""
    excess = (measured.peak_ratio or 1.0) - 1.0 if measured else 0.0
    if excess <= 0:
        return memory
    more = int(memory.peak * excess)
    return replace(memory, overhead=memory.overhead | {"measured excess": more})
