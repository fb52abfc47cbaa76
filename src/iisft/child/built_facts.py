"""Facts of a model that was built without weights, for build_model.py."""

from collections import Counter
from pathlib import Path
from typing import Any

_MOST_NAMES = 40  # of tensors and modules that an answer lists
Facts = dict[str, Any]
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def meta_tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder's safetensors files, by its header."""
    import torch
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                dtype = getattr(torch, DTYPES.get(tensor.get_dtype(), "uint8"))
                found[name] = torch.empty(tensor.get_shape(), dtype=dtype, device="meta")
    return found


def report(info: Any) -> Facts:
    """transformers' loading report: counts, and the first names."""
    mismatched = [
        f"{name} ({list(stored)} in the file, {list(built)} in the model)"
        for name, stored, built in sorted(info["mismatched_keys"])
    ]
    lists = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "mismatched": mismatched,
    }
    return {name: [len(keys), keys[:_MOST_NAMES]] for name, keys in lists.items()}


def rows_of(model: Any) -> Facts:
    """Rows of the embedding, and of tables of learned positions by their name."""
    import torch

    words = model.get_input_embeddings()
    positions = {
        name: module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and module is not words
        and any(part in name for part in ("position", "wpe"))
    }  # fmt: skip
    return {"embedding": words.weight.shape[0], "positions": positions}


def of_config(model: Any) -> Facts:
    config = model.config
    return {
        "class": type(model).__name__,
        "attention": config._attn_implementation,
        "tied": bool(getattr(config, "tie_word_embeddings", False)),
        "max_positions": getattr(config, "max_position_embeddings", None),
    }


def owners(model: Any) -> dict[str, int]:
    """Base parameters by the kind of module that owns them: the name without numbers."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():  # a tied one under its first name
        counts[kind(name.rpartition(".")[0])] += parameter.numel()
    return dict(counts)


def kind(name: str) -> str:
    """model.layers.0.mlp.up_proj -> mlp.up_proj; lm_head stays."""
    return ".".join([part for part in name.split(".") if not part.isdigit()][-2:])


def adapted(model: Any) -> Facts:
    """The modules that got an adapter, by kind, and the base parameters that they hold."""
    modules: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            modules[name.rpartition(".")[2]] += 1
            parameters[kind(name)] += sum(p.numel() for p in module.base_layer.parameters())
    return {"modules": dict(sorted(modules.items())), "parameters": dict(parameters)}
