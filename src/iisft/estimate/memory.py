"""Memory per GPU of a LoRA step: counted on the tape for a few layers, then extended to all.

Each segment of a step (forward, loss, loss backward, backward of the first and of the last layer,
optimizer) grows by the same bytes with every layer, so two small models give the big one exactly.
Figures are live bytes, as torch.cuda.max_memory_allocated counts them. Sharded layouts are formulas
(see sharding.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from iisft.estimate import decoder
from iisft.estimate.architecture import Architecture
from iisft.estimate.shape import Layout, StepShape
from iisft.estimate.sharding import LOADING, NF4_BYTES, fsdp, gathers, zero
from iisft.estimate.tape import KINDS, Tape

GIB = 2**30
_COUNTED_LAYERS = (2, 3)

_CONTEXT_GIB = 0.5  # CUDA or HIP context with its kernels; inferred, 0.3 to 0.6 is usual
_COLLECTIVE_GIB = 0.1  # NCCL's and RCCL's buffers per rank; inferred
_FRAGMENTED = 0.03  # of what is allocated and freed within a step; inferred
_MARGIN = 0.01  # of the card


@dataclass(frozen=True, slots=True)
class Memory:
    """One GPU's worst moment, in bytes.

    `parts` sum to `peak`; `overhead` is what lies outside torch's live tensors.
    """

    phase: str
    parts: dict[str, int]
    phases: dict[str, int]
    overhead: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    @property
    def step_peak(self) -> int:
        """The peak of a step, which is what a trace sees; loading may need more."""
        return max(size for name, size in self.phases.items() if name != LOADING)

    @property
    def needed(self) -> int:
        """The peak and everything beside the tensors."""
        return self.peak + sum(self.overhead.values())

    def fits(self, gpu_gib: float) -> str:
        """yes; tight = only without fragmentation and margin; no."""
        free = gpu_gib * GIB
        spare = sum(self.overhead.get(name, 0) for name in ("fragmentation", "margin"))
        return "yes" if self.needed <= free else "tight" if self.needed - spare <= free else "no"


def estimate_memory(
    model: Architecture, shape: StepShape, layout: Layout, gpu_gib: float
) -> Memory:
    """The peak of one step on one GPU with the optimizer's state, so from the second step on."""
    phases = _shared(model, shape, layout, _segments(model, _computed(shape, layout)))
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    parts = {name: size for name, size in phases[phase].items() if size}
    totals: dict[str, int] = {}
    for name, sizes in phases.items():
        totals[_shown(name)] = max(totals.get(_shown(name), 0), sum(sizes.values()))
    return Memory(
        phase=_shown(phase),
        parts=parts,
        phases=totals,
        overhead=_overhead(model, shape, layout, parts, gpu_gib),
    )


def _shown(segment: str) -> str:
    """For people, the backward of all layers is one phase."""
    layers = (
        decoder.BACKWARD_MIDDLE,
        decoder.BACKWARD_OTHERS,
        decoder.BACKWARD_KEPT,
        decoder.BACKWARD_BOTTOM,
    )
    return decoder.BACKWARD_TOP if segment in layers else segment


def weight_bytes(model: Architecture, shape: StepShape) -> int:
    """The frozen base model in memory."""
    item = 4 if shape.weights == "float32" else 2
    if shape.way != "nf4":
        return model.parameters * item
    others = model.parameters - model.matrices
    return int(model.matrices * NF4_BYTES) + others * item


def optimizer_bytes(model: Architecture, shape: StepShape, optimizer: str) -> int:
    """AdamW's two moments; Adafactor's one row and one column per matrix; SGD keeps nothing."""
    if optimizer == "sgd":
        return 0
    if optimizer == "adafactor":
        return 4 * sum(n * (i + o + 2 * shape.rank) for n, i, o in model.adapted())
    return 8 * model.adapter_parameters(shape.rank)


def _optimizer_work(model: Architecture, shape: StepShape, optimizer: str) -> int:
    """What the optimizer's step allocates and frees.

    foreach AdamW: one tensor of the adapter's size. Adafactor: three of one matrix's size. Fused
    AdamW and SGD: nothing.
    """
    if optimizer == "adamw_torch":
        return 4 * model.adapter_parameters(shape.rank)
    if optimizer == "adafactor":
        return 12 * shape.rank * max((max(i, o) for _, i, o in model.adapted()), default=0)
    return 0


def _computed(shape: StepShape, layout: Layout) -> StepShape:
    """What the layers see: FSDP's mixed precision and DeepSpeed's engine hand out half weights."""
    if (
        layout.sharding == "none"
        or not layout.mixed
        or shape.autocast is None
        or shape.way == "nf4"
    ):
        return shape
    return replace(shape, weights=shape.autocast, adapter_dtype=shape.autocast)


def _segments(model: Architecture, shape: StepShape) -> Mapping[str, Mapping[str, int]]:
    """Bytes by kind at the worst moment of each segment, without base weights and optimizer.

    Layers that keep their products and layers that don't grow a segment by bytes of their own.
    """
    low, high = (count * model.unit for count in _COUNTED_LAYERS)
    if model.near is not None:
        low, high = low + model.unit, high + model.unit
    kept = min(shape.layers_kept, model.layers)
    others = model.layers - kept
    shape = replace(shape, layers_kept=0)  # `kept` says it: one count serves every number
    if model.taking:  # no two layers are alike in what they take and give
        return _count(model, shape, kept, others)
    few_kept, few_others = (count if count <= high else low for count in (kept, others))
    found = _count(model, shape, few_kept, few_others)
    for more, one in (
        ((kept - few_kept) // model.unit, (few_kept + model.unit, few_others)),
        ((others - few_others) // model.unit, (few_kept, few_others + model.unit)),
    ):
        if more:
            with_one = _count(model, shape, *one)
            base = _count(model, shape, few_kept, few_others)
            found = {
                segment: {
                    kind: size + (with_one[segment][kind] - base[segment][kind]) * more
                    for kind, size in kinds.items()
                }
                for segment, kinds in found.items()
            }
    return found


@lru_cache(maxsize=512)
def _count(
    model: Architecture, shape: StepShape, kept: int, others: int
) -> Mapping[str, Mapping[str, int]]:
    tape = Tape(shape.autocast)
    whole = decoder.Model(tape, model, replace(shape, layers_kept=kept), kept + others)
    loss = whole.loss()
    whole.backward(loss)
    del loss
    tape.enter(decoder.OPTIMIZER)
    tape.peaks.pop("start", None)
    if not model.taking:
        tape.peaks.pop(decoder.BACKWARD_MIDDLE, None)
    return {segment: dict(zip(KINDS, sizes, strict=True)) for segment, sizes in tape.peaks.items()}


def _shared(
    model: Architecture,
    shape: StepShape,
    layout: Layout,
    segments: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, int]]:
    """Add weights, optimizer state and the layout's own buffers to each segment."""
    adapter = model.adapter_parameters(shape.rank)
    weights, optimizer = weight_bytes(model, shape), optimizer_bytes(model, shape, layout.optimizer)
    ranks, sharding = layout.ranks, layout.sharding
    phases: dict[str, dict[str, int]] = {}
    for segment, counted in segments.items():
        kinds = dict(counted) | {"weights": weights, "optimizer": optimizer}
        if segment == decoder.OPTIMIZER:
            kinds["layer"] += _optimizer_work(model, shape, layout.optimizer)
        if sharding == "none" and ranks > 1:
            kinds["ddp buckets"] = 4 * adapter
        elif sharding == "fsdp":
            kinds = fsdp(model, shape, layout, segment, kinds)
        elif sharding in ("zero2", "zero3"):
            kinds = zero(model, shape, layout, segment, kinds)
        phases[segment] = kinds
    if sharding == "fsdp":
        phases |= gathers(model, shape, layout, phases, weights)
    return phases


def _overhead(
    model: Architecture, shape: StepShape, layout: Layout, parts: dict[str, int], gpu_gib: float
) -> dict[str, int]:
    """What the card must hold beside the peak.

    Gradients of earlier micro-batches stay there during the next ones.
    """
    if layout.on_cpu:
        return {}
    fleeting = sum(
        size for name, size in parts.items() if name not in ("weights", "adapter", "optimizer")
    )
    shared = layout.ranks if layout.sharding != "none" else 1
    kept = 4 * model.adapter_parameters(shape.rank) // shared if layout.accumulation > 1 else 0
    return {
        "context": int(_CONTEXT_GIB * GIB),
        "collectives": int(_COLLECTIVE_GIB * GIB) if layout.ranks > 1 else 0,
        "accumulated gradients": max(0, kept - parts.get("gradients", 0)),
        "fragmentation": int(_FRAGMENTED * fleeting),
        "margin": int(_MARGIN * gpu_gib * GIB),
    }
