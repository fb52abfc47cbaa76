"""Time per step: FLOPs over the device's rate, casts over its memory, gradients over the link.

FLOPs of one micro-batch (checked against torch's FlopCounterMode on the traced model): rows x
(forward and input gradients of frozen layers, all of the adapter's) + attention's two products over
the full square. With checkpointing each layer's forward runs twice, but for the big products of the
layers that keep them; the head's once, or twice where it is made in chunks. Frozen weights need no
weight gradient.
"""

from dataclasses import dataclass

from iisft.child.constants_iisft import EAGER_BLOCKS, QUERY_BLOCK
from iisft.estimate.architecture import Architecture
from iisft.estimate.shape import Layout, StepShape
from iisft.gpu_table import Device, architecture
from iisft.models.view.support import DTYPES

_CAST_BYTES = {"exact": 6.0, "nf4": 2.5}  # read a stored weight, write the copy
_REACHED_BANDWIDTH = 0.7  # of the memory's peak; inferred
_SLOW_DELTA = 1.22 / 0.70  # seconds of a step without and with the kernels (transformers#48718)
_WORDS = {dtype: word for word, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Span:
    """A typical figure and its range."""

    low: float
    typical: float
    high: float

    def times(self, factor: float) -> "Span":
        return Span(self.low * factor, self.typical * factor, self.high * factor)


def micro_batch_flops(model: Architecture, shape: StepShape, length: float | None = None) -> float:
    """FLOPs of forward and backward of one micro-batch on one GPU; `length`: tokens per row."""
    length = shape.length if length is None else length
    rows = shape.batch * length
    adapter = model.adapter_parameters(shape.rank)
    layers = model.matrices
    again = 2 * _recomputed_share(model, shape)
    head = (6 if shape.chunk else 4) * shape.logit_share * model.embedding_parameters
    # of an adapter's two products the second is repeated everywhere: it is over the rank alone
    products = rows * ((4 + again) * layers + head + (6 + again) * adapter)
    if shape.layers_kept:
        share = min(shape.layers_kept, model.layers) / model.layers
        outputs = sum(n * o for n, _, o in model.adapted())
        products += rows * 2 * shape.rank * outputs * share
    heads = model.query_size * model.attending
    if model.near is not None:  # a window is a mask over the full square
        heads += model.near.query_size * (model.layers - model.attending)
    square = 4 * heads * length * length * shape.batch
    return products + square * _squares(model, shape, length)


def _squares(model: Architecture, shape: StepShape, length: float) -> float:
    """How often a step makes attention's two products over the full square."""
    forward, backward = 2.0 if shape.checkpointing else 1.0, 2.0
    if shape.attention in ("flash", "efficient", EAGER_BLOCKS):
        backward = 2.5
    if shape.attention == EAGER_BLOCKS:  # kept like a product, and nothing behind its block is made
        forward = 1 + _recomputed_share(model, shape)
        return (forward + backward) * min(1.0, (length + QUERY_BLOCK) / (2 * length))
    return forward + backward


def _recomputed_share(model: Architecture, shape: StepShape) -> float:
    """Of the layers' products, those that the backward pass computes once more."""
    if not shape.checkpointing:
        return 0.0
    return 1 - min(shape.layers_kept, model.layers) / model.layers


def computed_precision(shape: StepShape) -> str:
    """The dtype of the products, as a device's rates are named."""
    return "fp32" if shape.way == "exact" else _WORDS[shape.autocast or shape.weights]


def step_seconds(
    model: Architecture,
    shape: StepShape,
    layout: Layout,
    device: Device,
    *,
    length: Span | None = None,
    measured_rate: float | None = None,
) -> Span:
    """Seconds of one optimizer step: all micro-batches and the exchange between ranks.

    Args:
        length: tokens per row; None = every row is cutoff_len long.
        measured_rate: TFLOP/s per GPU that similar runs reached here, overheads included.
    """
    length = length or Span(shape.length, shape.length, shape.length)
    if measured_rate is not None:
        rate = (measured_rate * 0.9, measured_rate, measured_rate * 1.1)
        extra = 0.0
    else:
        rate, _ = device.rate(computed_precision(shape))
        extra = layout.accumulation * _cast_seconds(model, shape, device) + _link_seconds(
            model, shape, layout, device
        )
        if slow_layers(model, shape, device.arch):
            rate = (rate[0] / _SLOW_DELTA, rate[1] / _SLOW_DELTA, rate[2] / _SLOW_DELTA)
    low, typical, high = (
        layout.accumulation * micro_batch_flops(model, shape, tokens) / (1e12 * tflops) + extra
        for tokens, tflops in (
            (length.low, rate[2]),
            (length.typical, rate[1]),
            (length.high, rate[0]),
        )
    )
    return Span(low, typical, high)


def slow_layers(model: Architecture, shape: StepShape, arch: str) -> int:
    """Gated delta layers that take transformers' torch functions (presets/rules/precision.py)."""
    known = architecture(arch)
    slow = computed_precision(shape) == "fp32" or (known is not None and not known.triton)
    return model.layers - model.attending if slow and model.delta else 0


def _cast_seconds(model: Architecture, shape: StepShape, device: Device) -> float:
    each = _CAST_BYTES.get(shape.way, 0.0)
    passes = 2 + _recomputed_share(model, shape)
    weights = passes * model.matrices + 2 * model.embedding_parameters
    return each * weights / (device.bandwidth * 1e9 * _REACHED_BANDWIDTH)


def _link_seconds(model: Architecture, shape: StepShape, layout: Layout, device: Device) -> float:
    """Ring collectives: DDP, ZeRO-2: adapter gradients once; FSDP, ZeRO-3: all weights twice."""
    if layout.ranks < 2:
        return 0.0
    share = (layout.ranks - 1) / layout.ranks
    adapter = 2 * share * 4 * model.adapter_parameters(shape.rank)
    item = 2 if layout.mixed or shape.weights != "float32" else 4
    gathers = 2 * layout.accumulation if layout.sharding in ("fsdp", "zero3") else 0
    return (adapter + gathers * share * item * model.parameters) / (device.link * 1e9)
