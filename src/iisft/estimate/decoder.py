"""Decoder-only models as transformers computes them, on the counting tape.

Source of every line: transformers'
modeling_{qwen2,qwen3,llama,mistral,gemma,gemma2,gemma3,glm,glm4,phi3}.py, peft's tuners/lora,
LLaMA-Factory's checkpointing.py, accelerate's autocast wrapper; checked against traces of that code
(iisft plan --trace). Local variables live as long as they do there.
"""

from collections.abc import Callable
from functools import partial

from iisft.child.constants_iisft import EAGER_BLOCKS
from iisft.estimate import ops
from iisft.estimate.architecture import Architecture
from iisft.estimate.blocks import norm
from iisft.estimate.layers import Layer, Projection
from iisft.estimate.ops import Weight
from iisft.estimate.shape import StepShape
from iisft.estimate.tape import (
    CHECKPOINTS,
    INPUTS,
    LAYER,
    LOGITS,
    Gradients,
    Tape,
    Tensor,
    saved_behind,
)

FORWARD, LOSS, LOSS_BACKWARD = "forward", "loss", "loss backward"
BACKWARD_TOP, BACKWARD_MIDDLE, BACKWARD_OTHERS, BACKWARD_KEPT, BACKWARD_BOTTOM, OPTIMIZER = (
    "backward",
    "middle",
    "backward above kept",
    "backward of kept",
    "backward end",
    "optimizer",
)


class Model:
    """The whole model: its layers, and what one step of it does to the tape."""

    def __init__(self, tape: Tape, model: Architecture, shape: StepShape, layers: int) -> None:
        self.tape, self.model, self.shape = tape, model, shape
        self.layers = [
            Layer(
                tape, model.kind(number, layers), shape,
                model.delta if (number + 1) % model.unit else None,
            )
            for number in range(layers)
        ]  # fmt: skip
        if model.near is not None:
            # the last layer of each kind keeps keys and values for layers that take them, also
            # where there are none (modeling_gemma4.py)
            first = layers - model.taking
            near, far = self.layers[first - 2], self.layers[first - 1]
            near.stored, far.stored = [], []
            for number in range(first, layers):
                self.layers[number].taken = (near if (number + 1) % model.unit else far).stored
        own = model.own_projection
        self.own_projection = own and Projection(
            tape, Weight(own[1], own[2], shape.weights, shape.way), shape, adapted=own[3]
        )
        self.held: list[list[object]] = []

    def loss(self) -> Tensor:
        """Forward to the loss. The tensors of the batch live as long as the step."""
        tape, model, shape = self.tape, self.model, self.shape
        tape.enter(FORWARD)
        exact = shape.way == "exact"
        mask_dtype = None
        if shape.attention in ("eager", EAGER_BLOCKS):
            mask_dtype = "float32" if exact else shape.weights
            # create_causal_mask; models with sliding layers have a second one (masking_utils.py)
            count = shape.batch * shape.length * shape.length
            self.masks = [tape.new(count, mask_dtype, INPUTS) for _ in range(model.masks)]
        hidden = self._embed()
        embedded = hidden
        # cos and sin of every position, made once for all layers, and held until their backward
        widths = model.head_dim + (model.near.head_dim if model.near else 0)
        self.angles = tape.new(2 * shape.length * widths, hidden.dtype)
        inputs = self._own_inputs(hidden)
        for number, layer in enumerate(self.layers):
            own = self._own_input(inputs)
            hidden = self._run(number, layer, hidden, own, mask_dtype)
            hidden = _mark(tape, hidden, self._place(number))
        hidden = norm(tape, hidden, model, shape.weights)
        del embedded, inputs
        loss = self._loss(hidden)
        tape.casts.clear()
        return loss

    def _place(self, number: int) -> str:
        """The segment of the step in which that layer's backward is."""
        unit, kept = self.model.unit, self.shape.layers_kept
        # below the last layers of Gemma 4 their keys and values are held
        top = 2 * unit if self.model.near else unit
        if number >= len(self.layers) - top:
            return BACKWARD_TOP
        if number < unit:
            return BACKWARD_BOTTOM
        ends = {kept // unit: BACKWARD_OTHERS, (kept - 1) // unit: BACKWARD_KEPT}
        return ends.get(number // unit, BACKWARD_MIDDLE)

    def _embed(self) -> Tensor:
        tape, model, shape = self.tape, self.model, self.shape
        hidden = tape.new(shape.rows * model.hidden, shape.weights)
        if shape.way == "exact":
            hidden = tape.new(hidden.numel, "float32")
        if model.scaled_embedding:  # Gemma multiplies by sqrt(hidden_size)
            hidden = tape.new(hidden.numel, hidden.dtype)
        if shape.checkpointing:  # LLaMA-Factory calls enable_input_require_grads (checkpointing.py)
            hidden = Tensor(
                hidden.storage, hidden.numel, hidden.dtype, tape.leaf(0, hidden.dtype, LAYER).node
            )
            tape.relabel(hidden, CHECKPOINTS)
        return hidden

    def _own_inputs(self, embedded: Tensor) -> Tensor | None:
        """Gemma 4 E2B and E4B: get_per_layer_inputs and project_per_layer_inputs."""
        tape, model, shape = self.tape, self.model, self.shape
        if self.own_projection is None:
            return None
        numel = shape.rows * model.layers * model.own_inputs
        looked_up = tape.new(numel, shape.weights)
        if shape.way == "exact":
            looked_up = tape.new(numel, "float32")
        looked_up = tape.new(numel, looked_up.dtype)
        projected = ops.scale(tape, self.own_projection(embedded))
        projected = norm(tape, projected, model, shape.weights, model.own_inputs)
        return ops.scale(tape, ops.add(tape, projected, looked_up))

    def _own_input(self, inputs: Tensor | None) -> Tensor | None:
        """inputs[:, :, i, :]; its backward fills zeros of the whole size."""
        if inputs is None:
            return None
        tape, numel = self.tape, inputs.numel
        one = Tensor(inputs.storage, self.shape.rows * self.model.own_inputs, inputs.dtype)
        return tape.record(one, (inputs,), lambda g: (tape.new(numel, g.dtype),))

    def _run(
        self,
        number: int,
        layer: Layer,
        hidden: Tensor,
        own: Tensor | None,
        mask_dtype: str | None,
    ) -> Tensor:
        tape, kept = self.tape, self.shape.layers_kept
        if not self.shape.checkpointing:
            return layer(hidden, mask_dtype, own)
        if kept or self.model.taking:
            tape.smallest_inner = self.model.hidden // 2
            products: list[Tensor] | None = [] if number < kept else None

            def run(x: Tensor) -> Tensor:
                out = layer(x, mask_dtype, own)
                if tape.recording:  # what is stored again is held with its graph
                    self.held.append(saved_behind(layer.graph, x.node))
                elif layer.stored and self.model.taking:
                    layer.ports = tuple(map(tape.port, layer.stored))
                return out

            out = self._recomputed(run, hidden, products, self._passed(hidden.dtype))
            tape.relabel(out, CHECKPOINTS)
            return out
        with tape.paused(False):
            out = layer(hidden, mask_dtype, own)
        tape.relabel(out, CHECKPOINTS)

        def backward(gradient: Tensor, saved: Tensor = hidden) -> Gradients:
            """torch.utils.checkpoint's reentrant backward: forward again, then backward."""
            # the recomputation opens autocast again, whose cache is then empty
            before, tape.casts = tape.casts, {}
            detached = Tensor(
                saved.storage, saved.numel, saved.dtype, tape.leaf(0, saved.dtype, LAYER).node
            )
            with tape.paused(True):
                again = layer(detached, mask_dtype, own)
            tape.casts = before
            if layer.stored is not None:  # their graph ends in it
                layer.stored.append(detached)
            tape.backward(again, gradient)
            assert detached.node is not None
            return (detached.node.gradient,)

        return tape.record(out, (hidden,), backward)

    def _passed(self, stream: str) -> tuple[str, ...] | None:
        """What the gradient of a layer's output has become when the backward pass asks for the
        first tensor that was saved: cast to the last product's dtype, and scaled for its adapter.
        """
        last = self.layers[0].projections["down_proj"]
        if not last.last:
            return None
        tape, shape = self.tape, self.shape
        dtype = "float32" if shape.way == "exact" else tape.autocast or shape.weights
        casts = (dtype,) if dtype != stream else ()
        if last.a is None:
            return casts
        scaled = tape.autocast or last.a.dtype
        return (*casts, *((scaled,) if scaled != dtype else ()), scaled)

    def _recomputed(
        self,
        run: Callable[[Tensor], Tensor],
        x: Tensor,
        kept: list[Tensor] | None = None,
        passed: tuple[str, ...] | None = None,
    ) -> Tensor:
        """torch.utils.checkpoint without reentering: what forward saved is made again when the
        first of it is asked for, and gradients go on through the graph that was there.

        `kept` takes the big products of a layer that keeps them. `passed`: the dtypes of the
        gradients that are there when the first is asked for; None where nothing ends early.
        """
        tape, stops = self.tape, passed is not None
        passed = passed or ()
        tape.keeping = kept
        with tape.paused(False):
            out = run(x)
        tape.keeping = None

        def backward(
            gradient: Tensor, saved: Tensor = x, kept: list[Tensor] | None = kept
        ) -> Gradients:
            before = tape.casts
            tape.casts, tape.kept = {}, kept
            held = [tape.new(gradient.numel, dtype) for dtype in passed]
            tape.recomputing = stops
            with tape.paused(True):
                again = run(saved)
            tape.recomputing = tape.stopped = False
            del held
            tape.casts, tape.kept = before, None
            assert node is not None
            node.parents, node.dtypes = (again.node,), (again.dtype,)
            return (gradient,)

        out = tape.record(out, (x,), backward)
        node = out.node
        return out

    def _loss(self, hidden: Tensor) -> Tensor:
        """Head and loss where the step makes them (child/step_iisft.py)."""
        shape = self.shape
        if shape.positions is None:
            return self._head(hidden)
        positions = min(shape.positions, shape.length)
        if not shape.chunk or positions <= shape.chunk:
            return self._head(self._at(hidden, positions))
        total: Tensor | None = None
        for start in range(0, positions, shape.chunk):
            part = self._at(hidden, min(shape.chunk, positions - start))
            loss = self._recomputed(partial(self._head, whole=False), part)
            total = loss if total is None else ops.add(self.tape, total, loss)
        assert total is not None
        return total

    def _at(self, hidden: Tensor, positions: int) -> Tensor:
        """hidden[:, some positions, :]; its backward fills zeros of the whole size."""
        tape, numel = self.tape, hidden.numel
        part = tape.new(self.shape.batch * positions * self.model.hidden, hidden.dtype, LAYER)
        return tape.record(part, (hidden,), lambda g: (tape.new(numel, g.dtype, LAYER),))

    def _head(self, hidden: Tensor, *, whole: bool = True) -> Tensor:
        tape, model, shape = self.tape, self.model, self.shape
        way = "exact" if shape.way == "exact" else "native"
        head = Weight(model.hidden, model.vocabulary, shape.weights, way)
        if whole or tape.segment == FORWARD:
            tape.enter(LOSS, LOGITS)
        logits = ops.linear(tape, hidden, head)
        if model.logit_softcap:
            logits = ops.scale(tape, logits)
            logits = ops.unary(tape, logits, saves_result=True)
            logits = ops.scale(tape, logits)
        loss = self._cross_entropy(logits)
        if tape.autocast is not None and whole:  # accelerate's convert_outputs_to_fp32
            tape.new(logits.numel, "float32")
        return loss

    def _cross_entropy(self, logits: Tensor) -> Tensor:
        tape = self.tape
        logits = ops.cast(tape, logits, "float32")  # ForCausalLMLoss (loss/loss_utils.py)
        log_probabilities = tape.new(logits.numel, "float32")
        loss = tape.new(1, "float32")

        def backward(gradient: Tensor, saved: Tensor = log_probabilities) -> Gradients:
            # nll_loss_backward, then _log_softmax_backward_data
            their_gradient = tape.new(saved.numel, "float32")
            result = tape.new(saved.numel, "float32")
            del their_gradient
            return (result,)

        return tape.record(loss, (logits,), backward)

    def backward(self, loss: Tensor) -> None:
        """loss.backward()."""
        self.tape.enter(LOSS_BACKWARD, LOGITS)
        self.tape.backward(loss, self.tape.new(1, "float32"))
        del self.angles
        for layer in self.layers:
            layer.forget()
        self.held.clear()


def _mark(tape: Tape, x: Tensor, segment: str) -> Tensor:
    """Let the backward pass enter that segment when its gradient reaches this point."""

    def backward(gradient: Tensor) -> Gradients:
        tape.enter(segment, LAYER)
        return (gradient,)

    return tape.record(Tensor(x.storage, x.numel, x.dtype), (x,), backward)
