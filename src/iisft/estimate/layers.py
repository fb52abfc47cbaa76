"""A decoder layer and its linear layers, with their adapters, on the counting tape (see decoder.py
for where they are from).
"""

from iisft.estimate import ops
from iisft.estimate.architecture import Architecture
from iisft.estimate.blocks import attend, norm, rotate, split
from iisft.estimate.delta import mix
from iisft.estimate.delta_sizes import Delta
from iisft.estimate.ops import Weight
from iisft.estimate.shape import StepShape
from iisft.estimate.tape import ADAPTER, Node, Tape, Tensor


class Projection:
    """A linear layer, with an adapter if it is a target.

    `last`: nothing that its layer does behind it is saved for the backward pass.
    """

    def __init__(
        self, tape: Tape, weight: Weight, shape: StepShape, *, adapted: bool, last: bool = False
    ) -> None:
        self.tape, self.weight, self.shape, self.last = tape, weight, shape, last
        self.a = (
            tape.leaf(shape.rank * weight.inputs, shape.adapter_dtype, ADAPTER) if adapted else None
        )
        self.b = (
            tape.leaf(shape.rank * weight.outputs, shape.adapter_dtype, ADAPTER)
            if adapted
            else None
        )

    def __call__(self, x: Tensor) -> Tensor:
        tape, weight, rank = self.tape, self.weight, self.shape.rank
        result = ops.linear(tape, x, weight)
        if self.a is None or self.b is None:
            tape.stopped = self.last and tape.recomputing
            return result
        dtype = result.dtype
        # peft's Linear4bit leaves this cast to autocast (peft/tuners/lora/bnb.py)
        if weight.way != "nf4" or tape.autocast is None:
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
        self.tape.stopped = self.last and self.tape.recomputing
        return ops.trained_linear(self.tape, low, self.b, rank, self.weight.outputs)


class Layer:
    """One decoder layer."""

    def __init__(
        self, tape: Tape, model: Architecture, shape: StepShape, delta: Delta | None = None
    ) -> None:
        self.tape, self.model, self.shape, self.delta = tape, model, shape, delta
        self.stored: list[Tensor] | None = None  # keys and values for later layers
        self.taken: list[Tensor] | None = None  # those of an earlier one
        self.graph: tuple[Node | None, ...] = ()
        self.ports: tuple[Node, ...] = ()  # where gradients of stored keys and values arrive
        self.projections = {
            name: Projection(
                tape,
                Weight(inputs, outputs, shape.weights, shape.way),
                shape,
                adapted=adapted,
                last=name == "down_proj" and not model.sandwich_norms,
            )
            for name, inputs, outputs, adapted in (delta or model).projections
        }

    def __call__(self, hidden: Tensor, mask_dtype: str | None, own: Tensor | None = None) -> Tensor:
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
        hidden = ops.add(tape, residual, hidden)
        if own is not None:
            residual = hidden
            hidden = ops.unary(tape, self.projections["per_layer_input_gate"](hidden))
            hidden = self.projections["per_layer_projection"](ops.multiply(tape, hidden, own))
            hidden = norm(tape, hidden, model, self.shape.weights)
            hidden = ops.add(tape, residual, hidden)
        return ops.scale_in_place(tape, hidden) if model.layer_scalar else hidden

    def attention(self, hidden: Tensor, mask_dtype: str | None) -> tuple[Tensor, Tensor | None]:
        tape, model, project = self.tape, self.model, self.projections
        if self.delta is not None:
            return mix(tape, project, hidden, model, self.shape), None
        gate = None
        stream = hidden.dtype  # the angles have it too
        if self.taken is not None:
            query = norm(tape, project["q_proj"](hidden), model, self.shape.weights, model.head_dim)
            query = rotate(tape, query, model, stream)
            key, value = self.taken[:2]
            out, scores = attend(tape, query, key, value, model, self.shape, mask_dtype)
            return project["o_proj"](out), scores
        if "qkv_proj" in project:
            whole = project["qkv_proj"](hidden)
            query, key, value = split(
                tape, whole, (model.query_size, model.key_size, model.key_size)
            )
            del whole
        else:
            query, key = project["q_proj"](hidden), project["k_proj"](hidden)
            value = project["v_proj"](hidden) if "v_proj" in project else key
        if model.gated_query:
            query, gate = split(tape, query, (model.query_size, model.query_size))
            gate = ops.contiguous(tape, gate)
        if model.qk_norm:
            query = norm(tape, query, model, self.shape.weights, model.head_dim)
            key = norm(tape, key, model, self.shape.weights, model.head_dim)
        if model.value_norm:
            value = norm(tape, value, model, self.shape.weights, model.head_dim, scaled=False)
        query, key = rotate(tape, query, model, stream), rotate(tape, key, model, stream)
        if model.scaled_query:
            query = ops.scale(tape, query, stream)
        if self.stored is not None:
            key, value = self._store(key, value)
        out, scores = attend(tape, query, key, value, model, self.shape, mask_dtype)
        if gate is not None:
            out = ops.multiply(tape, out, ops.unary(tape, gate, saves_result=True))
        return project["o_proj"](out), scores

    def _store(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values; where they are made again, the first ones' gradients go on here."""
        assert self.stored is not None
        made = (key, value)
        self.graph = (key.node, value.node)
        if self.ports and self.tape.recording:
            for port, one in zip(self.ports, made, strict=True):
                self.tape.connect(port, one)
            key, value = (
                Tensor(one.storage, one.numel, one.dtype, port)
                for port, one in zip(self.ports, made, strict=True)
            )
        self.stored[:] = key, value
        return key, value

    def forget(self) -> None:
        """The step is over: nobody takes keys and values any more."""
        self.graph = self.ports = ()
        if self.stored is not None:
            self.stored.clear()

    def mlp(self, x: Tensor) -> Tensor:
        tape, project = self.tape, self.projections
        if "gate_up_proj" in project:
            both = project["gate_up_proj"](x)
            gate, up = split(tape, both, (self.model.intermediate, self.model.intermediate))
            return project["down_proj"](ops.multiply(tape, up, ops.unary(tape, gate)))
        gate = ops.unary(tape, project["gate_proj"](x))
        return project["down_proj"](ops.multiply(tape, gate, project["up_proj"](x)))
