"""Decoder-only models as transformers computes them, on the counting tape: one layer, the whole forward, one step.

Source of every line: transformers' modeling_{qwen2,qwen3,llama,mistral,gemma,gemma2,gemma3,glm,glm4,phi3}.py, peft's
tuners/lora, LLaMA-Factory's checkpointing.py, accelerate's autocast wrapper; checked against traces of that code
(iisft plan --trace). Local variables live here as long as they live there.
"""

from dataclasses import dataclass

from iisft.estimate import ops
from iisft.estimate.architecture import Architecture
from iisft.estimate.ops import Weight
from iisft.estimate.tape import ADAPTER, CHECKPOINTS, INPUTS, LAYER, LOGITS, Gradients, Tape, Tensor, promoted

FORWARD, LOSS, LOSS_BACKWARD = "forward", "loss", "loss backward"
BACKWARD_TOP, BACKWARD_MIDDLE, BACKWARD_BOTTOM, OPTIMIZER = "backward", "middle", "backward end", "optimizer"


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step computes with, dtypes by torch's names. `attention` is a kernel: eager, math, efficient, flash."""

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


class Projection:
    """A linear layer, with its adapter where it is a target."""

    def __init__(self, tape: Tape, weight: Weight, shape: StepShape, *, adapted: bool) -> None:
        self.tape, self.weight, self.shape = tape, weight, shape
        self.a = tape.leaf(shape.rank * weight.inputs, shape.adapter_dtype, ADAPTER) if adapted else None
        self.b = tape.leaf(shape.rank * weight.outputs, shape.adapter_dtype, ADAPTER) if adapted else None

    def __call__(self, x: Tensor) -> Tensor:
        tape, weight, rank = self.tape, self.weight, self.shape.rank
        result = ops.linear(tape, x, weight)
        if self.a is None or self.b is None:
            return result
        dtype = result.dtype
        if weight.way != "nf4" or tape.autocast is None:  # peft's 4-bit layer leaves this to autocast
            x = ops.cast(tape, x, self.a.dtype)
        update = ops.scale(tape, self._update(x, rank))
        result = ops.add(tape, result, update)
        del update
        return ops.cast(tape, result, dtype)

    def _update(self, x: Tensor, rank: int) -> Tensor:
        assert self.a is not None and self.b is not None
        dropped = ops.dropout(self.tape, x, self.shape.dropout)
        low = ops.trained_linear(self.tape, dropped, self.a, self.weight.inputs, rank)
        del dropped
        return ops.trained_linear(self.tape, low, self.b, rank, self.weight.outputs)


class Layer:
    """One decoder layer."""

    def __init__(self, tape: Tape, model: Architecture, shape: StepShape) -> None:
        self.tape, self.model, self.shape = tape, model, shape
        self.projections = {
            name: Projection(tape, Weight(inputs, outputs, shape.weights, shape.way), shape, adapted=adapted)
            for name, inputs, outputs, adapted in model.projections
        }

    def __call__(self, hidden: Tensor, mask_dtype: str | None) -> Tensor:
        tape, model = self.tape, self.model
        residual = hidden
        hidden = norm(tape, hidden, model, self.shape.weights)
        hidden, _scores = self.attention(hidden, mask_dtype)
        if model.sandwich_norms:
            hidden = norm(tape, hidden, model, self.shape.weights)
        hidden = ops.add(tape, residual, hidden)
        residual = hidden
        hidden = norm(tape, hidden, model, self.shape.weights)
        hidden = self.mlp(hidden)
        if model.sandwich_norms:
            hidden = norm(tape, hidden, model, self.shape.weights)
        return ops.add(tape, residual, hidden)

    def attention(self, hidden: Tensor, mask_dtype: str | None) -> tuple[Tensor, Tensor | None]:
        tape, model, project = self.tape, self.model, self.projections
        stream = hidden.dtype
        if "qkv_proj" in project:
            whole = project["qkv_proj"](hidden)
            query, key, value = split(tape, whole, (model.query_size, model.key_size, model.key_size))
            del whole
        else:
            query, key, value = project["q_proj"](hidden), project["k_proj"](hidden), project["v_proj"](hidden)
        if model.qk_norm:
            query = norm(tape, query, model, self.shape.weights, model.head_dim)
            key = norm(tape, key, model, self.shape.weights, model.head_dim)
        angles = stream if model.rotary_dtype is None else model.rotary_dtype
        query, key = rotate(tape, query, model, angles), rotate(tape, key, model, angles)
        out, scores = attend(tape, query, key, value, model, self.shape, mask_dtype)
        out = project["o_proj"](out)
        return out, scores

    def mlp(self, x: Tensor) -> Tensor:
        tape, project = self.tape, self.projections
        if "gate_up_proj" in project:
            both = project["gate_up_proj"](x)
            gate, up = split(tape, both, (self.model.intermediate, self.model.intermediate))
            return project["down_proj"](ops.multiply(tape, up, ops.unary(tape, gate)))
        if "gate_proj" in project:
            return project["down_proj"](
                ops.multiply(tape, ops.unary(tape, project["gate_proj"](x)), project["up_proj"](x))
            )
        return project["down_proj"](ops.unary(tape, project["up_proj"](x)))


def norm(tape: Tape, x: Tensor, model: Architecture, weight_dtype: str, size: int | None = None) -> Tensor:
    """RMSNorm in float32; Gemma's multiplies before the cast back, Llama's after it."""
    source = x.dtype
    rows = x.numel // (size or model.hidden)
    x = ops.cast(tape, x, "float32")
    root = _inverse_root(tape, x, rows)
    out = _times_root(tape, x, root, rows)
    del x, root
    if model.norm_before_cast:
        return ops.cast(tape, ops.scale(tape, out), source)
    out = ops.cast(tape, out, source)
    return ops.scale(tape, out, weight_dtype if weight_dtype != "float32" or source == "float32" else "float32")


def _inverse_root(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """rsqrt(mean(x^2) + eps); mean's and pow's backward make three and one tensor of x's size."""
    square = tape.new(x.numel, "float32")
    out = tape.new(rows, "float32")
    del square

    def backward(gradient: Tensor, x: Tensor = x) -> Gradients:
        spread = tape.new(x.numel, "float32")
        power = tape.new(x.numel, "float32")
        twice = tape.new(x.numel, "float32")
        del power
        result = tape.new(x.numel, "float32")
        del spread, twice
        return (result,)

    return tape.record(out, (x,), backward)


def _times_root(tape: Tape, x: Tensor, root: Tensor, rows: int) -> Tensor:
    def backward(gradient: Tensor, x: Tensor = x, _root: Tensor = root) -> Gradients:
        result = tape.new(x.numel, "float32")
        product = tape.new(x.numel, "float32")
        sums = tape.new(rows, "float32")
        del product
        return result, sums

    return tape.record(tape.new(x.numel, "float32"), (x, root), backward)


def split(tape: Tape, whole: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Slices of the last dimension: views, whose gradients are padded with zeros to the whole (SliceBackward)."""
    total, numel = sum(sizes), whole.numel

    def backward(gradient: Tensor) -> Gradients:
        return (tape.new(numel, gradient.dtype),)

    views = [Tensor(whole.storage, numel * size // total, whole.dtype) for size in sizes]
    return [tape.record(view, (whole,), backward) for view in views]


def rotate(tape: Tape, x: Tensor, model: Architecture, angles: str) -> Tensor:
    """apply_rotary_pos_emb: x * cos + rotate_half(x) * sin, on the first rotary_share of each head."""
    if model.rotary_share == 0.0:
        return x
    turned, passed = x, None
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

    return tape.record(tape.new(x.numel, promoted(out.dtype, passed.dtype)), (out, passed), backward)


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
    """The attention function of that kernel; eager gives its scores back too."""
    heads_rows = shape.rows * model.heads
    squares = heads_rows * shape.length
    several = shape.batch > 1  # (batch, head) can't be merged in place in a transposed tensor
    if shape.attention in ("efficient", "flash"):
        if shape.attention == "efficient":
            key, value = (ops.repeat(tape, x, model.groups, single=model.kv_heads == 1) for x in (key, value))
        out = ops.fused_attention(tape, query, key, value, heads_rows)
        del query, key, value
        return out, None
    if shape.attention == "math":
        out = _math_attention(tape, query, key, value, model, shape)
        return ops.contiguous(tape, out), None
    dtype = query.dtype
    keys, values = (ops.repeat(tape, x, model.groups, single=model.kv_heads == 1) for x in (key, value))
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


def _math_attention(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, model: Architecture, shape: StepShape
) -> Tensor:
    """_scaled_dot_product_attention_math: half inputs in float32, query and key scaled, a causal mask added."""
    squares = shape.rows * model.heads * shape.length
    query, key, value = (ops.autocasted(tape, x) for x in (query, key, value))
    source = query.dtype
    autocast, tape.autocast = tape.autocast, None
    try:
        query, key, value = (ops.cast(tape, x, "float32") for x in (query, key, value))
        key, value = (ops.repeat(tape, x, model.groups, single=False) for x in (key, value))
        several = shape.batch > 1
        bias = tape.new(shape.length * shape.length, "float32")
        scores = ops.matmul(
            tape, ops.scale(tape, query), ops.scale(tape, key), squares,
            copies=(several, several and model.groups == 1),
        )  # fmt: skip
        scores = ops.scale(tape, scores, "float32")
        del bias
        scores = ops.unary(tape, scores, saves_result=True)
        out = ops.matmul(tape, scores, value, query.numel, copies=(False, several and model.groups == 1))
        return ops.cast(tape, out, source)
    finally:
        tape.autocast = autocast


class Model:
    """The whole model: its layers, and what one step of it does to the tape."""

    def __init__(self, tape: Tape, model: Architecture, shape: StepShape, layers: int) -> None:
        self.tape, self.model, self.shape = tape, model, shape
        self.layers = [Layer(tape, model, shape) for _ in range(layers)]

    def loss(self) -> Tensor:
        """Forward to the loss. The tensors of the batch live as long as the step."""
        tape, model, shape = self.tape, self.model, self.shape
        tape.enter(FORWARD)
        exact = shape.way == "exact"
        mask_dtype = None
        if shape.attention == "eager":
            mask_dtype = "float32" if exact else shape.weights
            count = shape.batch * shape.length * shape.length
            self.masks = [tape.new(count, mask_dtype, INPUTS) for _ in range(model.masks)]
        hidden = self._embed()
        embedded = hidden
        angles = tape.new(2 * shape.length * model.head_dim, hidden.dtype)
        for number, layer in enumerate(self.layers):
            hidden = self._run(layer, hidden, mask_dtype)
            top = number == len(self.layers) - 1
            place = BACKWARD_TOP if top else BACKWARD_MIDDLE if number else BACKWARD_BOTTOM
            hidden = _mark(tape, hidden, place)
        hidden = norm(tape, hidden, model, shape.weights)
        del embedded, angles
        return self._head(hidden)

    def _embed(self) -> Tensor:
        tape, model, shape = self.tape, self.model, self.shape
        hidden = tape.new(shape.rows * model.hidden, shape.weights)
        if shape.way == "exact":
            hidden = tape.new(hidden.numel, "float32")
        if model.scaled_embedding:
            hidden = tape.new(hidden.numel, hidden.dtype)
        if shape.checkpointing:  # LLaMA-Factory lets gradients reach the first layer's input
            hidden = Tensor(hidden.storage, hidden.numel, hidden.dtype, tape.leaf(0, hidden.dtype, LAYER).node)
            tape.call_it(hidden, CHECKPOINTS)
        return hidden

    def _run(self, layer: Layer, hidden: Tensor, mask_dtype: str | None) -> Tensor:
        tape = self.tape
        if not self.shape.checkpointing:
            return layer(hidden, mask_dtype)
        with tape.paused(False):
            out = layer(hidden, mask_dtype)
        tape.call_it(out, CHECKPOINTS)

        def backward(gradient: Tensor, saved: Tensor = hidden) -> Gradients:
            """torch.utils.checkpoint's reentrant backward: once more forward, then backward through that."""
            before, tape.casts = tape.casts, {}
            detached = Tensor(saved.storage, saved.numel, saved.dtype, tape.leaf(0, saved.dtype, LAYER).node)
            with tape.paused(True):
                again = layer(detached, mask_dtype)
            tape.casts = before
            tape.backward(again, gradient)
            assert detached.node is not None
            return (detached.node.gradient,)

        return tape.record(out, (hidden,), backward)

    def _head(self, hidden: Tensor) -> Tensor:
        tape, model, shape = self.tape, self.model, self.shape
        way = "exact" if shape.way == "exact" else "native"
        head = Weight(model.hidden, model.vocabulary, shape.weights, way)
        tape.enter(LOSS, LOGITS)
        logits = ops.linear(tape, hidden, head)
        if model.logit_softcap:
            logits = ops.scale(tape, logits)
            logits = ops.unary(tape, logits, saves_result=True)
            logits = ops.scale(tape, logits)
        loss = self._cross_entropy(logits)
        if tape.autocast is not None:  # accelerate's convert_outputs_to_fp32
            tape.new(logits.numel, "float32")
        tape.casts.clear()
        return loss

    def _cross_entropy(self, logits: Tensor) -> Tensor:
        tape = self.tape
        logits = ops.cast(tape, logits, "float32")
        chances = tape.new(logits.numel, "float32")
        loss = tape.new(1, "float32")

        def backward(gradient: Tensor, saved: Tensor = chances) -> Gradients:
            of_chances = tape.new(saved.numel, "float32")
            result = tape.new(saved.numel, "float32")
            del of_chances
            return (result,)

        return tape.record(loss, (logits,), backward)

    def backward(self, loss: Tensor) -> None:
        """loss.backward()."""
        self.tape.enter(LOSS_BACKWARD, LOGITS)
        self.tape.backward(loss, self.tape.new(1, "float32"))


def _mark(tape: Tape, x: Tensor, segment: str) -> Tensor:
    """When the gradient comes by here, the backward pass enters that segment."""

    def backward(gradient: Tensor) -> Gradients:
        tape.enter(segment, LAYER)
        return (gradient,)

    return tape.record(Tensor(x.storage, x.numel, x.dtype), (x,), backward)
