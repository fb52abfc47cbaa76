"""Attention in blocks of queries, for GPUs without a fused kernel.

transformers' eager attention holds scores and probabilities of every head for all pairs of
positions. Here a block of queries meets all keys that it may see, its softmax is over whole rows,
and the backward pass computes the block again, so that memory grows with the length and not with
its square. In float32 each step is that of eager_attention_forward; only sums over fewer zeros, and
over queries block by block, round otherwise in the last digit. Half precision is computed in
float32 inside, as by torch's math kernel: q.k of Qwen2.x overflows in fp16 (transformers PR 33317).

With a causal mask, and all masks of the architectures here are, the keys behind a block are left
out: half of the work. The witness looks at the first mask and tells whether it was causal.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from .constants_iisft import ATTENTION_KEY, EAGER_BLOCKS, QUERY_BLOCK

Sizes = Iterator[tuple[slice, slice]]


def _blocks(queries: int, keys: int, causal: bool) -> Sizes:
    """Queries of each block, and the keys that they may see."""
    for start in range(0, queries, QUERY_BLOCK):
        end = min(queries, start + QUERY_BLOCK)
        yield slice(start, end), slice(0, end if causal else keys)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32).contiguous()


def _grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    """In float32, the heads of a group below each other: they share their keys."""
    batch, heads, length, size = x.shape
    return x.to(torch.float32).reshape(batch, groups, heads // groups * length, size)


def _scores(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Probabilities of a block, and tanh of the soft cap."""
    scores, capped = torch.matmul(query, key.transpose(2, 3)).mul_(scaling), None
    if softcap is not None:
        capped = scores.div_(softcap).tanh_()
        scores = capped * softcap
    if mask is not None:
        scores.view(*scores.shape[:2], -1, *mask.shape[2:]).add_(mask[:, :, None])
    return torch.softmax(scores, dim=-1), capped


def attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> torch.Tensor:
    """The output, as (batch, length, heads, size)."""
    batch, heads, length, _ = query.shape
    out = value.new_empty(batch, length, heads, value.shape[-1])
    key, value = _wide(key), _wide(value)
    for rows, seen in _blocks(length, key.shape[2], causal):
        block = _grouped(query[:, :, rows], key.shape[1])
        part = None if mask is None else mask[:, :, rows, seen]
        weights, _ = _scores(block, key[:, :, seen], part, scaling, softcap)
        product = torch.matmul(weights, value[:, :, seen])
        out[:, rows] = product.view(batch, heads, -1, value.shape[-1]).transpose(1, 2)
    return out


def _operation() -> Any:
    """`attended` as one operation of torch's dispatcher, which selective checkpointing can keep.

    The same file is a module of another name in each view, so it may be there already.
    """
    if not hasattr(torch.ops.iisft, EAGER_BLOCKS):
        _LIBRARY.define(
            f"{EAGER_BLOCKS}(Tensor query, Tensor key, Tensor value, Tensor? mask, float scaling, "
            "float? softcap, bool causal) -> Tensor"
        )
        _LIBRARY.impl(EAGER_BLOCKS, attended, "CompositeExplicitAutograd")
    return getattr(torch.ops.iisft, EAGER_BLOCKS).default


_LIBRARY = torch.library.Library("iisft", "FRAGMENT")
attend = _operation()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        ctx.save_for_backward(*given[:4])
        ctx.rest = given[4:]
        return attend(*given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        scaling, softcap, causal = ctx.rest
        kind, groups = query.dtype, key.shape[1]
        key, value = _wide(key), _wide(value)
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        for rows, seen in _blocks(query.shape[2], key.shape[2], causal):
            block = _grouped(query[:, :, rows], groups)
            part = None if mask is None else mask[:, :, rows, seen]
            weights, capped = _scores(block, key[:, :, seen], part, scaling, softcap)
            above = _grouped(gradient[:, rows].transpose(1, 2), groups)
            of_value[:, :, seen] += torch.matmul(weights.transpose(2, 3), above)
            of_scores = torch._softmax_backward_data(
                torch.matmul(above, value[:, :, seen].transpose(2, 3)), weights, -1, weights.dtype
            )
            del weights
            if capped is not None:
                of_scores = torch.ops.aten.tanh_backward(of_scores.mul_(softcap), capped)
                of_scores.div_(softcap)
                del capped
            of_scores.mul_(scaling)
            product = torch.matmul(of_scores, key[:, :, seen])
            of_query[:, :, rows] = product.view(*query.shape[:2], -1, query.shape[3])
            of_key[:, :, seen] += torch.matmul(of_scores.transpose(2, 3), block)
            del of_scores
        return of_query, of_key.to(kind), of_value.to(kind), *(None,) * 4


def eager_blocks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers; the mask is eager's.

    Raises:
        NotImplementedError: the model drops attention weights, or has sinks.
    """
    if dropout or kwargs.get("s_aux") is not None or hasattr(module, "sinks"):
        raise NotImplementedError(
            f"{EAGER_BLOCKS} knows neither dropout of attention weights nor attention sinks; "
            "set attention: eager in the preset"
        )
    if torch.is_autocast_enabled(query.device.type):
        half = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(half), key.to(half), value.to(half)
    causal = attention_mask is not None and query.shape[2] == key.shape[2]
    causal = causal and bool(getattr(module, "is_causal", False))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        out = _Attention.apply(query, key, value, attention_mask, scaling, softcap, causal)
    return out, None


def choose(config: Any) -> None:
    """Let a view's model compute its attention so where its config says so.

    LLaMA-Factory knows no other name for it than eager.
    """
    if getattr(config, ATTENTION_KEY, None) == EAGER_BLOCKS:
        register()
        if config._attn_implementation == "eager":
            config._attn_implementation = EAGER_BLOCKS


def register() -> None:
    """Let transformers know this attention, and that its masks are eager's."""
    AttentionInterface.register(EAGER_BLOCKS, eager_blocks)
    AttentionMaskInterface.register(EAGER_BLOCKS, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
