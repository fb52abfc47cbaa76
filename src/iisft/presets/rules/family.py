"""What the layers of some families of models ask of a preset."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.gpu_table import architecture
from iisft.presets.case import Case
from iisft.rules import change_preset, preset_rule, seen

_KERNELS = "flash-linear-attention"


def _delta_layers(case: Case) -> int:
    """How many layers carry a state from token to token instead of attending (Qwen3.5)."""
    kinds = case.model.get("layer_types")
    return kinds.count("linear_attention") if isinstance(kinds, list) else 0


@preset_rule(
    "delta-rule-slow",
    applies="Qwen3.5 and other models with gated delta layers",
    source="transformers#48718 (1.22 s a step, 0.70 s with the kernels); flash-linear-attention "
    "asserts that its input is not float32",
)
def delta_rule_without_kernels(case: Case) -> Iterator[Finding]:
    """Gated delta layers are fast with Triton's kernels alone, which float32 and old cards can't
    have.

    transformers' own torch functions compute the same in many small steps: about 1.7 times as long
    where both were measured.
    """
    layers, preset = _delta_layers(case), case.preset
    if not layers or preset is None:
        return
    archs = case.archs or [preset.hardware.arch]
    without = [arch for arch in archs if (known := architecture(arch)) and not known.triton]
    if preset.precision == "fp32" or preset.weights == "fp32":
        reason = "their kernels refuse float32"
    elif without:
        reason = f"Triton does not run on {', '.join(without)}"
    elif case.looked_at and _KERNELS not in case.packages:
        reason = f"{_KERNELS} is not installed"
    else:
        return
    yield seen(
        f"{layers} gated delta layers are computed by transformers' torch functions, slowly "
        f"(about 1.7 times the step where it was measured): {reason}",
        case.place("model.id"),
        "nothing to fix; a model without such layers (Qwen3) is faster here",
        "warn",
    )


@preset_rule(
    "delta-rule-packing",
    applies="packed rows with gated delta layers",
    source="transformers modeling_qwen3_5.py: the state has no borders; LLaMA-Factory patcher.py "
    "patches the whole model's class alone",
)
def delta_rule_packed(case: Case) -> Iterator[Finding]:
    """A gated delta layer's state goes on from one packed row into the next, whatever the mask."""
    given = {
        "train.packing": case.preset is not None and case.preset.train.packing,
        "llamafactory.packing": case.argument("packing") is True,
    }
    for key, packs in given.items():
        if packs and _delta_layers(case):
            yield seen(
                f"{key}: the state of gated delta layers goes on from one packed row into the next",
                case.place(key),
                change_preset(f"{key}=false"),
            )
