"""Which models and precisions a view can promise, and why it refuses the others."""

import re
from typing import Any

from iisft.errors import InputError
from iisft.models.folder.checkpoint import (
    TOKENIZER_FILES,
    Checkpoint,
    has_experts,
    is_computed_buffer,
)
from iisft.models.folder.manifest import repair_command
from iisft.models.folder.text_part import CLASSES, text_name

AUTO_CLASS = "AutoModelForCausalLM"

# a preset's word -> torch's name
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

# Shown to be bit-identical to float32 weights by tests/fidelity; a new name needs a case there.
EXACT_ARCHITECTURES = frozenset(
    {
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma4ForCausalLM",
        "Glm4ForCausalLM",
        "LlamaForCausalLM",
        "Ministral3ForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3_5ForCausalLM",
        "StableLmForCausalLM",
    }
)

MULTIMODAL_KEYS = ("vision_config", "audio_config", "text_config", "thinker_config")


def refuse_unprovable(checkpoint: Checkpoint) -> None:
    """Refuse models that LLaMA-Factory would load past the view's class, and quantised ones."""
    config = checkpoint.config
    inner = checkpoint.published.get("text_config")
    if isinstance(inner, dict) and has_experts(inner):
        raise InputError(
            "model-not-text",
            f"the text model of {checkpoint.published['architectures'][0]} has experts: no test "
            "has shown that such a one, taken out of its folder, computes the same as within it",
            where=_config_place(checkpoint),
            fix="choose a dense model of that family, or one that is published as text alone",
        )
    composite = [key for key in MULTIMODAL_KEYS if isinstance(config.get(key), dict)]
    if composite or not checkpoint.architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(
            "model-not-text",
            f"{checkpoint.architecture} is not a plain text model"
            + (f" (its config.json has {composite[0]})" if composite else "")
            + "; iisft can't prove the precision of others",
            where=_config_place(checkpoint),
            fix="choose a text-only model (an architecture like Qwen3ForCausalLM), or one whose "
            f"text part is known ({', '.join(sorted({whole for whole, _ in CLASSES}))})",
        )
    if "quantization_config" in config:
        raise InputError(
            "model-quantized",
            "the checkpoint is already quantised; iisft can't hold a precision over such weights",
            where=_config_place(checkpoint),
            fix="use the unquantised model; --set weights=nf4 quantises it while loading",
        )


def own_code_class(checkpoint: Checkpoint, trusted: bool) -> str | None:
    """The class of the model's own code to load, as `module.Class`; None for the stock class.

    Untrusted code beside a stock architecture is left behind; a model that needs it is refused.
    """
    if not checkpoint.code_files:
        return None
    if not trusted:
        if _needs_own_code(checkpoint):
            raise InputError(
                "model-needs-code",
                f"{checkpoint.architecture} needs its own code: {', '.join(checkpoint.code_files)}",
                where=str(checkpoint.folder),
                fix="read these files, then allow them: --set model.trust_remote_code=true",
            )
        return None
    reference = top_auto_map(checkpoint).get(AUTO_CLASS)
    missing = [name for name in checkpoint.code_files if not (checkpoint.folder / name).is_file()]
    # own tokenizer, stock model
    known = reference is None and checkpoint.architecture in EXACT_ARCHITECTURES
    if missing or not (known or _is_class_reference(reference)):
        problem = f"{', '.join(missing)} is missing" if missing else f"it has no {AUTO_CLASS}"
        raise InputError(
            "model-code-incomplete",
            f"the model's own code can't be used: {problem}",
            where=str(checkpoint.folder),
            fix=repair_command(checkpoint.folder),
        )
    return reference


def _needs_own_code(checkpoint: Checkpoint) -> bool:
    tokenizer = any((checkpoint.folder / name).is_file() for name in TOKENIZER_FILES)
    return checkpoint.architecture not in EXACT_ARCHITECTURES or not tokenizer


def _is_class_reference(value: Any) -> bool:
    parts = value.split(".") if isinstance(value, str) else []
    return len(parts) == 2 and all(part.isidentifier() for part in parts)


def top_auto_map(checkpoint: Checkpoint) -> dict[str, Any]:
    value = checkpoint.config.get("auto_map")
    return value if isinstance(value, dict) else {}


def stored_dtype(checkpoint: Checkpoint) -> str:
    dtype = next(iter(checkpoint.dtypes), "nothing")
    if dtype not in DTYPES.values():
        raise InputError(
            "model-stored-dtype",
            f"most of the checkpoint is stored as {dtype}; iisft trains float32, bfloat16 and "
            "float16",
            where=str(checkpoint.folder),
            fix="use a checkpoint in one of these dtypes",
        )
    return dtype


def refuse_inexact(
    checkpoint: Checkpoint, weights: str, memory: str, own_class: str | None
) -> None:
    """Allow float32 arithmetic over narrower weights only where tests have shown it to be exact."""
    reason = None
    if has_experts(checkpoint.config):
        reason = f"{checkpoint.architecture} has experts, whose products are not nn.Linear"
    elif own_class is not None:
        reason = f"{checkpoint.architecture} runs the model's own code"
    elif checkpoint.architecture not in EXACT_ARCHITECTURES:
        reason = f"no test has shown it for {checkpoint.architecture}"
    elif weights == "stored" and (odd := _dtypes_rounded_to(checkpoint, memory)):
        reason = f"the checkpoint mixes {memory} with {', '.join(odd)}, which loading would round"
    if reason is not None:
        raise InputError(
            "exact-unsupported",
            f"float32 arithmetic over {memory} weights is not exact here: {reason}",
            where=_config_place(checkpoint),
            fix="load float32 weights (twice the memory): --set weights=fp32",
        )


def kept_float32(checkpoint: Checkpoint, memory: str) -> list[str]:
    """Vectors that the files store as float32 beside narrower weights, as globs over layers: the
    decay and a norm of Qwen3.5's gated delta layers.

    transformers keeps what it is told in float32 (_keep_in_fp32_modules_strict) and would round
    these. Not told where a layer has the same one in another dtype, or for matrices, which a
    product could take.
    """
    if memory == "float32":
        return []
    wide: set[str] = set()
    others: set[str] = set()
    for name, tensor in checkpoint.tensors.items():
        is_wide = tensor.dtype == "float32" and len(tensor.shape) == 1
        (wide if is_wide else others).add(_over_layers(name))
    return sorted(wide - others)


def _over_layers(name: str) -> str:
    """As the class names it: transformers writes the text model of Qwen3.5, alone as it is, under
    the prefix that it has in the whole one.
    """
    return re.sub(r"\.\d+\.", ".*.", text_name(name) or name)


def _dtypes_rounded_to(checkpoint: Checkpoint, memory: str) -> list[str]:
    kept = kept_float32(checkpoint, memory)
    stored = {
        tensor.dtype
        for name, tensor in checkpoint.tensors.items()
        if not is_computed_buffer(name) and _over_layers(name) not in kept
    }
    return sorted((stored & {"float16", "bfloat16", "float32", "float64"}) - {memory})


def _config_place(checkpoint: Checkpoint) -> str:
    return str(checkpoint.folder / "config.json")
