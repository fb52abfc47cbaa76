"""What a view's model computes, seen in its first training forward.

Lies beside the modelling file in every view.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .attention_iisft import attended
from .constants_iisft import EAGER_BLOCKS, PROOF_MARK
from .stopping_iisft import say

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]
LOADED = "_iisft_loaded"  # of a model that came from files: transformers' report about them
_NAMES = 3  # of tensors in a proof, whose line is short
_PRODUCTS = frozenset(
    {
        "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm",
        "mv", "dot", "einsum", "tensordot", "bilinear", "conv1d", "conv2d", "grouped_mm",
        "_grouped_mm", "frozen_linear", "scaled_dot_product_attention",
        "multi_head_attention_forward",
    }
)  # fmt: skip


class Products(TorchFunctionMode):
    """Counts every product of a forward by the dtype in which it answers, and what attention is
    made of, whatever module it stands in.

    It looks at torch's Python functions only: what they do and which kernels they choose stays as
    it is, to the last bit (a TorchDispatchMode would change that).
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[str] = Counter()
        self.fused = self.softmaxes = self.caps = self.blocks = 0
        self.left_out = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").removesuffix(".default")
        if name == EAGER_BLOCKS:
            return self._look_inside(func, *args)
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple) and result else result
        if isinstance(first, torch.Tensor):
            if name in _PRODUCTS and first.is_floating_point():
                self.dtypes[plain(first.dtype)] += 1
            if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
                self.fused += 1
            elif first.dim() >= 4 and name == "softmax":  # a router's has two dimensions
                self.softmaxes += 1
            elif first.dim() >= 4 and name in ("tanh", "tanh_"):
                self.caps += 1
        return result

    def _look_inside(self, operation: Any, *args: Any) -> Any:
        """Attention in blocks is one operation: of the first layer, what it is made of is done once
        more where it can be seen, and whether it leaves out keys that may be.
        """
        result = operation(*args)
        self.blocks += 1
        if self.blocks == 1:
            mask, causal = args[3], args[-1]
            if causal:
                seen = mask > torch.finfo(mask.dtype).min / 2
                self.left_out = bool(seen.triu(1).any())
            softmaxes = self.softmaxes
            with self:
                again = attended(*args)
            self.softmaxes = softmaxes
            self.blocks = 1 if torch.equal(again, result) else 0
        return result

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
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    real = seen.any(dim=(1, 3))
    number = starts.cumsum(dim=-1)
    own = (number[:, None, :, None] == number[:, None, None, :]).tril()
    across = seen & ~own
    hidden = own & ~seen & real[:, None, :, None]
    counts = {"rows": starts & real, "across": across, "hidden": hidden}
    return found | {name: int(pairs.sum()) for name, pairs in counts.items()}


def first_tokens(ids: Any) -> dict[str, Any]:
    """Shape and digest of the token ids that the model gets first, each as eight bytes."""
    if not isinstance(ids, torch.Tensor):
        return {"first_batch": None}
    numbers = ids.detach().to("cpu", torch.int64).contiguous()
    digest = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16]
    return {"first_batch": {"shape": list(ids.shape), "sha256": digest}}


def loading_report(info: Any) -> dict[str, Any]:
    """How many tensors transformers had to invent, to leave out, or to replace for their shape."""
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "mismatched": sorted(key[0] for key in info["mismatched_keys"]),
    }
    return {name: [len(keys), *keys[:_NAMES]] for name, keys in found.items()}


def adapted(model: nn.Module) -> dict[str, int]:
    """How many modules of each name have an adapter."""
    names = Counter(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    )
    return dict(sorted(names.items()))


class Witness:
    """Looks at one training forward of the backbone and writes what it saw; its hooks are gone
    afterwards.

    The hooks sit on the backbone because peft calls the top module's `forward` directly, past any
    hook. The inner layers are looked up only then, because quantizers and peft replace modules
    after `__init__`.
    """

    def __init__(self, model: Any, arithmetic: str) -> None:
        self.model, self.arithmetic = model, arithmetic
        self.seen: dict[str, Any] = {}
        self.inner: list[Any] = []
        self.products: Products | None = None
        self.positions: Any = None
        self.mask: Any = None
        backbone = getattr(model, model.base_model_prefix)
        self.outer = [
            backbone.register_forward_pre_hook(self._start, with_kwargs=True),
            backbone.register_forward_hook(self._finish, always_call=True),
        ]

    def _start(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._remove(self.inner)  # left over when the forward before this one did not reach its end
        self.seen = {}
        if not (backbone.training and torch.is_grad_enabled()):
            return
        self.seen = {"attention_dtype": None, "linear_dtype": None}
        self.seen |= first_tokens(args[0] if args else kwargs.get("input_ids"))
        self.positions, self.mask = kwargs.get("position_ids"), None
        attention, linear = first_attention(backbone)
        if attention is not None and self.positions is not None:
            hook = attention.register_forward_pre_hook(self._keep_mask, with_kwargs=True)
            self.inner.append(hook)
        for key, module in (("attention_dtype", attention), ("linear_dtype", linear)):
            if module is not None:
                self.inner.append(module.register_forward_hook(self._note(key)))
        self.products = Products()
        self.products.__enter__()

    def _keep_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mask = kwargs.get("attention_mask")

    def _note(self, key: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            # bitsandbytes casts its result back to the input's dtype, but multiplies in
            # compute_dtype
            self.seen[key] = plain(getattr(module, "compute_dtype", None) or tensor.dtype)

        return hook

    def _finish(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.products is not None:
            self.products.__exit__(None, None, None)
        products, self.products = self.products, None
        if not self.seen or output is None:  # it raised
            return
        self._remove(self.inner)
        self._remove(self.outer)
        about = describe(self.model, self.arithmetic, output[0].device)
        assert products is not None
        about["packed"] = packed_rows(self.positions, self.mask)
        self.positions = self.mask = None
        say(PROOF_MARK, {**about, **self.seen, **products.as_json()})

    @staticmethod
    def _remove(handles: list[Any]) -> None:
        for handle in handles:
            handle.remove()
        handles.clear()


def first_attention(backbone: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The first attention module that holds a frozen linear layer, and that layer.

    Or nothing twice.
    """
    for attention in backbone.modules():
        if "Attention" in type(attention).__name__:
            for module in attention.modules():
                if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                    return attention, module
    return None, None


def describe(model: Any, arithmetic: str | None, device: torch.device) -> dict[str, Any]:
    """Everything that is known without looking at a forward."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    autocast = torch.is_autocast_enabled(device.type)
    return {
        "rank": torch.distributed.get_rank() if distributed else 0,
        "world_size": torch.distributed.get_world_size() if distributed else 1,
        "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
        "class": type(model).__name__,
        "arithmetic": arithmetic,
        "weights": count_weights(model),
        "trainable_parameters": sum(_size(p) for p in model.parameters() if p.requires_grad),
        "autocast": plain(torch.get_autocast_dtype(device.type)) if autocast else None,
        "attention": model.config._attn_implementation,
        "softcap": getattr(model.config, "attn_logit_softcapping", None),
        "loaded": getattr(model, LOADED, None),
        "adapted": adapted(model),
        "device": str(device),
        "float32_matmul_precision": _matmul_precision(),
        "layers_kept": model.iisft_layers_kept,
        "logit_positions": model.iisft_positions,
    }


def count_weights(model: nn.Module) -> dict[str, int]:
    """Frozen base parameters by dtype.

    4-bit weights count as nf4, with the number they stand for.
    """
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and "lora_" not in name:
            kind = plain(parameter.dtype)
            if type(parameter).__name__ == "Params4bit":
                kind = getattr(parameter, "quant_type", "nf4")
            counts[kind] = counts.get(kind, 0) + _size(parameter)
    return counts


def _size(parameter: Any) -> int:
    if type(parameter).__name__ == "Params4bit":
        state = getattr(parameter, "quant_state", None)
        packed = parameter.numel() * parameter.element_size() * 2
        return packed if state is None else int(state.shape.numel())
    # ZeRO-3 leaves an empty tensor behind
    return getattr(parameter, "ds_numel", None) or parameter.numel()


def _matmul_precision() -> str:
    """The legacy getter's word.

    It raises once anyone has used the newer setting, which then decides.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
