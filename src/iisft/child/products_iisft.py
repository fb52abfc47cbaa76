"""The products and the attention of one forward, in whatever module they stand.

Lies beside the modelling file in every view.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .attention_iisft import attended
from .constants_iisft import EAGER_BLOCKS

_FUSED = ("scaled_dot_product_attention", "multi_head_attention_forward")
_PRODUCTS = frozenset(
    {
        "linear", "frozen_linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm",
        "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "inner", "einsum", "tensordot",
        "chain_matmul", "linalg_multi_dot", "bilinear", "conv1d", "conv2d", "convolution",
        "grouped_mm", "_grouped_mm", "scaled_mm", "_scaled_mm", "_int_mm", *_FUSED,
    }
)  # fmt: skip
_FUSED_KERNELS = (
    "_scaled_dot_product", "_flash_attention", "_efficient_attention", "_safe_softmax"
)  # fmt: skip


class Products(TorchFunctionMode):
    """Counts every product of a forward by the dtype in which it answers, and what attention is
    made of.

    It looks at torch's Python functions only: what they do and which kernels they choose stays as
    it is, to the last bit (a TorchDispatchMode would change that).

    Args:
        place: row and length of the row whose attention is looked at; None: of no row.
    """

    def __init__(self, place: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.dtypes: Counter[str] = Counter()
        self.fused = self.softmaxes = self.caps = self.blocks = 0
        self.left_out = False
        self.place = place
        self.reaches: list[list[int]] | None = None if place is None else []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        if name == EAGER_BLOCKS:
            return self._look_inside(func, *args)
        result = func(*args, **kwargs)
        first = result[0] if isinstance(result, tuple) and result else result
        if isinstance(first, torch.Tensor):
            if name in _PRODUCTS and first.is_floating_point():
                self.dtypes[_plain(first.dtype)] += 1
            if name in _FUSED:
                self.fused += 1
                self._note_fused(name, args, kwargs)
            elif first.dim() == 4 and name == "softmax":  # a router's has two dimensions
                self.softmaxes += 1
                self._note(args[0] if args else kwargs.get("input"))
            elif first.dim() >= 4 and name in ("tanh", "tanh_"):
                self.caps += 1
        return result

    def _look_inside(self, operation: Any, *args: Any) -> Any:
        """Attention in blocks is one operation: of the first layer, what it is made of is done once
        more where it can be seen, and whether it leaves out keys that the mask lets through.
        """
        result = operation(*args)
        mask, causal = args[3], args[-1]
        self.blocks += 1
        if self.blocks == 1:
            self.left_out = causal and bool(_open(mask).triu(1).any())
            softmaxes, place, self.place = self.softmaxes, self.place, None
            with self:
                again = attended(*args)
            self.softmaxes, self.place = softmaxes, place
            self.blocks = int(torch.equal(again, result))
        self._note(mask)
        return result

    def _note_fused(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(
            zip(("query", "key", "value", "attn_mask", "p", "is_causal"), args, strict=False)
        )
        given |= kwargs
        if name != _FUSED[0]:
            self.reaches = None
        elif given.get("attn_mask") is not None:
            self._note(given["attn_mask"])
        elif self.reaches is not None and self.place is not None:
            length, queries = self.place[1], given["query"].shape[-2]
            ahead = [queries, queries - length // 2 - 1]
            self.reaches.append([length, 0] if given.get("is_causal") else ahead)

    def _note(self, scores: Any) -> None:
        """How many keys the last token of a row looks at, and how many later ones the one in its
        middle does, by a mask or by scores that were masked.
        """
        if self.reaches is None or self.place is None:
            return
        row, length = self.place
        known = isinstance(scores, torch.Tensor) and scores.dim() == 4
        known = known and (scores.dtype == torch.bool or scores.is_floating_point())
        if not known or scores.shape[-2] < length:
            self.reaches = None
            return
        one = scores[min(row, scores.shape[0] - 1), 0]
        last, middle = (_open(one[query]) for query in (length - 1, length // 2))
        self.reaches.append([int(last.sum()), int(middle[length // 2 + 1 :].sum())])

    def as_json(self) -> dict[str, Any]:
        return {
            "products": dict(self.dtypes),
            "kernels": {
                "sdpa": self.fused,
                "eager": self.softmaxes,
                EAGER_BLOCKS: self.blocks,
            },
            "capped": self.caps > 0,
            "left_out": self.left_out,
        }


def _open(scores: torch.Tensor) -> torch.Tensor:
    """Which keys a query may look at: a mask says it, or adds the dtype's lowest number."""
    return scores if scores.dtype == torch.bool else scores > torch.finfo(scores.dtype).min / 2


class Kernels(TorchDispatchMode):
    """Counts every product that reaches torch's dispatcher by its narrowest operand: nothing that
    is written with torch hides from it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[str] = Counter()
        self.fused = self.softmaxes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        fused = name.startswith(_FUSED_KERNELS)
        operands = [
            one.dtype for one in args if isinstance(one, torch.Tensor) and one.is_floating_point()
        ]
        if operands and (fused or name in _PRODUCTS):
            self.dtypes[_plain(min(operands, key=lambda dtype: dtype.itemsize))] += 1
        self.fused += fused
        self.softmaxes += name == "_softmax" and args[0].dim() == 4
        return result

    def as_json(self) -> dict[str, Any]:
        kernels = {"sdpa": self.fused, "eager": self.softmaxes}
        return {"products": dict(self.dtypes), "kernels": kernels}


def dispatched(
    backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What all products of a forward are, by one more forward whose answer is dropped.

    For a class that iisft does not know: a scripted function, or one with torch's overrides
    switched off, is seen here alone. Random numbers and buffers are put back, so that the real
    forward is as it would have been.
    """
    kernels = Kernels()
    with _unchanged(backbone), kernels:
        backbone.forward(*args, **kwargs)
    return kernels.as_json()


@contextlib.contextmanager
def _unchanged(backbone: nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in backbone.buffers()]
    cards = {parameter.device for parameter in backbone.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(card.index for card in cards)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def packed_rows(positions: Any, mask: Any) -> dict[str, Any] | None:
    """What is seen of rows that were packed into one: how many there are, whether positions start
    again with each, and the pairs of tokens whose mask is wrong. None where nobody gave positions.

    A row begins at each position 0; padding, which sees nothing, is left out.
    """
    if not isinstance(positions, torch.Tensor) or positions.dim() != 2:
        return None
    starts = positions == 0
    goes_on = starts[:, 1:] | (positions[:, 1:] == positions[:, :-1] + 1)
    found: dict[str, Any] = {"rows": 0, "restart": bool(goes_on.all() and starts[:, 0].all())}
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return found
    seen = _open(mask)
    real = seen.any(dim=(1, 3))
    number = starts.cumsum(dim=-1)
    own = (number[:, None, :, None] == number[:, None, None, :]).tril()
    across = seen & ~own
    hidden = own & ~seen & real[:, None, :, None]
    counts = {"rows": starts & real, "across": across, "hidden": hidden}
    return found | {name: int(pairs.sum()) for name, pairs in counts.items()}


def windows(config: Any) -> list[int | None] | None:
    """How many tokens each attention layer looks back at as the config says: None for all of them.

    None as a whole where layers are of a kind that has no such number.
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        # a key that the class does not know stays in the config, and means nothing
        known = window if hasattr(type(config), "sliding_window") else None
        return [known] * int(config.num_hidden_layers)
    table = {"full_attention": None, "sliding_attention": window}
    attends = [kind for kind in kinds if kind != "linear_attention"]
    return [table[kind] for kind in attends] if table.keys() >= set(attends) else None


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
