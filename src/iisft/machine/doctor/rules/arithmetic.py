"""Whether what the preset computes suits the GPUs that are here: precision, attention kernels,
compilers.
"""

from collections.abc import Iterator
from typing import Literal

from iisft.errors import Finding
from iisft.gpu_table import architecture
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import export
from iisft.rules import Fix, change_preset, rule, seen

_SWITCHES = ("enable_liger_kernel", "use_unsloth", "torch_compile")
_QWEN_HEADS = 28  # Qwen2.5-7B's attention heads, where the model isn't there to ask
_SHARE_OF_MEMORY = 0.25


def _can(arch: str, what: Literal["triton", "int8"]) -> bool:
    """An unknown architecture can."""
    known = architecture(arch)
    return known is None or bool(getattr(known, what))


def _compiled(case: Case) -> list[str]:
    """The preset's switches that need Triton."""
    return [name for name in _SWITCHES if case.argument(name)]


@rule(
    "R33",
    "sdpa-math-memory",
    applies="sdpa on gfx906, gfx908 and RDNA1/2",
    source="torch sdp_utils.cpp; mi50-gfx906-unsloth-bnb4bit-lab: 8 GiB workspace at 8192 tokens",
)
def math_kernel_memory(case: Case) -> Iterator[Finding]:
    """Without a fused kernel sdpa is the math kernel: batch x heads x tokens x tokens in float32,
    for one layer.
    """
    found = case.preset
    if not found or found.attention != "sdpa":
        return
    for gpu in case.amd:
        known = architecture(gpu.arch)
        fused = known is not None and known.fused != "no"
        heads = case.model.get("num_attention_heads")
        heads = heads if isinstance(heads, int) else _QWEN_HEADS
        gib = found.train.batch_size * heads * found.train.cutoff_len**2 * 4 / 2**30
        if not fused and gpu.memory_gib and gib > gpu.memory_gib * _SHARE_OF_MEMORY:
            yield seen(
                f"sdpa has no fused kernel on {gpu.arch}: its scores take {gib:.1f} of "
                f"{gpu.memory_gib:.0f} GiB at "
                f"{found.train.batch_size} x {found.train.cutoff_len} tokens",
                f"{found.train.batch_size} x {heads} heads x {found.train.cutoff_len}^2 x 4 bytes",
                change_preset("attention=eager_blocks"),
                "warn",
            )
            return


@rule(
    "R34",
    "aotriton-experimental",
    applies="RDNA3 (gfx11xx)",
    source="torch sdp_utils.cpp; ROCm/aotriton#16; axolotl docs",
)
def aotriton(case: Case) -> Iterator[Finding]:
    """torch has flash and memory-efficient attention for RDNA3 behind a variable."""
    rdna3 = [arch for arch in case.archs if arch.startswith("gfx11")]
    if rdna3 and case.env.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL") != "1":
        yield seen(
            f"fused attention on {rdna3[0]} is off by default",
            "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL is not 1",
            export("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1"),
            "info",
        )


@rule(
    "R36",
    "triton-gfx906",
    applies="Liger, Unsloth, torch.compile on MI50, MI60, Radeon VII",
    source="triton#8992, PR 10795; vllm PR 33811; unsloth device_type.py",
)
def triton_on_gfx906(case: Case) -> Iterator[Finding]:
    """Upstream Triton has no gfx906: unsupported target.

    Compiled graphs crash or compute wrong values.
    """
    switches = _compiled(case)
    without = [arch for arch in case.archs if arch.startswith("gfx") and not _can(arch, "triton")]
    if switches and without:
        yield seen(
            f"{', '.join(switches)} needs Triton, which has no {without[0]} ('unsupported target')",
            f"llamafactory.{switches[0]}",
            Fix(
                f"take {' and '.join(switches)} out of the preset; "
                "export TORCHDYNAMO_DISABLE=1 TORCH_COMPILE_DISABLE=1",
                stage="preset",
            ),
            "warn" if switches == ["use_unsloth"] else "error",
        )


@rule(
    "R37",
    "triton-pascal",
    applies="Liger, Unsloth, torch.compile on Pascal and older",
    source="unsloth#2816, #512; vllm#14547, #13202",
)
def triton_on_pascal(case: Case) -> Iterator[Finding]:
    """Triton needs compute capability 7.0."""
    switches = _compiled(case)
    old = [arch for arch in case.archs if arch.startswith("sm_") and not _can(arch, "triton")]
    if switches and old:
        yield seen(
            f"{', '.join(switches)} needs Triton, which needs compute capability 7.0; this is "
            f"{old[0]}",
            f"llamafactory.{switches[0]}",
            Fix(f"take {' and '.join(switches)} out of the preset", stage="preset"),
        )


@rule(
    "R38",
    "bf16-crash-rdna2",
    applies="bf16 on RDNA1/2",
    source="unsloth PR 7682: LLVM ERROR: Cannot select: intrinsic %llvm.amdgcn.fdot2.bf16.bf16",
)
def bf16_kills_rdna2(case: Case) -> Iterator[Finding]:
    """Compiled bf16 kernels end the process on RDNA1 and RDNA2: the compiler has no such
    instruction.
    """
    cards = [arch for arch in case.archs if arch.startswith("gfx10")]
    if case.preset and case.preset.precision == "bf16" and cards:
        compiled = bool(_compiled(case))
        yield seen(
            f"bf16 through Triton ends the process on {cards[0]} (LLVM: Cannot select fdot2.bf16)"
            + ("" if compiled else "; plain kernels only emulate it"),
            "precision: bf16",
            change_preset("precision=fp16 --set attention=sdpa"),
            "error" if compiled else "warn",
        )


@rule(
    "R40",
    "int8-compute",
    applies="8-bit weights before Turing",
    source="bitsandbytes docs 0.48 to 0.50",
)
def int8(case: Case) -> Iterator[Finding]:
    """LLM.int8() needs compute capability 7.5; 4-bit NF4 needs 6.0."""
    old = [arch for arch in case.archs if not _can(arch, "int8")]
    if case.argument("quantization_bit") == 8 and old:
        yield seen(
            f"8-bit weights need compute capability 7.5; this is {old[0]}",
            "llamafactory.quantization_bit: 8",
            change_preset("weights=nf4"),
        )


@rule(
    "R41",
    "p40-fp16-rate",
    applies="P40, P4, GTX 10x0 (sm_61)",
    source="NVIDIA forum 53256; measured on a 1080 Ti",
)
def slow_fp16(case: Case) -> Iterator[Finding]:
    """sm_61 computes fp16 at 1/64 of its fp32 rate; GEMMs fall back to fp32 speed.

    Fp16 saves memory, not time.
    """
    if "sm_61" in case.archs and (case.preset is None or case.preset.precision == "fp16"):
        yield seen(
            "sm_61 has no fast fp16: it saves memory, not time, and fp32 is as fast",
            "architecture",
            change_preset(
                "precision=fp32", "--set precision=fp32 with weights: stored (see the preset p40)"
            ),
            "info",
        )


@rule(
    "R49",
    "deepspeed-fp16-conflict",
    applies="a DeepSpeed configuration of one's own",
    source="the first user's ds_z2_config.json",
    basis="inferred",
)
def deepspeed_precision(case: Case) -> Iterator[Finding]:
    """A DeepSpeed configuration that forces fp16 beside a preset of another precision.

    Iisft's own says auto.
    """
    config = case.argument("deepspeed")
    forced = isinstance(config, dict) and (config.get("fp16") or {}).get("enabled") is True
    if forced and case.preset and case.preset.precision != "fp16":
        yield seen(
            "the DeepSpeed configuration forces fp16 while the preset says "
            f"{case.preset.precision}",
            "llamafactory.deepspeed fp16.enabled",
            Fix(
                '"enabled": "auto", or sharding: zero2 instead of a configuration of your own',
                stage="preset",
            ),
            "info",
        )


@rule(
    "R50",
    "nan-guard-off",
    applies="presets with watch.nan: ignore",
    source="Qwen3#670; LlamaFactory#4901, #5660, #7263, #8088",
)
def nan_guard_off(case: Case) -> Iterator[Finding]:
    """A run that computes NaN learns nothing and goes on for days; LLaMA-Factory logs the loss as
    0.0.

    iisft ends it after two such steps unless the preset says otherwise.
    """
    if case.preset and case.preset.watch.nan == "ignore":
        yield seen(
            "watch.nan is ignore: a run whose loss is NaN goes on to its end",
            "watch.nan",
            change_preset("watch.nan=stop"),
            "warn",
        )
