"""Whether what the preset computes suits the GPUs that are here: precision, attention kernels,
compilers.
"""

from collections.abc import Iterator

from iisft.errors import ExitCode
from iisft.machine.doctor.engine import Case, Seen, rule
from iisft.machine.doctor.fixes import Fix, export, preset
from iisft.machine.doctor.rules.deep_results import rates
from iisft.presets.rules import native_arithmetic

_SWITCHES = ("enable_liger_kernel", "use_unsloth", "torch_compile")
_QWEN_HEADS = 28  # Qwen2.5-7B's attention heads, where the model isn't there to ask
_SHARE_OF_MEMORY = 0.25


def _without_bf16(case: Case) -> list[str]:
    return [
        arch
        for arch in case.archs
        if (found := native_arithmetic(arch)) is not None and not found.bf16
    ]


def _compiled(case: Case) -> list[str]:
    """The preset's switches that need Triton."""
    return [name for name in _SWITCHES if case.argument(name)]


def _measured(case: Case) -> str:
    """What --deep measured of bf16 on the first GPU."""
    found = rates(case).get("cuda:0", {})
    if not {"bfloat16", "float16"} <= set(found):
        return ""
    return f"measured {found['bfloat16']:.3g} TFLOP/s in bf16, {found['float16']:.3g} in fp16"


def _sdpa() -> Fix:
    return preset("attention=sdpa")


@rule(
    "R06",
    "bf16-not-native",
    applies="GPUs without bf16 units: gfx906 and older, RDNA1/2, NVIDIA before Ampere",
    source="pytorch PR 80410, PR 148322; measured on MI50: 119.2 s against 44.3 s per step (bf16, "
    "fp16)",
    replaces=("bf16-emulated",),
)
def emulated_bf16(case: Case) -> Iterator[Seen]:
    """bf16 is emulated there, about 2.7 times slower than fp16 on an MI50, and nothing says so.

    torch.cuda.is_bf16_supported() is True on every ROCm build and, with emulation counted, on T4,
    V100 and P40.
    """
    without = _without_bf16(case)
    if not without:
        return
    wanted = case.preset is not None and (
        case.preset.precision == "bf16"
        or (case.preset.precision == "weights" and case.preset.weights in ("stored", "bf16"))
    )
    if case.preset is not None and not wanted:
        return
    yield Seen(
        f"no bf16 units on {', '.join(without)}: "
        + ("this preset's bf16 is emulated" if wanted else "a preset in bf16 would be emulated")
        + ", about 2.7 times slower than fp16 on MI50; torch reports it as supported",
        _measured(case) or "architecture, whatever torch.cuda.is_bf16_supported() says",
        preset(
            "precision=fp16 --set attention=sdpa",
            "--set precision=fp16 --set attention=sdpa, or precision=fp32",
        ),
        "warn" if wanted else "info",
    )


@rule(
    "R07",
    "eager-fp16-overflow",
    applies="Qwen2 and Qwen2.5 in fp16",
    source="transformers PR 33317 (perplexity nan, 7.1381 with sdpa); Qwen3#910; opencompass#1955",
    replaces=("fp16-eager-nan",),
    exit_code=ExitCode.INPUT,
)
def eager_overflows(case: Case) -> Iterator[Seen]:
    """Eager attention computes q.k in fp16, which overflows on Qwen2.x: loss 0.0, grad_norm NaN.

    sdpa is no error where no fused kernel exists: its math kernel computes in float32 inside (torch
    2.5 and newer).
    """
    found = case.preset
    if found and found.precision == "fp16" and found.attention == "eager":
        kind = str(case.model.get("model_type", ""))
        if kind.startswith("qwen2"):
            yield Seen(
                f"{kind} overflows in fp16 with eager attention: loss 0.0, grad_norm NaN",
                "attention: eager",
                _sdpa(),
            )


@rule(
    "R10",
    "fp32-is-not-fp32",
    applies="presets with precision: weights; LLaMA-Factory by itself on GPUs without bf16 units",
    source="LLaMA-Factory loader.py, patcher.py, misc.infer_optim_dtype; LlamaFactory#8914, #810",
    replaces=("precision-weights",),
)
def fp32_is_not_fp32(case: Case) -> Iterator[Seen]:
    """With fp16 and bf16 both off LLaMA-Factory computes in the checkpoint's dtype: bf16 for
    Qwen2.5, never float32.

    The first user's 40 hours of "fp32" were bf16. iisft's precision: fp32 is float32, and is proven
    in each run.
    """
    stored = str(case.model.get("dtype") or case.model.get("torch_dtype") or "bfloat16 for Qwen2.5")
    if case.preset is None and _without_bf16(case) and "llamafactory" in case.packages:
        yield Seen(
            "LLaMA-Factory has no fp32 switch: with fp16 and bf16 both false it computes in the "
            "checkpoint's dtype "
            f"({stored}), which is emulated here; iisft's precision: fp32 is float32",
            "LLaMA-Factory's loader, and no bf16 units",
            preset(
                "precision=fp32",
                "iisft train with precision: fp32, or fp16 with attention: sdpa (iisft preset "
                "list)",
            ),
            "info",
        )
    elif case.preset and case.preset.precision == "weights":
        yield Seen(
            f"precision weights computes in whatever dtype the checkpoint has ({stored}), not in "
            "fp32; it is there to "
            "reproduce such runs",
            "precision: weights",
            preset("precision=fp32"),
            "warn",
        )


@rule(
    "R32",
    "flash-unavailable",
    applies="flash2 on gfx906, RDNA1/2, NVIDIA before Ampere",
    source="torch sdp_utils.cpp; ROCm/triton#461; ROCm/flash-attention#29",
    replaces=("flash2-hardware",),
)
def no_flash(case: Case) -> Iterator[Seen]:
    """FlashAttention-2 needs Ampere, CDNA2 or newer."""
    if case.preset and case.preset.attention == "flash2":
        for arch in case.archs:
            if (found := native_arithmetic(arch)) is not None and not found.flash2:
                yield Seen(f"FlashAttention-2 does not run on {arch}", "attention: flash2", _sdpa())


@rule(
    "R33",
    "sdpa-math-memory",
    applies="sdpa on gfx906, gfx908 and RDNA1/2",
    source="torch sdp_utils.cpp; mi50-gfx906-unsloth-bnb4bit-lab: 8 GiB workspace at 8192 tokens",
)
def math_kernel_memory(case: Case) -> Iterator[Seen]:
    """Without a fused kernel sdpa is the math kernel: batch x heads x tokens x tokens in float32,
    for one layer.
    """
    found = case.preset
    if not found or found.attention != "sdpa":
        return
    for gpu in case.amd:
        fused = gpu.arch.startswith(("gfx90a", "gfx94", "gfx95", "gfx11", "gfx12"))
        heads = case.model.get("num_attention_heads")
        heads = heads if isinstance(heads, int) else _QWEN_HEADS
        gib = found.train.batch_size * heads * found.train.cutoff_len**2 * 4 / 2**30
        if not fused and gpu.memory_gib and gib > gpu.memory_gib * _SHARE_OF_MEMORY:
            yield Seen(
                f"sdpa has no fused kernel on {gpu.arch}: its scores take {gib:.1f} of "
                f"{gpu.memory_gib:.0f} GiB at "
                f"{found.train.batch_size} x {found.train.cutoff_len} tokens",
                f"{found.train.batch_size} x {heads} heads x {found.train.cutoff_len}^2 x 4 bytes",
                preset(
                    "train.batch_size=1",
                    "--set train.batch_size=1 (raise train.accumulation as much), or a smaller "
                    "--set train.cutoff_len=",
                ),
                "warn",
            )
            return


@rule(
    "R34",
    "aotriton-experimental",
    applies="RDNA3 (gfx11xx)",
    source="torch sdp_utils.cpp; ROCm/aotriton#16; axolotl docs",
)
def aotriton(case: Case) -> Iterator[Seen]:
    """torch has flash and memory-efficient attention for RDNA3 behind a variable."""
    rdna3 = [arch for arch in case.archs if arch.startswith("gfx11")]
    if rdna3 and case.env.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL") != "1":
        yield Seen(
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
def triton_on_gfx906(case: Case) -> Iterator[Seen]:
    """Upstream Triton has no gfx906: unsupported target.

    Compiled graphs crash or compute wrong values.
    """
    switches = _compiled(case)
    if switches and "gfx906" in case.archs:
        yield Seen(
            f"{', '.join(switches)} needs Triton, which has no gfx906 ('unsupported target')",
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
def triton_on_pascal(case: Case) -> Iterator[Seen]:
    """Triton needs compute capability 7.0."""
    switches = _compiled(case)
    old = [arch for arch in case.archs if arch.startswith(("sm_5", "sm_6"))]
    if switches and old:
        yield Seen(
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
def bf16_kills_rdna2(case: Case) -> Iterator[Seen]:
    """Compiled bf16 kernels end the process on RDNA1 and RDNA2: the compiler has no such
    instruction.
    """
    cards = [arch for arch in case.archs if arch.startswith("gfx10")]
    if case.preset and case.preset.precision == "bf16" and cards:
        compiled = bool(_compiled(case))
        yield Seen(
            f"bf16 through Triton ends the process on {cards[0]} (LLVM: Cannot select fdot2.bf16)"
            + ("" if compiled else "; plain kernels only emulate it"),
            "precision: bf16",
            preset("precision=fp16 --set attention=sdpa"),
            "error" if compiled else "warn",
        )


@rule(
    "R40",
    "int8-compute",
    applies="8-bit weights before Turing",
    source="bitsandbytes docs 0.48 to 0.50",
)
def int8(case: Case) -> Iterator[Seen]:
    """LLM.int8() needs compute capability 7.5; 4-bit NF4 needs 6.0."""
    old = [arch for arch in case.archs if arch.startswith(("sm_5", "sm_6", "sm_70", "sm_72"))]
    if case.argument("quantization_bit") == 8 and old:
        yield Seen(
            f"8-bit weights need compute capability 7.5; this is {old[0]}",
            "llamafactory.quantization_bit: 8",
            preset("weights=nf4"),
        )


@rule(
    "R41",
    "p40-fp16-rate",
    applies="P40, P4, GTX 10x0 (sm_61)",
    source="NVIDIA forum 53256; measured on a 1080 Ti",
)
def slow_fp16(case: Case) -> Iterator[Seen]:
    """sm_61 computes fp16 at 1/64 of its fp32 rate; GEMMs fall back to fp32 speed.

    Fp16 saves memory, not time.
    """
    if "sm_61" in case.archs and (case.preset is None or case.preset.precision == "fp16"):
        yield Seen(
            "sm_61 has no fast fp16: it saves memory, not time, and fp32 is as fast",
            "architecture",
            preset(
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
def deepspeed_precision(case: Case) -> Iterator[Seen]:
    """A DeepSpeed configuration that forces fp16 beside a preset of another precision.

    Iisft's own says auto.
    """
    config = case.argument("deepspeed")
    forced = isinstance(config, dict) and (config.get("fp16") or {}).get("enabled") is True
    if forced and case.preset and case.preset.precision != "fp16":
        yield Seen(
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
def nan_guard_off(case: Case) -> Iterator[Seen]:
    """A run that computes NaN learns nothing and goes on for days; LLaMA-Factory logs the loss as
    0.0.

    iisft ends it after two such steps unless the preset says otherwise.
    """
    if case.preset and case.preset.watch.nan == "ignore":
        yield Seen(
            "watch.nan is ignore: a run whose loss is NaN goes on to its end",
            "watch.nan",
            preset("watch.nan=stop"),
            "warn",
        )
