"""Gated delta layers (Qwen3.5) on the counting tape, as transformers computes them without kernels.

Source of every line: transformers' modeling_qwen3_5.py, Qwen3_5GatedDeltaNet and
torch_chunk_gated_delta_rule. What is one number per token and head (decay, beta) is left out.
"""

from collections.abc import Mapping
from typing import Protocol

from iisft.estimate import ops
from iisft.estimate.architecture import Architecture
from iisft.estimate.blocks import norm, split
from iisft.estimate.delta_sizes import Delta
from iisft.estimate.shape import StepShape
from iisft.estimate.tape import Gradients, Tape, Tensor, promoted

_CHUNK = 64


class Product(Protocol):
    def __call__(self, x: Tensor) -> Tensor: ...


def mix(
    tape: Tape, project: Mapping[str, Product], x: Tensor, model: Architecture, shape: StepShape
) -> Tensor:
    """What such a layer has in place of attention."""
    delta = model.delta
    assert delta is not None
    dtype = x.dtype
    qkv, gate = project["in_proj_qkv"](x), project["in_proj_z"](x)
    beta, decay = project["in_proj_b"](x), project["in_proj_a"](x)
    mixed = _convolution(tape, qkv, delta, shape)
    del qkv
    mixed = ops.unary(tape, mixed)
    keys, values = delta.key_size, delta.value_size
    query, key, value = split(tape, mixed, (keys, keys, values))
    del mixed
    query, key = (ops.repeat(tape, one, delta.groups, single=False) for one in (query, key))
    out = _rule(tape, query, key, value, delta, shape)
    del query, key, value
    out = norm(tape, out, model, shape.weights, delta.value_dim)
    gate = ops.unary(tape, ops.cast(tape, gate, "float32"))
    out = ops.cast(tape, ops.multiply(tape, out, gate), dtype)
    del beta, decay, gate
    return project["out_proj"](out)


def _convolution(tape: Tape, x: Tensor, delta: Delta, shape: StepShape) -> Tensor:
    """A causal Conv1d per channel; it makes kernel - 1 positions too many, which are cut off."""
    x = ops.autocasted(tape, x)
    numel = x.numel + shape.batch * (delta.kernel - 1) * delta.channels

    def backward(gradient: Tensor, saved: Tensor = x) -> Gradients:
        return (tape.new(saved.numel, gradient.dtype),)

    whole = tape.new(numel, x.dtype)
    whole = tape.record(whole, (x,), backward)
    view = Tensor(whole.storage, x.numel, x.dtype)
    return tape.record(view, (whole,), lambda g: (tape.new(numel, g.dtype),))


def _rule(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, delta: Delta, shape: StepShape
) -> Tensor:
    chunks = -(-shape.length // _CHUNK)
    heads = shape.batch * delta.value_heads
    rows = heads * chunks * _CHUNK
    dtype, length = query.dtype, value.numel
    query, key = (_unit(tape, one, delta.key_dim) for one in (query, key))
    query, key, value = (
        ops.cast(tape, ops.contiguous(tape, one), "float32") for one in (query, key, value)
    )
    query = _resized(tape, query, rows * delta.key_dim)
    key = _resized(tape, key, rows * delta.key_dim)
    value = _resized(tape, value, rows * delta.value_dim)
    query = ops.scale(tape, query)
    v_beta, k_beta = _by_row(tape, value), _by_row(tape, key)
    del value
    squares = rows * _CHUNK
    fading = _decay(tape, squares)
    attn = ops.multiply(tape, ops.matmul(tape, k_beta, key, squares), fading)
    attn = ops.scale(tape, ops.scale(tape, attn))  # masked_fill, then the minus
    attn = _triangle(tape, attn, squares)
    attn = ops.scale(tape, attn)
    value = ops.matmul(tape, attn, v_beta, v_beta.numel)
    faded = ops.matmul(tape, attn, _by_row(tape, k_beta), k_beta.numel)
    del attn, v_beta, k_beta
    out = _chunks(tape, (query, key, value, faded, fading), delta, heads, chunks)
    del query, key, value, faded, fading
    return ops.cast(tape, ops.contiguous(tape, _resized(tape, out, length, view=True)), dtype)


def _unit(tape: Tape, x: Tensor, size: int) -> Tensor:
    """l2norm: x / |x|."""
    square = tape.new(x.numel, x.dtype)
    # autocast sums and takes roots in float32, and what follows has that dtype
    dtype = x.dtype if tape.autocast is None else "float32"
    root = tape.new(x.numel // size, dtype)
    del square

    def backward(gradient: Tensor, x: Tensor = x) -> Gradients:
        one, other = tape.new(x.numel, x.dtype), tape.new(x.numel, x.dtype)
        del other
        return (one,)

    root = tape.record(root, (x,), backward)
    return _by_row(tape, x, root)


def _by_row(tape: Tape, x: Tensor, each: Tensor | None = None) -> Tensor:
    """x times one number per row; the numbers themselves are counted where they are `each`."""
    dtype = x.dtype if each is None else promoted(x.dtype, each.dtype)
    out = tape.new(x.numel, dtype)

    def backward(gradient: Tensor, x: Tensor = x, _each: Tensor | None = each) -> Gradients:
        result, product = tape.new(x.numel, dtype), tape.new(x.numel, dtype)
        del product
        return (result,) if _each is None else (result, tape.new(_each.numel, x.dtype))

    return tape.record(out, (x,) if each is None else (x, each), backward)


def _resized(tape: Tape, x: Tensor, numel: int, *, view: bool = False) -> Tensor:
    """Padded to whole chunks, which copies even where nothing is added, or cut to the rows."""
    source = x.numel
    if view and source == numel:
        return x
    out = Tensor(x.storage, numel, x.dtype) if view else tape.new(numel, x.dtype)
    return tape.record(out, (x,), lambda g: (tape.new(source, g.dtype),))


def _decay(tape: Tape, squares: int) -> Tensor:
    """tril(exp(tril(g - g'))): what is left of one token at another; its gradient is a row's sum,
    which no tensor of this size outlives.
    """
    source = tape.leaf(0, "float32", tape.kind)
    difference = tape.record(tape.new(squares, "float32"), (source,), lambda g: (None,))
    lower = ops.scale(tape, difference)
    del difference
    powers = ops.unary(tape, lower, saves_result=True)
    del lower
    return ops.scale(tape, powers)


def _triangle(tape: Tape, attn: Tensor, squares: int) -> Tensor:
    """The loop over a chunk's rows in place: each keeps a copy of its row and all before it."""
    count = squares // _CHUNK**2
    kept = [tape.new(count * (i + i * i), "float32") for i in range(1, _CHUNK)]

    def backward(gradient: Tensor, kept: list[Tensor] = kept) -> Gradients:
        # CopySlices copies the gradient, the slices' backwards fill zeros of the whole size
        while kept:
            kept.pop()
            copied = tape.new(squares, "float32")
            of_row, of_block = tape.new(squares, "float32"), tape.new(squares, "float32")
            del of_row, of_block
            gradient = copied
        return (gradient,)

    # the same storage: written in place
    out = Tensor(attn.storage, attn.numel, attn.dtype)
    return tape.record(out, (attn,), backward)


def _chunks(
    tape: Tape, inputs: tuple[Tensor, ...], delta: Delta, heads: int, chunks: int
) -> Tensor:
    """The loop over chunks, which carries a state of key_dim x value_dim for each head."""
    query, _, value, *_ = inputs
    squares = heads * _CHUNK * _CHUNK
    keys, values = heads * _CHUNK * delta.key_dim, heads * _CHUNK * delta.value_dim
    state = heads * delta.key_dim * delta.value_dim
    out = tape.new(value.numel, value.dtype)
    each = [(one, "float32") for one in (squares, squares, values, keys, keys, state)]
    if (half := tape.autocast) is not None:  # each product keeps narrow copies of both sides
        narrow = (squares, squares, values, values, keys, keys, keys, keys, state, state)
        each = [(state, "float32"), *((one, half) for one in narrow)]
    kept = [[tape.new(numel, dtype) for numel, dtype in each] for _ in range(chunks)]

    def backward(
        gradient: Tensor, saved: tuple[Tensor, ...] = inputs, kept: list[list[Tensor]] = kept
    ) -> Gradients:
        results = [tape.new(one.numel, "float32") for one in saved]
        while kept:
            kept.pop()
            copied = tape.new(gradient.numel, "float32")
            padded = tape.new(saved[0].numel, "float32")
            del padded
            gradient = copied
        return tuple(results)

    del query, value
    return tape.record(out, inputs, backward)
