"""How a training step spends memory and time: which layers recompute, and where logits are made.

A checkpointed layer computes everything twice. `keep_products` lets the first layers keep the
outputs of their big products (an inner dimension of at least SMALLEST_INNER: the frozen projections
and LoRA's A, not its B, whose inner dimension is the rank) and recompute only what is cheap: norms,
activations, attention, dropout. Dropout draws the same mask again, since checkpoint restores the
generator, so that losses and gradients are those of full recomputation, bit for bit.

`trained_logits` computes the head and the loss only at positions whose next token has a label.
"""

import contextlib
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

SMALLEST_INNER = 256
IGNORED = -100
# Positions whose logits are made at once: beyond them the vocabulary's logits would be the peak.
CHUNK = 1024


def _frozen_linear(x, weight, bias):
    bias = None if bias is None else bias.to(torch.float32)
    return functional.linear(x, weight.to(torch.float32), bias)


def _operation():
    """x @ w.T + b in float32 as one operation of torch's dispatcher.

    Selective checkpointing sees dispatched operations alone: were the cast one of its own, it would
    be repeated in the backward pass for a product that is kept. The same file is a module of another
    name in each view, so the operation may be there already.
    """
    if not hasattr(torch.ops.iisft, "frozen_linear"):
        schema = "frozen_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
        _LIBRARY.define(schema)
        _LIBRARY.impl("frozen_linear", _frozen_linear, "CompositeExplicitAutograd")
    return torch.ops.iisft.frozen_linear.default


_LIBRARY = torch.library.Library("iisft", "FRAGMENT")
frozen_linear = _operation()

_PRODUCTS = {frozen_linear: 0, torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}


def _policy(context, operation, *args, **kwargs):
    place = _PRODUCTS.get(operation)
    if place is not None and args[place].shape[-1] >= SMALLEST_INNER:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def keep_products(model, layers_kept):
    """Give the first `layers_kept` checkpointed layers of a model selective checkpointing.

    The others keep recomputing everything, by torch's non-reentrant checkpointing as well, so that
    all layers are of one kind. LLaMA-Factory's wrapper has set their function before
    (model_utils/checkpointing.py); it is for reentrant checkpointing, which takes no context_fn.

    Returns: how many layers keep their products.
    """
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", 0)]
    layers = [layer for layer in layers if hasattr(layer, "_gradient_checkpointing_func")]
    layers = [layer for layer in layers if layer is not model and not _holds(layer, layers)]
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    for index, layer in enumerate(layers):
        more = {"context_fn": contexts} if index < layers_kept else {}
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, **more)
    return min(layers_kept, len(layers))


def _holds(module, others):
    return any(inner is not module and inner in others for inner in module.modules())


def trained_positions(labels):
    """The positions where any row's next token has a label, and those labels; None where none has.

    Args:
        labels: token ids of shape (rows, length), IGNORED where nothing is trained.
    """
    shifted = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    keep = (shifted != IGNORED).any(dim=0).nonzero().squeeze(-1)
    return (keep, shifted[:, keep].contiguous()) if len(keep) else None


class _Given(nn.Module):
    """Stands in for a backbone whose output is known."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *args, **kwargs):
        return self.output


def loss_in_chunks(model, forward, output, keep, labels, **kwargs):
    """The loss over `keep`, made CHUNK positions at a time, each again in the backward pass.

    `forward` is the stock class's forward; it applies head, soft cap and loss to hidden states that
    a stand-in for the backbone hands it.
    """
    hidden, name = output[0], model.base_model_prefix
    backbone = getattr(model, name)

    def one(states, targets):
        given = type(output)(last_hidden_state=states)
        setattr(model, name, _Given(given))
        try:
            return forward(model, labels=targets, shift_labels=targets, **kwargs).loss
        finally:
            setattr(model, name, backbone)

    total = None
    for start in range(0, len(keep), CHUNK):
        part = hidden[:, keep[start : start + CHUNK], :]
        loss = checkpoint(one, part, labels[:, start : start + CHUNK], use_reentrant=False)
        total = loss if total is None else total + loss
    return total
