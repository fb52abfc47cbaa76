"""The model and inputs of a traced step, for trace_step.py: real classes, tensors without data."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint  # noqa: F401 - loaded before any mode is active

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Case = dict[str, Any]
STEP_KEYS = {
    "iisft_layers_kept": "layers_kept",
    "iisft_logits": "logits",
    "iisft_logits_chunk": "chunk",
}
KERNELS = ("math", "efficient", "flash")
real_dropout = functional.dropout


def cuda_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """The CPU composes dropout from a noise tensor of the input's dtype.

    CUDA keeps a mask of one byte per element.
    """
    if not training or p == 0.0:
        return input
    return torch.ops.aten.native_dropout(input, p, True)[0]


def _kernel(name: str) -> Callable[..., Any]:
    """An attention function for transformers that calls that kernel of torch on any device."""
    from transformers.integrations.sdpa_attention import repeat_kv

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        grouped = module.num_key_value_groups > 1
        if grouped and name == "efficient":
            key, value = (repeat_kv(states, module.num_key_value_groups) for states in (key, value))
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (
                states.to(torch.get_autocast_dtype("cpu")) for states in (query, key, value)
            )
        if name == "math":
            # scaled_dot_product_attention casts once and ends autocast
            with torch.autocast("cpu", enabled=False):
                output = torch.ops.aten._scaled_dot_product_attention_math(
                    query, key, value, None, dropout, True, scale=scaling, enable_gqa=grouped
                )[0]
        elif name == "efficient":
            output = torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, None, True, dropout, True, scale=scaling
            )[0]
        else:
            output = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropout, True, scale=scaling
            )[0]
        return output.transpose(1, 2).contiguous(), None

    return attention


def _step() -> Any:
    """child/step_iisft.py, by the package name under which it can import its neighbours."""
    if (package := str(Path(__file__).parents[1])) not in sys.path:
        sys.path.insert(0, package)
    from child import step_iisft

    return step_iisft


def own_operations() -> dict[str, Callable[..., Any]]:
    """The functions of iisft's own operations, by the names that torch gives them."""
    _step()
    from child import attention_iisft, step_iisft

    return {
        "iisft.frozen_linear.default": step_iisft._frozen_linear,
        "iisft.eager_blocks.default": attention_iisft.attended,
    }


def label_some(positions: int | None) -> None:
    """Let the step find so many positions to train; which ones, no fake tensor can tell."""

    def found(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(positions or 0), labels[:, :positions].contiguous()

    _step().trained_positions = found


def _registered(attention: str) -> str:
    """The name under which transformers finds the attention of this kind."""
    from child.attention_iisft import register
    from transformers import AttentionInterface

    if attention == "eager_blocks":
        register()
    elif attention != "eager":
        # transformers looks for flash attention's package by its name
        name = f"iisft_{KERNELS.index(attention)}"
        AttentionInterface.register(name, _kernel(attention))
        return name
    return attention


def build(case: Case) -> Any:
    """The model as LLaMA-Factory prepares it, on the meta device."""
    import transformers
    from llamafactory.hparams import FinetuningArguments, ModelArguments
    from llamafactory.model.adapter import init_adapter
    from llamafactory.model.model_utils.checkpointing import prepare_model_for_training

    step = _step()
    attention = _registered(case["attention"])
    values = {
        k: v for k, v in case["config"].items() if k not in ("auto_map", "quantization_config")
    }
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    config.use_cache = False
    for key, name in STEP_KEYS.items():
        if case.get(name):
            setattr(config, key, case[name])
    base = step.step_class(getattr(transformers, values["architectures"][0]))
    with torch.device("meta"):
        model = base._from_config(
            config, dtype=DTYPES[case["weights"]], attn_implementation=attention
        )
    model.tie_weights()
    if case["arithmetic"] == "float32":
        from child.modeling_iisft import make_exact

        make_exact(model)
    model_args = ModelArguments(
        model_name_or_path="traced", disable_gradient_checkpointing=not case["checkpointing"]
    )
    finetuning = FinetuningArguments(
        finetuning_type="lora", lora_rank=case["rank"], lora_alpha=case["rank"],
        lora_dropout=case["dropout"],
        lora_target=case["target"],
    )  # fmt: skip
    prepare_model_for_training(model, model_args)
    with torch.device("meta"):
        model = init_adapter(config, model, model_args, finetuning, is_trainable=True)
    for module in model.modules():
        if hasattr(module, "_update_linear_attn_mask"):
            # rows without padding need none, which no tensor without data can say
            module._update_linear_attn_mask = lambda mask, cache: None
    return model.train()


def shard(model: Any, fake_mode: FakeTensorMode, case: Case) -> None:
    """FSDP2 as accelerate sets it up: every decoder layer a group, the rest the root.

    Only this rank exists; torch's "fake" backend stands in for the others.
    """
    import torch.distributed as distributed
    import torch.distributed._tools.fake_collectives  # noqa: F401
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    ranks = case["ranks"]
    if distributed.is_initialized():
        distributed.destroy_process_group()
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mesh = init_device_mesh("cpu", (ranks,))
    half = DTYPES.get(case["autocast"])
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half, output_dtype=half)
    with fake_mode:
        groups = [
            module for module in model.modules() if type(module).__name__ in model._no_split_modules
        ]
        for module in (*groups, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)


def materialize(model: Any, fake_mode: FakeTensorMode) -> None:
    """Replace meta tensors by fake CPU ones; tied parameters stay one."""
    made: dict[torch.Tensor, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if tensor not in made:
            made[tensor] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                made[tensor] = torch.nn.Parameter(made[tensor], requires_grad=tensor.requires_grad)
        return made[tensor]

    with fake_mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update(
                    {name: fake(tensor) for name, tensor in tensors.items() if tensor is not None}
                )


def inputs_for(model: Any, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """A full batch without padding: the longest rows that cutoff_len allows."""
    batch, length = case["batch"], case["length"]
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    inputs = {"input_ids": tokens, "labels": torch.zeros_like(tokens)}
    if case["attention"] in ("eager", "eager_blocks"):
        mask = torch.zeros(batch, 1, length, length, dtype=dtype)
        kinds = set(getattr(model.config, "layer_types", None) or []) - {"linear_attention"}
        if len(kinds) > 1 or "qwen2" in model.config.model_type:
            inputs["attention_mask"] = {kind: torch.zeros_like(mask) for kind in kinds}
        else:
            inputs["attention_mask"] = mask
    return inputs


def optimizer_for(name: str, parameters: list[Any]) -> Any:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3, foreach=True)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    fused = name == "adamw_torch_fused"
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=not fused, fused=fused)
