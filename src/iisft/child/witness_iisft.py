"""What a view's model computes, seen in its first training forward.

Lies beside the modelling file in every view.
"""

import hashlib
import inspect
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .constants_iisft import GPU_VARIABLES, PROOF_MARK, bus_of
from .products_iisft import Products, packed_rows, windows
from .stopping_iisft import say

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]
LOADED = "_iisft_loaded"  # of a model that came from files: transformers' report about them
_NAMES = 3  # of tensors in a proof, whose line is short
_ROWS = 16  # whose digests stand in a proof


def first_tokens(ids: Any, mask: Any) -> dict[str, Any]:
    """Shape and digest of the token ids that the model gets first, each as eight bytes; of its
    first rows length and digest without the padding, where the mask tells that.
    """
    if not isinstance(ids, torch.Tensor):
        return {"first_batch": None}
    numbers = ids.detach().to("cpu", torch.int64).contiguous()
    about = {"shape": list(ids.shape), "sha256": _digest(numbers), "rows": None}
    if mask is None:
        rows = list(numbers)
    elif isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        real = mask.detach().to("cpu", torch.int64)
        # packed rows count up, and padding stands at the end
        plain_mask = int(real.max()) <= 1 and bool((real.diff(dim=1) <= 0).all())
        rows = [row[m > 0] for row, m in zip(numbers, real, strict=True)] if plain_mask else []
    else:
        rows = []
    about["rows"] = [[len(row), _digest(row)] for row in rows[:_ROWS]] or None
    return {"first_batch": about}


def _digest(numbers: torch.Tensor) -> str:
    return hashlib.sha256(numbers.contiguous().numpy().tobytes()).hexdigest()[:16]


def longest(rows: list[list[Any]] | None) -> tuple[int, int] | None:
    """Place and length of the longest row."""
    if not rows:
        return None
    length, place = max((row[0], -place) for place, row in enumerate(rows))
    return -place, length


def reached(config: Any, products: Products) -> dict[str, Any]:
    """What attention looked at beside what the config says: [window, keys of the longest row's last
    token, keys after the one in its middle] of each layer, where all of that is known.
    """
    configured, reaches = windows(config), products.reaches
    if configured is None or reaches is None or products.place is None:
        return {"reach": None}
    if len(configured) != len(reaches):
        return {"reach": None}
    seen = Counter((window, *reach) for window, reach in zip(configured, reaches, strict=True))
    layers = [[*one, count] for one, count in seen.items()]
    return {"reach": {"tokens": products.place[1], "layers": layers}}


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


def loaded_adapter(model: nn.Module) -> str | None:
    """Digest of the LoRA matrices as float32, as iisft makes it of an adapter's file; None where
    parts of them are elsewhere.
    """
    digest = hashlib.sha256()
    named = {name.replace(".default", ""): one for name, one in model.named_parameters()}
    for name in sorted(name for name in named if ".lora_A." in name or ".lora_B." in name):
        values = named[name].detach()
        if hasattr(named[name], "ds_numel") or hasattr(values, "device_mesh"):
            return None  # sharded by DeepSpeed or FSDP
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()[:16]


class Witness:
    """Looks at one training forward of the backbone and writes what it saw; its hooks are gone
    afterwards.

    The hooks sit on the backbone because peft calls the top module's `forward` directly, past any
    hook. The inner layers are looked up only then, because quantizers and peft replace modules
    after `__init__`.
    """

    def __init__(
        self,
        model: Any,
        arithmetic: str,
        dispatched: Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        """`dispatched` looks at a forward of a class that iisft does not know."""
        self.model, self.arithmetic, self.dispatched = model, arithmetic, dispatched
        self.seen: dict[str, Any] = {}
        self.inner: list[Any] = []
        self.products: Products | None = None
        self.kernels: dict[str, Any] = {}
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
        names = inspect.signature(backbone.forward).parameters
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        self.seen |= first_tokens(given.get("input_ids"), given.get("attention_mask"))
        if self.dispatched is not None:
            self.kernels = self.dispatched(backbone, args, kwargs)
        attention, linear = first_attention(backbone)
        self.positions, self.mask = given.get("position_ids"), None
        if attention is not None and self.positions is not None:
            hook = attention.register_forward_pre_hook(self._keep_mask, with_kwargs=True)
            self.inner.append(hook)
        for key, module in (("attention_dtype", attention), ("linear_dtype", linear)):
            if module is not None:
                self.inner.append(module.register_forward_hook(self._note(key)))
        self.products = Products(longest((self.seen["first_batch"] or {}).get("rows")))
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
        about["adapter"] = loaded_adapter(self.model)
        self.positions = self.mask = None
        reach = reached(self.model.config, products)
        say(PROOF_MARK, {**about, **self.seen, **products.as_json(), **reach, **self.kernels})

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
        "cards": seen_cards() if device.type == "cuda" else None,
        "float32_matmul_precision": _matmul_precision(),
        "layers_kept": model.iisft_layers_kept,
        "logit_positions": model.iisft_positions,
    }


def seen_cards() -> dict[str, Any]:
    """The GPUs that this process sees, by where they are plugged in ("" in a torch that does not
    tell), and the variables that choose them.
    """
    variables = {name: os.environ[name] for name in GPU_VARIABLES if name in os.environ}
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {"variables": variables, "buses": [bus_of(about) for about in found]}


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
