"""How a training step spends memory and time: which layers recompute, and where logits are made.

A checkpointed layer computes everything twice. `keep_products` lets the first layers keep the
outputs of their big products (an inner dimension of at least half the hidden size: the frozen
projections and LoRA's A, not its B, whose inner dimension is the rank) and of attention in blocks,
and recompute only what is cheap: norms, activations, eager attention, dropout. Dropout draws the
same mask again, since checkpoint restores the generator, so that losses and gradients are those of
full recomputation, bit for bit.

With `iisft_logits: trained` head and loss are computed only at positions whose next token has a
label, and with `iisft_logits_chunk` so many of them at a time.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention_iisft import attend
from .clock_iisft import BACKWARD, FORWARD, Clock, attach
from .constants_iisft import LAYERS_KEPT_KEY, LOGITS_CHUNK_KEY, LOGITS_KEY, TRAINED

IGNORED = -100


def _frozen_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    bias = None if bias is None else bias.to(torch.float32)
    return functional.linear(x, weight.to(torch.float32), bias)


def _operation() -> Any:
    """x @ w.T + b in float32 as one operation of torch's dispatcher.

    Selective checkpointing sees dispatched operations alone: were the cast one of its own, it
    would be repeated in the backward pass for a product that is kept. The same file is a module of
    another name in each view, so the operation may be there already.
    """
    if not hasattr(torch.ops.iisft, "frozen_linear"):
        schema = "frozen_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
        _LIBRARY.define(schema)
        _LIBRARY.impl("frozen_linear", _frozen_linear, "CompositeExplicitAutograd")
    return torch.ops.iisft.frozen_linear.default


_LIBRARY = torch.library.Library("iisft", "FRAGMENT")
frozen_linear = _operation()

_PRODUCTS = {frozen_linear: 0, torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}


def _policy(smallest_inner: int, context: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
    # a block's products are many for each number of the output, which is as large as a projection's
    if operation is attend:
        return CheckpointPolicy.MUST_SAVE
    place = _PRODUCTS.get(operation)
    if place is not None and args[place].shape[-1] >= smallest_inner:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def keep_products(model: nn.Module, layers_kept: int) -> int:
    """Give the first `layers_kept` checkpointed layers of a model selective checkpointing.

    The others keep recomputing everything, by torch's non-reentrant checkpointing as well, so that
    all layers are of one kind. With 0 that is all: layers that take keys and values of earlier ones
    (Gemma 4 E2B, E4B) need it, because through reentrant checkpointing no gradient goes back to
    those. LLaMA-Factory's wrapper has set their function before (model_utils/checkpointing.py); it
    is for reentrant checkpointing, which takes no context_fn.

    Returns: how many layers keep their products.
    """
    layers = _checkpointed(model)
    policy = partial(_policy, model.config.get_text_config().hidden_size // 2)
    contexts = partial(create_selective_checkpoint_contexts, policy)
    for index, layer in enumerate(layers):
        more = {"context_fn": contexts} if index < layers_kept else {}
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, **more)
    return min(layers_kept, len(layers))


def _checkpointed(model: nn.Module) -> list[nn.Module]:
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", 0)]
    layers = [layer for layer in layers if hasattr(layer, "_gradient_checkpointing_func")]
    return [layer for layer in layers if layer is not model and not _holds(layer, layers)]


def _holds(module: nn.Module, others: list[nn.Module]) -> bool:
    return any(inner is not module and inner in others for inner in module.modules())


def trained_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The positions where any row's next token has a label, and those labels; None where none has.

    Args:
        labels: token ids of shape (rows, length), IGNORED where nothing is trained.
    """
    shifted = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    keep = (shifted != IGNORED).any(dim=0).nonzero().squeeze(-1)
    return (keep, shifted[:, keep].contiguous()) if len(keep) else None


class _Given(nn.Module):
    """Stands in for a backbone whose output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def _loss_in_chunks(
    model: Any,
    forward: Callable[..., Any],
    output: Any,
    keep: torch.Tensor,
    labels: torch.Tensor,
    size: int,
    count: Any,
) -> torch.Tensor | None:
    """The loss over `keep`, made `size` positions at a time, each again in the backward pass:
    a mean over `count` of them.

    `forward` applies head, soft cap and loss to what a stand-in for the backbone hands it.
    """
    hidden, name = output[0], model.base_model_prefix
    backbone = getattr(model, name)

    def one(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        setattr(model, name, _Given(type(output)(last_hidden_state=states)))
        try:
            with model.iisft_clock.again():
                return forward(labels=targets, shift_labels=targets, num_items_in_batch=count).loss
        finally:
            setattr(model, name, backbone)

    total: torch.Tensor | None = None
    for start in range(0, len(keep), size):
        part = hidden[:, keep[start : start + size], :]
        targets = labels[:, start : start + size].contiguous()
        loss = checkpoint(one, part, targets, use_reentrant=False)
        total = loss if total is None else total + loss
    return total


def step_class(base: Any) -> Any:
    """A model class whose training step is spent as its config says."""

    class Stepping(base):
        iisft_layers_kept = 0
        iisft_clock: Clock | None = None
        # (positions with logits, positions) of the last training forward
        iisft_positions: tuple[int, int] | None = None

        def _set_gradient_checkpointing(
            self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint
        ) -> None:
            super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)
            kept = getattr(self.config, LAYERS_KEPT_KEY, 0)
            again = enable and (kept or getattr(self.config, "num_kv_shared_layers", 0))
            self.iisft_layers_kept = keep_products(self, kept) if again else 0

        # the trainer reads from the signature which columns and losses a model takes
        @wraps(base.forward)
        def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
            stock = partial(super().forward)
            if not (self.training and torch.is_grad_enabled()) or labels is None:
                return stock(*args, labels=labels, **kwargs)
            if self.iisft_clock is None:
                self.iisft_clock = attach(self, _checkpointed(self), labels.device)
            self.iisft_clock.enter(FORWARD)
            output = self._step(stock, *args, labels=labels, **kwargs)
            self.iisft_clock.enter(BACKWARD)
            return output

        def _step(self, stock: Any, *args: Any, labels: torch.Tensor, **kwargs: Any) -> Any:
            self.iisft_positions = (labels.shape[-1], labels.shape[-1])
            some = getattr(self.config, LOGITS_KEY, None) == TRAINED
            if not some or (found := trained_positions(labels)) is None:
                return stock(*args, labels=labels, **kwargs)
            keep, targets = found
            self.iisft_positions = (len(keep), labels.shape[-1])
            size = getattr(self.config, LOGITS_CHUNK_KEY, 0)
            count = kwargs.get("num_items_in_batch")
            # a mean over chunks is not the mean over all of them
            if not size or len(keep) <= size or count is None:
                return stock(
                    *args, labels=labels, logits_to_keep=keep, shift_labels=targets, **kwargs
                )
            del kwargs["num_items_in_batch"]
            output = getattr(self, self.base_model_prefix)(*args, **kwargs)
            loss = _loss_in_chunks(self, stock, output, keep, targets, size, count)
            return CausalLMOutputWithPast(loss=loss)

    return Stepping
