"""The parts of a decoder layer on the counting tape: norm, rotary embedding, attention."""

from iisft.child.constants_iisft import EAGER_BLOCKS, QUERY_BLOCK
from iisft.estimate import ops
from iisft.estimate.architecture import Architecture
from iisft.estimate.shape import StepShape
from iisft.estimate.tape import Gradients, Tape, Tensor, promoted


def norm(
    tape: Tape,
    x: Tensor,
    model: Architecture,
    weight_dtype: str,
    size: int | None = None,
    *,
    scaled: bool = True,
) -> Tensor:
    """RMSNorm in float32; Gemma's multiplies before the cast back, Llama's after it."""
    source = x.dtype
    rows = x.numel // (size or model.hidden)
    x = ops.cast(tape, x, "float32")
    root = _inverse_root(tape, x, rows)
    out = _times_root(tape, x, root, rows)
    del x, root
    if not scaled:
        return ops.cast(tape, out, source)
    if model.norm_before_cast:  # Gemma's (1 + weight) is float32 (modeling_gemma.py)
        return ops.cast(tape, ops.scale(tape, out), source)
    out = ops.cast(tape, out, source)
    return ops.scale(tape, out, weight_dtype)


def _inverse_root(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """rsqrt(mean(x^2) + eps); mean's backward makes three tensors of x's size, pow's one."""
    square = tape.new(x.numel, "float32")
    out = tape.new(rows, "float32")
    del square

    def backward(gradient: Tensor, x: Tensor = x) -> Gradients:
        # mean: grad.expand / n; pow: grad * (2 * self.pow(1)) (torch, FunctionsManual.cpp)
        spread = tape.new(x.numel, "float32")
        power = tape.new(x.numel, "float32")
        twice = tape.new(x.numel, "float32")
        del power
        result = tape.new(x.numel, "float32")
        del spread, twice
        return (result,)

    return tape.record(out, (x,), backward)


def _times_root(tape: Tape, x: Tensor, root: Tensor, rows: int) -> Tensor:
    """x times one number per row, whose gradient needs the whole product before it is summed."""

    def backward(gradient: Tensor, x: Tensor = x, _root: Tensor = root) -> Gradients:
        result = tape.new(x.numel, "float32")
        product = tape.new(x.numel, "float32")
        sums = tape.new(rows, "float32")
        del product
        return result, sums

    return tape.record(tape.new(x.numel, "float32"), (x, root), backward)


def split(tape: Tape, whole: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Slices of the last dimension: views, whose gradients SliceBackward pads with zeros."""
    total, numel = sum(sizes), whole.numel

    def backward(gradient: Tensor) -> Gradients:
        return (tape.new(numel, gradient.dtype),)

    views = [Tensor(whole.storage, numel * size // total, whole.dtype) for size in sizes]
    return [tape.record(view, (whole,), backward) for view in views]


def rotate(tape: Tape, x: Tensor, model: Architecture, angles: str) -> Tensor:
    """apply_rotary_pos_emb: x * cos + rotate_half(x) * sin, on the rotated share of each head."""
    if model.rotary_share == 0.0:
        return x
    turned, passed = x, None  # GLM and Phi rotate only a part of each head
    if model.rotary_share < 1.0:
        part = int(x.numel * model.rotary_share)
        turned, passed = split(tape, x, (part, x.numel - part))
    with_cos = ops.scale(tape, turned, angles)
    swapped = _rotate_half(tape, turned)
    with_sin = ops.scale(tape, swapped, angles)
    del swapped, turned
    out = ops.add(tape, with_cos, with_sin)
    del with_cos, with_sin
    if passed is None:
        return out
    sizes = out.numel, passed.numel

    def backward(gradient: Tensor) -> Gradients:
        return tuple(Tensor(gradient.storage, numel, gradient.dtype) for numel in sizes)

    return tape.record(
        tape.new(x.numel, promoted(out.dtype, passed.dtype)), (out, passed), backward
    )


def _rotate_half(tape: Tape, x: Tensor) -> Tensor:
    negative = tape.new(x.numel // 2, x.dtype)
    out = tape.new(x.numel, x.dtype)
    del negative

    def backward(gradient: Tensor) -> Gradients:
        negative = tape.new(gradient.numel // 2, gradient.dtype)
        result = tape.new(gradient.numel, gradient.dtype)
        del negative
        return (result,)

    return tape.record(out, (x,), backward)


def attend(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    model: Architecture,
    shape: StepShape,
    mask_dtype: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Attention by that kernel; eager returns its scores too."""
    heads_rows = shape.rows * model.heads
    squares = heads_rows * shape.length
    several = shape.batch > 1  # (batch, head) can't be merged in place in a transposed tensor
    if shape.attention in ("efficient", "flash"):
        if shape.attention == "efficient":
            key, value = (
                ops.repeat(tape, x, model.groups, single=model.kv_heads == 1) for x in (key, value)
            )
        out = ops.fused_attention(tape, query, key, value, heads_rows)
        del query, key, value
        return out, None
    if shape.attention == "math":
        out = _math_attention(tape, query, key, value, model, shape)
        return ops.contiguous(tape, out), None
    if shape.attention == EAGER_BLOCKS:
        return _attention_in_blocks(tape, query, key, value, model, shape), None
    # eager_attention_forward returns its weights, which live until the layer returns
    dtype = query.dtype
    keys, values = (
        ops.repeat(tape, x, model.groups, single=model.kv_heads == 1) for x in (key, value)
    )
    scattered = several and (model.groups == 1 or model.kv_heads == 1)
    scores = ops.matmul(tape, query, keys, squares, copies=(several, scattered))
    scores = ops.scale(tape, scores)
    if model.attention_softcap:
        scores = ops.scale(tape, scores)
        scores = ops.unary(tape, scores, saves_result=True)
        scores = ops.scale(tape, scores)
    if mask_dtype is not None:
        scores = ops.scale(tape, scores, mask_dtype)
    scores = ops.softmax(tape, scores)
    scores = ops.cast(tape, scores, dtype)
    out = ops.matmul(tape, scores, values, query.numel, copies=(False, scattered))
    return ops.contiguous(tape, out), scores


def _attention_in_blocks(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, model: Architecture, shape: StepShape
) -> Tensor:
    """child/attention_iisft.py: what is live at once for the block that sees most keys."""
    queries = shape.batch * min(shape.length, QUERY_BLOCK)
    query, key, value = (ops.autocasted(tape, x) for x in (query, key, value))
    square = queries * model.heads * shape.length
    block = queries * model.query_size

    def pieces(count: int, numel: int) -> list[Tensor]:
        return [tape.new(numel, "float32") for _ in range(count)]

    def wide() -> list[Tensor]:
        """Keys and values in float32, in another order."""
        kept = []
        for x in (key, value):
            converted = x if x.dtype == "float32" else tape.new(x.numel, "float32")
            kept.append(tape.new(x.numel, "float32"))
            del converted
        return kept

    out = tape.taken(model.hidden)
    if out is None:
        out = tape.keep(tape.new(query.numel, value.dtype), model.hidden)
        held = wide()
        held += pieces(1, block)  # the block's queries, their heads grouped
        squares = pieces(3 if model.attention_softcap else 2, square)
        del held, squares

    def backward(
        gradient: Tensor, query: Tensor = query, key: Tensor = key, value: Tensor = value
    ) -> Gradients:
        held = wide()
        of_query = tape.new(query.numel, query.dtype)
        of_key, of_value = (tape.new(x.numel, "float32") for x in held)
        blocks = pieces(2, block)  # queries and the gradient's part
        squares = pieces(4 if model.attention_softcap else 3, square)
        del held, blocks, squares
        return (
            of_query,
            *(
                x if key.dtype == "float32" else tape.new(x.numel, key.dtype)
                for x in (of_key, of_value)
            ),
        )

    return tape.record(Tensor(out.storage, out.numel, out.dtype), (query, key, value), backward)


def _math_attention(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, model: Architecture, shape: StepShape
) -> Tensor:
    """_scaled_dot_product_attention_math: in float32, query and key scaled, a causal mask added."""
    squares = shape.rows * model.heads * shape.length
    query, key, value = (ops.autocasted(tape, x) for x in (query, key, value))
    source = query.dtype
    autocast, tape.autocast = tape.autocast, None
    try:
        query, key, value = (ops.cast(tape, x, "float32") for x in (query, key, value))
        key, value = (ops.repeat(tape, x, model.groups, single=False) for x in (key, value))
        several = shape.batch > 1
        # is_causal becomes a bias of length x length (convert_boolean_attn_mask)
        bias = tape.new(shape.length * shape.length, "float32")
        scores = ops.matmul(
            tape, ops.scale(tape, query), ops.scale(tape, key), squares,
            copies=(several, several and model.groups == 1),
        )  # fmt: skip
        scores = ops.scale(tape, scores, "float32")
        del bias
        scores = ops.unary(tape, scores, saves_result=True)
        out = ops.matmul(
            tape, scores, value, query.numel, copies=(False, several and model.groups == 1)
        )
        return ops.cast(tape, out, source)
    finally:
        tape.autocast = autocast
