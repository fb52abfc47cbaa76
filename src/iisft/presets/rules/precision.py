"""Whether precision, weights and attention go together, and suit the GPUs."""

from collections.abc import Callable, Iterator

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
