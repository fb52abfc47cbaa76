"""From a preset to the shape of one step: dtypes, attention kernel, batch, layout over the GPUs."""

from iisft.estimate.architecture import Architecture
from iisft.estimate.shape import Layout, StepShape
from iisft.gpu_table import architecture
from iisft.llamafactory.arguments import READS_ALL_LOGITS
from iisft.models.view.support import DTYPES
from iisft.presets.schema import Preset

_AOTRITON_SWITCH = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"


def shape_of(preset: Preset, model: Architecture, stored: str, arch: str) -> StepShape:
    """The step of a preset whose base weights are stored in dtype `stored`, on that GPU arch."""
    autocast = DTYPES[preset.precision] if preset.precision in ("fp16", "bf16") else None
    weights = DTYPES.get(preset.weights, stored)
    way = "native"
    if preset.weights == "nf4":
        way = "nf4"
    elif preset.precision == "fp32" and weights != "float32":
        way = "exact"
    computed = "float32" if way == "exact" else autocast or weights
    return StepShape(
        weights=weights,
        way=way,
        autocast=autocast,
        attention=attention_kernel(preset, model, computed, arch),
        batch=preset.train.batch_size,
        length=preset.train.cutoff_len,
        checkpointing=preset.train.gradient_checkpointing is not False,
        rank=preset.lora.rank,
        dropout=preset.lora.dropout,
    )


def needs_all_logits(preset: Preset) -> str | None:
    """Why `logits: trained` makes all of them all the same; None where it need not."""
    given = preset.llamafactory
    if found := [name for name in READS_ALL_LOGITS if given.get(name)]:
        return f"llamafactory.{found[0]} reads them"
    if preset.sharding != "none":
        return f"that is not verified with sharding {preset.sharding}"
    if preset.model.trust_remote_code:
        return "the model's own code may not take positions"
    return None


def attention_kernel(preset: Preset, model: Architecture, dtype: str, arch: str) -> str:
    """eager, eager_blocks, flash, efficient or math.

    Rows without padding have no mask; transformers then asks for grouped heads, which the
    memory-efficient kernel refuses, so that torch falls back to the math kernel
    (transformers#48633, #45636).
    """
    if preset.attention != "sdpa":
        return "flash" if preset.attention == "flash2" else preset.attention
    half, known = dtype != "float32", architecture(arch)
    if arch.startswith("gfx"):
        switched = preset.env.get(_AOTRITON_SWITCH) == "1"
        if known is None or known.fused == "no" or (known.fused == "switch" and not switched):
            return "math"
        flash = half
    else:
        flash = arch == "cpu" or (half and (known is None or known.flash2))
    return "flash" if flash else "math" if model.groups > 1 else "efficient"


def layout_of(preset: Preset, ranks: int, *, on_cpu: bool) -> Layout:
    """How the preset is spread over the ranks."""
    return Layout(
        ranks=ranks,
        sharding=preset.sharding,
        optimizer=preset.train.optimizer,
        accumulation=preset.train.accumulation,
        mixed=preset.precision in ("fp16", "bf16"),
        on_cpu=on_cpu,
    )
