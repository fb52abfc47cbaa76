"""Whether precision, weights and attention go together, and suit the GPUs and the layers of the
model's family.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from iisft.errors import ExitCode, Finding
from iisft.gpu_table import Architecture, architecture
from iisft.presets.case import Case
from iisft.rules import change_preset, preset_rule, rule, seen


def _lacking(case: Case, lacks: Callable[[Architecture], bool]) -> tuple[list[str], str]:
    """The architectures that are here and lack something; the preset's, where it does."""

    def known(arch: str) -> bool:
        return (found := architecture(arch)) is not None and lacks(found)

    wanted = case.preset.hardware.arch if case.preset else ""
    return [arch for arch in case.archs if known(arch)], wanted if known(wanted) else ""


@rule(
    "R06",
    "bf16-not-native",
    applies="GPUs without bf16 units: gfx906 and older, RDNA1/2, NVIDIA before Ampere",
    source="pytorch PR 80410, PR 148322; measured on MI50: 119.2 s against 44.3 s per step (bf16, "
    "fp16), and 700 against 253 by the first user",
    preset_id="bf16-emulated",
)
def emulated_bf16(case: Case) -> Iterator[Finding]:
    """bf16 is emulated there, about 2.7 times slower than fp16 on an MI50, and nothing says so.

    torch.cuda.is_bf16_supported() is True on every ROCm build and, with emulation counted, on T4,
    V100 and P40.
    """
    here, wanted = _lacking(case, lambda arch: not arch.bf16)
    preset = case.preset
    chosen = preset is not None and preset.precision == "bf16"
    as_stored = preset is not None and (
        preset.precision == "weights" and preset.weights in ("stored", "bf16")
    )
    if here and (preset is None or chosen or as_stored):
        yield seen(
            f"no bf16 units on {', '.join(here)}: "
            + ("a preset in bf16 would be" if preset is None else "this preset's bf16 is")
            + " emulated, about 2.7 times slower than fp16 on MI50; torch reports it as supported",
            case.measured_bf16 or "architecture, whatever torch.cuda.is_bf16_supported() says",
            change_preset(
                "precision=fp16 --set attention=sdpa",
                "--set precision=fp16 --set attention=sdpa, or precision=fp32",
            ),
            "info" if preset is None else "warn",
        )
    elif wanted and chosen:
        yield seen(
            f"{wanted} has no bf16 units: bf16 is emulated, about 2.7 times slower than fp16 on "
            "MI50",
            case.place("precision"),
            "precision: fp16 with attention: sdpa",
            "warn",
            in_preset=True,
        )


@rule(
    "R07",
    "eager-fp16-overflow",
    applies="Qwen2 and Qwen2.5 in fp16",
    source="transformers PR 33317 (perplexity nan, 7.1381 with sdpa); Qwen3#910; opencompass#1955",
    exit_code=ExitCode.INPUT,
    preset_id="fp16-eager-nan",
)
def eager_overflows(case: Case) -> Iterator[Finding]:
    """Eager attention computes q.k in fp16, which overflows on Qwen2.x: loss 0.0, grad_norm NaN.

    sdpa is safe even where no fused kernel exists: its math kernel computes in float32 inside
    (torch 2.5 and newer).
    """
    preset = case.preset
    eager = preset is not None and preset.precision == "fp16" and preset.attention == "eager"
    if eager and case.model_type.startswith("qwen2"):
        yield seen(
            "fp16 with eager attention overflows on Qwen2/2.5: loss 0.0, grad_norm NaN",
            case.place("attention"),
            change_preset("attention=sdpa"),
            in_preset=not case.model,
        )


@rule(
    "R10",
    "fp32-is-not-fp32",
    applies="presets with precision: weights; LLaMA-Factory by itself on GPUs without bf16 units",
    source="LLaMA-Factory loader.py, patcher.py, misc.infer_optim_dtype; LlamaFactory#8914, #810",
    preset_id="precision-weights",
)
def fp32_is_not_fp32(case: Case) -> Iterator[Finding]:
    """With fp16 and bf16 both off LLaMA-Factory computes in the checkpoint's dtype: bf16 for
    Qwen2.5, never float32.

    The first user's 40 hours of "fp32" were bf16. iisft's precision: fp32 is float32, and is proven
    in each run.
    """
    stored = str(case.model.get("dtype") or case.model.get("torch_dtype") or "bfloat16 for Qwen2.5")
    here, _ = _lacking(case, lambda arch: not arch.bf16)
    if case.preset is None and here and "llamafactory" in case.packages:
        yield seen(
            "LLaMA-Factory has no fp32 switch: with fp16 and bf16 both false it computes in the "
            f"checkpoint's dtype ({stored}), which is emulated here; iisft's precision: fp32 is "
            "float32",
            "LLaMA-Factory's loader, and no bf16 units",
            change_preset(
                "precision=fp32",
                "iisft train with precision: fp32, or fp16 with attention: sdpa (iisft preset "
                "list)",
            ),
            "info",
        )
    elif case.preset and case.preset.precision == "weights":
        yield seen(
            f"precision weights computes in whatever dtype the checkpoint has ({stored}), not in "
            "fp32; it is there to reproduce such runs",
            case.place("precision"),
            change_preset("precision=fp32"),
            "warn",
            in_preset=not case.looked_at,
        )


@rule(
    "R32",
    "flash-unavailable",
    applies="flash2 on gfx906, RDNA1/2, NVIDIA before Ampere",
    source="torch sdp_utils.cpp; ROCm/triton#461; ROCm/flash-attention#29",
    preset_id="flash2-hardware",
)
def no_flash(case: Case) -> Iterator[Finding]:
    """FlashAttention-2 needs Ampere, CDNA2 or newer."""
    if case.preset is None or case.preset.attention != "flash2":
        return
    here, wanted = _lacking(case, lambda arch: not arch.flash2)
    for arch in here or [wanted]:
        if arch:
            yield seen(
                f"FlashAttention-2 does not run on {arch} (it needs Ampere, CDNA2 or newer)",
                case.place("attention"),
                change_preset("attention=sdpa"),
                in_preset=not here,
            )


@preset_rule(
    "flash2-fp32", applies="flash2 with precision: fp32", source="flash-attention's own checks"
)
def flash_needs_half(case: Case) -> Iterator[Finding]:
    """FlashAttention-2 has no float32 kernels."""
    preset = case.preset
    if preset and preset.attention == "flash2" and preset.precision == "fp32":
        yield seen(
            "FlashAttention-2 does not compute in float32",
            case.place("attention"),
            change_preset("attention=sdpa"),
        )


@preset_rule(
    "eager-blocks-lacking",
    applies="attention: eager_blocks with dropout of attention weights, or attention sinks",
    source="child/attention_iisft.py",
)
def not_in_blocks(case: Case) -> Iterator[Finding]:
    """Attention in blocks has neither; the trainer would say so in its first forward."""
    preset = case.preset
    if preset is None or preset.attention != "eager_blocks":
        return
    lacking = "dropout of attention weights" if case.model.get("attention_dropout") else ""
    if case.model_type == "gpt_oss":
        lacking = "attention sinks"
    if lacking:
        yield seen(
            f"attention eager_blocks has no {lacking}, which this model has",
            case.place("attention"),
            change_preset("attention=eager", "attention: eager"),
            in_preset=False,
        )


@preset_rule(
    "nf4-precision",
    applies="4-bit weights with precision: fp32 or weights",
    source="LLaMA-Factory's quantization.py",
)
def quantised_fp32(case: Case) -> Iterator[Finding]:
    """LLaMA-Factory gives bitsandbytes a half-precision dtype unless fp16 or bf16 is set."""
    preset = case.preset
    if preset and preset.weights == "nf4" and preset.precision in ("fp32", "weights"):
        yield seen(
            f"weights nf4 can't be held to precision {preset.precision}: LLaMA-Factory picks a "
            "half-precision compute dtype for 4-bit weights",
            case.place("precision"),
            change_preset("precision=fp16", "--set precision=fp16 or bf16"),
        )


_KERNELS = "flash-linear-attention"


def _delta_layers(case: Case) -> int:
    """How many gated delta layers there are (Qwen3.5, Qwen3-Next; MiniMax's are others)."""
    kinds = case.model.get("layer_types")
    if not isinstance(kinds, list) or "linear_num_value_heads" not in case.model:
        return 0
    return kinds.count("linear_attention")


def _carries_state(model: Mapping[str, Any]) -> bool:
    """Whether layers hand a state, or a convolution's window, from token to token."""
    kinds = {
        str(kind)
        for name in ("layer_types", "layers_block_type", "block_types")
        if isinstance(found := model.get(name), list)
        for kind in found
    }
    attending = all(kind.endswith("attention") and kind != "linear_attention" for kind in kinds)
    return not attending or any(name.startswith(("mamba_", "ssm_", "state_size")) for name in model)


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
    applies="packed rows with layers that carry a state (gated delta, Mamba, convolutions)",
    source="transformers modeling_qwen3_5.py: the state has no borders; LLaMA-Factory patcher.py "
    "patches the whole model's class alone; the proof of packing looks at attention alone",
)
def delta_rule_packed(case: Case) -> Iterator[Finding]:
    """A layer's state goes on from one packed row into the next, whatever the mask."""
    given = {
        "train.packing": case.preset is not None and case.preset.train.packing,
        "llamafactory.packing": case.argument("packing") is True,
    }
    for key, packs in given.items():
        if packs and _carries_state(case.model):
            yield seen(
                f"{key}: a layer's state goes on from one packed row into the next",
                case.place(key),
                change_preset(f"{key}=false"),
            )
