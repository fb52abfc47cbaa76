"""The modelling file in every view: the stock architecture and a proof of what it computes.

One file serves every architecture. The view's config.json names `modeling_iisft.<Architecture>`,
transformers asks this module for that name, and `__getattr__` below answers with a subclass of the
stock class. The config's key `iisft_arithmetic` chooses the arithmetic:

native
    The stock computation, untouched.
float32
    Weights stay as they are stored (bfloat16, float16); each product casts its weight to float32,
    in forward and again in backward. Widening is exact, so the results are bit for bit those of
    float32 weights.

In both cases each rank writes one line about its first training forward to stdout: `iisft-observed
{json}`, with the value of IISFT_PROOF before the JSON where that variable is set.
"""

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# transformers copies only the files that this one itself imports (dynamic_module_utils.py)
from .attention_iisft import choose
from .clock_iisft import Rehearsal, Spent
from .constants_iisft import (
    ARITHMETIC_KEY,
    ARITHMETICS,
    FLOAT32,
    KEPT_FLOAT32_KEY,
    LEFT_OUT_KEY,
    NAMES_KEY,
)
from .products_iisft import dispatched
from .step_iisft import frozen_linear, step_class
from .stopping_iisft import install
from .trackers_iisft import Introduce
from .witness_iisft import LOADED, Witness, loading_report

# a view of a model with its own, trusted code imports that code's class under this name
TRUSTED: Any = None


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
        if torch.is_autocast_enabled(x.device.type):
            # nobody asked for it: computed as it says, so that the proof can tell what ran
            return functional.linear(x, _float32(weight), _float32(bias))
        return frozen_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None
        # exactly the call that autograd makes for a linear layer, for the same bits
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
        # Gemma's own forward would round it to the weight's dtype
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


class ExactConv1d(nn.Conv1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, _float32(self.weight), _float32(self.bias))


EXACT = {
    nn.Linear: ExactLinear,
    nn.Embedding: ExactEmbedding,
    nn.LayerNorm: ExactLayerNorm,
    nn.Conv1d: ExactConv1d,
}


def make_exact(model: nn.Module) -> None:
    """Let every module of a stock model compute in float32 over its stored weights.

    Raises:
        NotImplementedError: a module multiplies by weights in its own way (experts,
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


def use_torch_delta_rule(model: nn.Module) -> None:
    """Let gated delta layers compute with transformers' own torch functions.

    The kernels that take their place where they are installed refuse float32
    (flash-linear-attention) or multiply by the convolution's stored weight (causal-conv1d).
    """
    for module in model.modules():
        if hasattr(module, "chunk_gated_delta_rule"):
            own: Any = sys.modules[type(module).__module__]
            module.causal_conv1d_fn = None
            module.causal_conv1d_update = partial(
                _update_in_float32, own.torch_causal_conv1d_update
            )
            module.chunk_gated_delta_rule = own.torch_chunk_gated_delta_rule
            module.recurrent_gated_delta_rule = own.torch_recurrent_gated_delta_rule


def _leave_out(model: Any, names: list[str]) -> None:
    """Let transformers' loading report pass over what the files hold besides this model."""
    known = model._keys_to_ignore_on_load_unexpected or []
    model._keys_to_ignore_on_load_unexpected = [*known, *names]


def _keep_float32(model: Any, names: Iterable[str]) -> None:
    """Let transformers load these parameters in float32, as they are stored."""
    model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), *names}


def _update_in_float32(
    update: Any, x: torch.Tensor, state: torch.Tensor, weight: torch.Tensor, bias: Any, *more: Any
) -> Any:
    return update(x, state, _float32(weight), _float32(bias), *more)


def _is_scaled_embedding(module: nn.Module) -> bool:
    return type(module).__name__.endswith("TextScaledWordEmbedding") and hasattr(
        module, "scalar_embed_scale"
    )


def _exact_class(exact: type, stock: type) -> type:
    # transformers and LLaMA-Factory choose by class name and isinstance: both must still hold
    return type(stock.__name__, (exact, stock), {"__module__": stock.__module__})


def keep_the_draw() -> None:
    """Let fresh adapters of exact layers start from the float32 numbers that were drawn.

    peft rounds them to the dtype of the layer's weight before they become float32 again
    (BaseTunerLayer._move_adapter_to_device_of_base_layer, 0.18), so that a run over stored weights
    would start elsewhere than one over float32 weights. Patched in this process alone.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    stock = BaseTunerLayer._move_adapter_to_device_of_base_layer
    if getattr(stock, "keeps_the_draw", False):
        return

    def move(self: Any, adapter_name: str, device: torch.device | None = None) -> None:
        drawn = []
        if isinstance(self.get_base_layer(), tuple(EXACT.values())):
            layers = [getattr(self, name, None) for name in self.adapter_layer_names]
            drawn = [
                (parameter, parameter.data)
                for layer in layers
                if isinstance(layer, nn.ModuleDict) and adapter_name in layer
                for parameter in layer[adapter_name].parameters()
            ]
        stock(self, adapter_name, device)
        for parameter, data in drawn:
            parameter.data = data.to(parameter.device)

    move.keeps_the_draw = True  # type: ignore[attr-defined]
    BaseTunerLayer._move_adapter_to_device_of_base_layer = move


def __getattr__(name: str) -> type:
    """The stock class of that name with a witness and, if the config says so, made exact."""
    base: Any = TRUSTED if TRUSTED is not None and TRUSTED.__name__ == name else None
    if TRUSTED is None and name[:1].isupper():
        base = getattr(transformers, name, None)
    if base is None:
        raise AttributeError(name)

    stepping: Any = step_class(base)

    class Observed(stepping):
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
            choose(config)
            super().__init__(config, *inputs, **kwargs)
            if left_out := getattr(config, LEFT_OUT_KEY, None):
                _leave_out(self, left_out)
            _keep_float32(self, getattr(config, KEPT_FLOAT32_KEY, ()))
            if arithmetic == FLOAT32 or getattr(config, "dtype", None) == torch.float32:
                use_torch_delta_rule(self)
            if arithmetic == FLOAT32:
                make_exact(self)
                keep_the_draw()
            Witness(self, arithmetic, None if TRUSTED is None else dispatched)
            install(Spent, Rehearsal, Introduce)

        @classmethod
        def from_pretrained(cls, *inputs: Any, **kwargs: Any) -> Any:
            asked = kwargs.pop("output_loading_info", False)
            if names := getattr(kwargs.get("config"), NAMES_KEY, None):
                kwargs["key_mapping"] = names
            model, info = super().from_pretrained(*inputs, output_loading_info=True, **kwargs)
            setattr(model, LOADED, loading_report(info))
            return (model, info) if asked else model

    Observed.__name__ = Observed.__qualname__ = name
    # transformers reads the source of a class's module to learn which kernels it may use
    Observed.__module__ = base.__module__
    return Observed
