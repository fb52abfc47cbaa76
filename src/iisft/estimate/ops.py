"""torch's operations on the counting tape: what each allocates and saves, forward and backward.

The names are torch's. What an operation saves is taken from torch's derivatives.yaml: only what the
requested gradients need, so a product with a frozen weight saves the weight and not its input.
"""

from dataclasses import dataclass

from iisft.estimate.tape import CASTS, Gradients, Tape, Tensor, promoted


@dataclass(frozen=True, slots=True)
class Weight:
    """A frozen matrix of the base model.

    `way`: native, exact (cast to float32 in each product), nf4 (unpacked).
    """

    inputs: int
    outputs: int
    dtype: str
    way: str = "native"

    @property
    def numel(self) -> int:
        return self.inputs * self.outputs


def cast(tape: Tape, x: Tensor, dtype: str) -> Tensor:
    """x.to(dtype)."""
    if x.dtype == dtype:
        return x
    source = x.dtype
    return tape.record(tape.new(x.numel, dtype), (x,), lambda g: (tape.new(g.numel, source),))


def autocasted(tape: Tape, x: Tensor) -> Tensor:
    """What autocast hands to a matrix product."""
    return x if tape.autocast is None else cast(tape, x, tape.autocast)


def linear(tape: Tape, x: Tensor, weight: Weight) -> Tensor:
    """functional.linear with a frozen weight."""
    rows = x.numel // weight.inputs
    kept = tape.taken(weight.inputs)
    if weight.way == "exact":
        copy = None if kept else tape.new(weight.numel, "float32", CASTS)
        out = kept or tape.keep(tape.new(rows * weight.outputs, "float32"), weight.inputs)
        del copy, kept
        return tape.record(out, (x,), lambda g: _unpacked_product(tape, weight, rows, "float32"))
    if weight.way == "nf4":
        x = cast(tape, x, weight.dtype)
        copy = tape.new(weight.numel, weight.dtype, CASTS)
        product = kept or tape.keep(tape.new(rows * weight.outputs, weight.dtype), weight.inputs)
        del copy, kept
        product = tape.record(
            product, (x,), lambda g: _unpacked_product(tape, weight, rows, weight.dtype)
        )
        return contiguous(tape, product)  # peft clones a 4-bit layer's result
    x = autocasted(tape, x)
    # autocast caches only leaves that need gradients: a frozen weight is cast at every use and
    # its half copy saved for backward (autocast_mode.cpp, cached_cast)
    half = None if x.dtype == weight.dtype else tape.new(weight.numel, x.dtype, CASTS)
    out = kept or tape.keep(tape.new(rows * weight.outputs, x.dtype), weight.inputs)
    del kept

    def backward(gradient: Tensor, _saved: Tensor | None = half) -> Gradients:
        return (tape.new(rows * weight.inputs, gradient.dtype),)

    return tape.record(out, (x,), backward)


def _unpacked_product(tape: Tape, weight: Weight, rows: int, dtype: str) -> Gradients:
    copy: Tensor | None = tape.new(weight.numel, dtype, CASTS)
    result = tape.new(rows * weight.inputs, dtype)
    del copy
    return (result,)


def trained_linear(tape: Tape, x: Tensor, weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """functional.linear with a trained weight: its input is saved."""
    x = autocasted(tape, x)
    matrix = _cached_cast(tape, weight)
    rows = x.numel // inputs

    def backward(gradient: Tensor, saved: Tensor = x, _matrix: Tensor = matrix) -> Gradients:
        return tape.new(rows * inputs, gradient.dtype), tape.new(inputs * outputs, gradient.dtype)

    out = tape.taken(inputs) or tape.keep(tape.new(rows * outputs, x.dtype), inputs)
    return tape.record(out, (x, matrix), backward)


def _cached_cast(tape: Tape, weight: Tensor) -> Tensor:
    """autocast keeps the half copy of a trained float32 weight until its block ends."""
    if tape.autocast is None or weight.dtype == tape.autocast:
        return weight
    known = tape.casts.get(id(weight))
    if known is None:
        known = tape.casts[id(weight)] = cast(tape, weight, tape.autocast)
        tape.relabel(known, CASTS)
    return known


def multiply(tape: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x * y, both needing gradients."""
    out = tape.new(x.numel, promoted(x.dtype, y.dtype))

    def backward(gradient: Tensor, x: Tensor = x, y: Tensor = y) -> Gradients:
        one = tape.new(gradient.numel, promoted(gradient.dtype, y.dtype))
        return one, tape.new(gradient.numel, promoted(gradient.dtype, x.dtype))

    return tape.record(out, (x, y), backward)


def scale(tape: Tape, x: Tensor, by: str | None = None) -> Tensor:
    """x times (or over) a number, or a small tensor of dtype `by` that needs no gradient."""
    out = tape.new(x.numel, promoted(x.dtype, by or x.dtype))
    return tape.record(out, (x,), lambda g: (tape.new(g.numel, g.dtype),))


def scale_in_place(tape: Tape, x: Tensor) -> Tensor:
    """x *= a number that needs no gradient."""
    out = Tensor(x.storage, x.numel, x.dtype)
    return tape.record(out, (x,), lambda g: (tape.new(g.numel, g.dtype),))


def add(tape: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x + y; both get the same gradient."""
    return tape.record(tape.new(x.numel, promoted(x.dtype, y.dtype)), (x, y), lambda g: (g, g))


def unary(tape: Tape, x: Tensor, *, saves_result: bool = False) -> Tensor:
    """silu, gelu (they save their input), tanh (its result)."""
    out = tape.new(x.numel, x.dtype)
    kept = out if saves_result else x
    # a node that holds its own result is a cycle: torch too saves a copy of the reference
    if saves_result:
        kept = Tensor(out.storage, out.numel, out.dtype)

    def backward(gradient: Tensor, _saved: Tensor = kept) -> Gradients:
        return (tape.new(gradient.numel, gradient.dtype),)

    return tape.record(out, (x,), backward)


def softmax(tape: Tape, x: Tensor) -> Tensor:
    """functional.softmax(x, dtype=float32)."""
    return unary(tape, cast(tape, x, "float32"), saves_result=True)


def dropout(tape: Tape, x: Tensor, share: float) -> Tensor:
    """CUDA's native_dropout: the result and a mask of one byte per element."""
    if share == 0.0:
        return x
    out, mask = tape.new(x.numel, x.dtype), tape.new(x.numel, "bool")

    def backward(gradient: Tensor, _mask: Tensor = mask) -> Gradients:
        return (tape.new(gradient.numel, gradient.dtype),)

    return tape.record(out, (x,), backward)


def contiguous(tape: Tape, x: Tensor) -> Tensor:
    """A copy in another order."""
    return tape.record(tape.new(x.numel, x.dtype), (x,), lambda g: (g,))


def repeat(tape: Tape, x: Tensor, times: int, *, single: bool) -> Tensor:
    """repeat_kv: every key-value head once for each of its query heads; a single head by a view."""
    if times == 1:
        return x
    numel = x.numel * times
    out = Tensor(x.storage, numel, x.dtype) if single else tape.new(numel, x.dtype)
    return tape.record(out, (x,), lambda g: (tape.new(g.numel // times, g.dtype),))


def matmul(
    tape: Tape, x: Tensor, y: Tensor, numel: int, *, copies: tuple[bool, bool] = (False, False)
) -> Tensor:
    """A batched product of two activations; `copies` says which of them bmm must reorder first."""
    x, y = autocasted(tape, x), autocasted(tape, y)
    x = contiguous(tape, x) if copies[0] else x
    y = contiguous(tape, y) if copies[1] else y

    def backward(gradient: Tensor, x: Tensor = x, y: Tensor = y) -> Gradients:
        return tape.new(x.numel, gradient.dtype), tape.new(y.numel, gradient.dtype)

    return tape.record(tape.new(numel, promoted(x.dtype, y.dtype)), (x, y), backward)


def fused_attention(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads_rows: int
) -> Tensor:
    """A flash or memory-efficient kernel: saves inputs, output and a number per head and row."""
    query, key, value = (autocasted(tape, x) for x in (query, key, value))
    out, sums = tape.new(query.numel, query.dtype), tape.new(heads_rows, "float32")
    result = Tensor(out.storage, out.numel, out.dtype)

    def backward(
        gradient: Tensor, saved: tuple[Tensor, ...] = (query, key, value, out, sums)
    ) -> Gradients:
        return tuple(tape.new(x.numel, x.dtype) for x in saved[:3])

    return tape.record(result, (query, key, value), backward)
