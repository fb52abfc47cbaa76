"""Rules across a preset's fields. Each is a function `rule_*`, found by its name; it yields what it
objects to.

Errors are only for what can't run or gives NaN; what merely costs time is a warning with its
measured price.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from iisft.errors import Severity
from iisft.presets.schema import Preset
from iisft.presets.yaml12 import KeyPath


@dataclass(frozen=True, slots=True)
class Objection:
    """What a rule says about the value at `path`."""

    path: KeyPath
    id: str
    message: str
    fix: str
    severity: Severity = "error"


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What an architecture computes natively."""

    bf16: bool
    flash2: bool


# Source: torch sdp_utils.cpp and Context.cpp, AMD and NVIDIA tables; the first prefix that fits
# decides.
_ARITHMETIC: tuple[tuple[str, Arithmetic], ...] = (
    ("gfx90a", Arithmetic(bf16=True, flash2=True)),
    ("gfx94", Arithmetic(bf16=True, flash2=True)),
    ("gfx95", Arithmetic(bf16=True, flash2=True)),
    ("gfx908", Arithmetic(bf16=True, flash2=False)),
    ("gfx9", Arithmetic(bf16=False, flash2=False)),
    ("gfx10", Arithmetic(bf16=False, flash2=False)),
    ("gfx11", Arithmetic(bf16=True, flash2=False)),
    ("gfx12", Arithmetic(bf16=True, flash2=False)),
    ("sm_5", Arithmetic(bf16=False, flash2=False)),
    ("sm_6", Arithmetic(bf16=False, flash2=False)),
    ("sm_7", Arithmetic(bf16=False, flash2=False)),
    ("sm_", Arithmetic(bf16=True, flash2=True)),
    ("cpu", Arithmetic(bf16=True, flash2=False)),
)


def native_arithmetic(arch: str) -> Arithmetic | None:
    """What `arch` (gfx906, sm_70, cpu) computes natively; None when the architecture is unknown."""
    return next((arithmetic for prefix, arithmetic in _ARITHMETIC if arch.startswith(prefix)), None)


def object_to(preset: Preset, world_size: int) -> list[Objection]:
    """Every objection of every rule, in the order of the rules."""
    rules: list[Callable[[Preset, int], Iterator[Objection]]] = [
        function for name, function in globals().items() if name.startswith("rule_")
    ]
    return [objection for rule in rules for objection in rule(preset, world_size)]


def rule_fp16_with_eager(preset: Preset, world_size: int) -> Iterator[Objection]:
    """Eager attention computes q.k in fp16 and overflows on Qwen2.x (transformers PR 33317:
    perplexity nan).
    """
    if (
        preset.precision == "fp16"
        and preset.attention == "eager"
        and "qwen2" in _model_hint(preset)
    ):
        yield Objection(
            ("attention",),
            "fp16-eager-nan",
            "fp16 with eager attention overflows on Qwen2/2.5: loss 0.0, grad_norm NaN",
            "attention: sdpa",
        )


def rule_global_batch(preset: Preset, world_size: int) -> Iterator[Objection]:
    """A stated global batch is a promise."""
    stated, actual = preset.train.global_batch, preset.global_batch(world_size)
    if stated is not None and stated != actual:
        yield Objection(
            ("train", "global_batch"),
            "global-batch",
            f"global_batch is {stated}, but batch_size {preset.train.batch_size} x accumulation "
            f"{preset.train.accumulation} x {world_size} ranks = {actual}",
            f"global_batch: {actual}, or another accumulation",
        )


def rule_sharding_alone(preset: Preset, world_size: int) -> Iterator[Objection]:
    """Nothing can be sharded over one GPU."""
    if preset.sharding != "none" and world_size < 2:
        yield Objection(
            ("sharding",),
            "sharding-one-gpu",
            f"sharding {preset.sharding} needs at least two GPUs, this run has {world_size}",
            "sharding: none",
        )


def rule_sharding_stored_fp32(preset: Preset, world_size: int) -> Iterator[Objection]:
    """The float32 products over stored weights were never verified on sharded parameters."""
    if preset.sharding != "none" and preset.precision == "fp32" and preset.weights == "stored":
        yield Objection(
            ("weights",),
            "stored-fp32-sharded",
            f"float32 arithmetic on stored weights is not verified with sharding {preset.sharding}",
            "weights: fp32, or sharding: none",
        )


def rule_fp32_quantised(preset: Preset, world_size: int) -> Iterator[Objection]:
    """LLaMA-Factory gives bitsandbytes a half-precision compute dtype unless fp16 or bf16
    is set.
    """
    if preset.weights == "nf4" and preset.precision in ("fp32", "weights"):
        yield Objection(
            ("precision",),
            "nf4-precision",
            f"weights nf4 can't be held to precision {preset.precision}: LLaMA-Factory picks a "
            "half-precision "
            "compute dtype for 4-bit weights",
            "precision: fp16 or bf16",
        )


def rule_flash_needs_half(preset: Preset, world_size: int) -> Iterator[Objection]:
    """FlashAttention-2 has no float32 kernels."""
    if preset.attention == "flash2" and preset.precision == "fp32":
        yield Objection(
            ("attention",),
            "flash2-fp32",
            "FlashAttention-2 does not compute in float32",
            "attention: sdpa",
        )


def rule_flash_hardware(preset: Preset, world_size: int) -> Iterator[Objection]:
    """FlashAttention-2 needs Ampere or CDNA2 and newer (torch sdp_utils.cpp)."""
    arithmetic = native_arithmetic(preset.hardware.arch)
    if preset.attention == "flash2" and arithmetic and not arithmetic.flash2:
        yield Objection(
            ("attention",),
            "flash2-hardware",
            f"FlashAttention-2 does not run on {preset.hardware.arch} (it needs Ampere, CDNA2 or "
            "newer)",
            "attention: sdpa",
        )


def rule_emulated_bf16(preset: Preset, world_size: int) -> Iterator[Objection]:
    """Measured on MI50: 119.2 s against 44.3 s per step (bf16 / fp16), and 700 against 253 by the
    first user.
    """
    arithmetic = native_arithmetic(preset.hardware.arch)
    if preset.precision == "bf16" and arithmetic and not arithmetic.bf16:
        yield Objection(
            ("precision",),
            "bf16-emulated",
            f"{preset.hardware.arch} has no bf16 units: bf16 is emulated, about 2.7 times slower "
            "than fp16 on MI50",
            "precision: fp16 with attention: sdpa",
            severity="warn",
        )


def rule_unproven_sharding(preset: Preset, world_size: int) -> Iterator[Objection]:
    """Said so, because nobody has shown save and resume with it."""
    if preset.sharding != "none":
        yield Objection(
            ("sharding",),
            "sharding-unverified",
            f"sharding {preset.sharding} is passed on to LLaMA-Factory; iisft ran and resumed it "
            "on no GPU yet",
            "sharding: none where the model fits",
            severity="warn",
        )


def rule_precision_of_the_checkpoint(preset: Preset, world_size: int) -> Iterator[Objection]:
    """The first user's 40 GPU-hours."""
    if preset.precision == "weights":
        yield Objection(
            ("precision",),
            "precision-weights",
            "precision weights computes in whatever dtype the checkpoint has (bf16 for Qwen2.5); "
            "it is there to reproduce such runs",
            "precision: fp32",
            severity="warn",
        )


def rule_cpu_only_without_gpus(preset: Preset, world_size: int) -> Iterator[Objection]:
    """hardware.gpus 0 means one CPU process."""
    if preset.hardware.gpus == 0 and preset.hardware.vendor != "cpu":
        yield Objection(
            ("hardware", "gpus"),
            "no-gpus",
            f"vendor {preset.hardware.vendor} needs at least one GPU",
            "gpus: 1",
        )


def rule_evaluation(preset: Preset, world_size: int) -> Iterator[Objection]:
    """Each without the other would be dropped silently."""
    if preset.data.eval is not None and preset.save.eval_every_steps is None:
        yield Objection(
            ("data", "eval"), "eval-never", "data.eval is never evaluated without "
                                            "save.eval_every_steps",
            f"save.eval_every_steps: {preset.save.every_steps}",
        )  # fmt: skip
    if preset.save.eval_every_steps is not None and preset.data.eval is None:
        yield Objection(
            ("save", "eval_every_steps"),
            "eval-without-data",
            "eval_every_steps needs data.eval",
            "data.eval: NAME",
        )


def _model_hint(preset: Preset) -> str:
    """The architecture isn't known before the model folder is read.

    Id and template name the family.
    """
    template = "qwen2" if preset.model.template == "qwen" else ""
    return f"{preset.model.id} {template}".lower().replace("qwen-2", "qwen2")
