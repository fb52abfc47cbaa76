"""The modelling file that iisft puts into every view: the stock architecture and a proof of what it
computes.

One file serves every architecture. The view's config.json names `modeling_iisft.<Architecture>`,
transformers asks this module for that name, and `__getattr__` below answers with a subclass of the
stock class. The config's key `iisft_arithmetic` chooses the arithmetic:

native
    The stock computation, untouched.
float32
    Weights stay as they are stored (bfloat16, float16); each product casts its weight to float32,
    in forward and again in backward. Casting up is exact, so the results are bit for bit those of
    float32 weights.

Either way each rank writes one line about its first training forward to stdout: `iisft-observed
{json}`, with the value of IISFT_PROOF before the JSON where that variable is set.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .constants_iisft import ARITHMETIC_KEY, ARITHMETICS, FLOAT32, PROOF_MARK
from .stopping_iisft import install, say

# a view of a model with its own, trusted code imports that code's class under this name
TRUSTED: Any = None
Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


def _float32(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else tensor.to(torch.float32)


class _FrozenProduct(torch.autograd.Function):
    """x @ w.T + b with the frozen w cast for the moment of a product.

    Autograd itself would keep the cast.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(x, _float32(weight), _float32(bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None
        # the very call that autograd makes for a linear layer, so that the bits are the same
        product = gradient.reshape(-1, gradient.shape[-1]).mm(_float32(weight))
        return product.view(*gradient.shape[:-1], weight.shape[1]), None, None


class ExactLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if any(p is not None and p.requires_grad for p in (self.weight, self.bias)):
            return functional.linear(x, _float32(self.weight), _float32(self.bias))
        return _FrozenProduct.apply(x, self.weight, self.bias)


class ExactEmbedding(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = _float32(nn.Embedding.forward(self, ids))
        # Gemma's own forward rounds it to the weight's dtype
        scale = getattr(self, "scalar_embed_scale", None)
        return (
            rows
            if scale is None
            else rows * torch.tensor(scale, dtype=torch.float32, device=rows.device)
        )


class ExactLayerNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(
            x, self.normalized_shape, _float32(self.weight), _float32(self.bias), self.eps
        )


EXACT = {nn.Linear: ExactLinear, nn.Embedding: ExactEmbedding, nn.LayerNorm: ExactLayerNorm}


def make_exact(model: nn.Module) -> None:
    """Let every module of a stock model compute in float32 over its stored weights.

    Raises:
        NotImplementedError: a module multiplies by weights in a way of its own (experts,
            convolutions), so that float32 arithmetic can't be promised.
    """
    for module in model.modules():
        stock = next((known for known in EXACT if isinstance(module, known)), None)
        if stock is not None and (
            type(module).forward is stock.forward or _is_scaled_embedding(module)
        ):
            module.__class__ = _exact_class(EXACT[stock], type(module))
        elif stock is not None or any(p.dim() > 1 for p in module.parameters(recurse=False)):
            raise NotImplementedError(
                f"float32 arithmetic over stored weights does not know {type(module).__name__}; "
                "set weights: fp32 in the preset"
            )


def _is_scaled_embedding(module: nn.Module) -> bool:
    return type(module).__name__.endswith("TextScaledWordEmbedding") and hasattr(
        module, "scalar_embed_scale"
    )


def _exact_class(exact: type, stock: type) -> type:
    # transformers and LLaMA-Factory choose by class name and by isinstance: both still hold
    return type(stock.__name__, (exact, stock), {"__module__": stock.__module__})


class Witness:
    """Looks at one training forward of the backbone and writes what it saw; its hooks are gone
    afterwards.

    The hooks sit on the backbone because peft calls the top module's `forward` directly, past any
    hook. The inner layers are looked up only then, because quantizers and peft replace modules
    after `__init__`.
    """

    def __init__(self, model: Any, arithmetic: str) -> None:
        self.model, self.arithmetic = model, arithmetic
        self.seen: dict[str, str | None] = {}
        self.inner: list[Any] = []
        backbone = getattr(model, model.base_model_prefix)
        self.outer = [
            backbone.register_forward_pre_hook(self._start),
            backbone.register_forward_hook(self._finish),
        ]

    def _start(self, backbone: nn.Module, args: tuple[Any, ...]) -> None:
        self._remove(self.inner)  # left over when the forward before this one did not reach its end
        self.seen = {}
        if not (backbone.training and torch.is_grad_enabled()):
            return
        self.seen = {"attention_dtype": None, "linear_dtype": None}
        attention, linear = first_attention(backbone)
        for key, module in (("attention_dtype", attention), ("linear_dtype", linear)):
            if module is not None:
                self.inner.append(module.register_forward_hook(self._note(key)))

    def _note(self, key: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            # bitsandbytes casts its result back to the input's dtype, but multiplies in
            # compute_dtype
            self.seen[key] = plain(getattr(module, "compute_dtype", None) or tensor.dtype)

        return hook

    def _finish(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.seen:
            return
        self._remove(self.inner)
        self._remove(self.outer)
        hidden = output[0]
        say(PROOF_MARK, {**describe(self.model, self.arithmetic, hidden.device), **self.seen})

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
    """Everything but the two output dtypes."""
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
        "device": str(device),
        "float32_matmul_precision": _matmul_precision(),
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


def __getattr__(name: str) -> type:
    """The stock class of that name, made a witness and, where the config says so, exact."""
    base: Any = TRUSTED if TRUSTED is not None and TRUSTED.__name__ == name else None
    if TRUSTED is None and name[:1].isupper():
        base = getattr(transformers, name, None)
    if base is None:
        raise AttributeError(name)

    class Observed(base):
        def __init__(self, config: Any, *inputs: Any, **kwargs: Any) -> None:
            arithmetic = getattr(config, ARITHMETIC_KEY, None)
            if arithmetic not in ARITHMETICS:
                raise ValueError(
                    f"config.json: {ARITHMETIC_KEY} is {arithmetic!r}, not one of {ARITHMETICS}"
                )
            if not isinstance(config, base.config_class):
                raise ValueError(
                    f"config.json: model_type {config.model_type} does not belong to {name}"
                )
            super().__init__(config, *inputs, **kwargs)
            if arithmetic == FLOAT32:
                make_exact(self)
            Witness(self, arithmetic)
            install()

    Observed.__name__ = Observed.__qualname__ = name
    # transformers reads the source of a class's module to learn which attention and expert kernels
    # it may use
    Observed.__module__ = base.__module__
    return Observed
