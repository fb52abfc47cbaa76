"""Packages beside torch that don't fit: torchaudio, bitsandbytes, DeepSpeed, monitoring."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import bitsandbytes_for, pip, unset
from iisft.machine.doctor.rules.interpreter import torch_fix
from iisft.rules import rule, seen

# op_builder/*.py of DeepSpeed 0.18.3: BUILD_VAR
_BUILD_SWITCHES = (
    "OPS AIO CCL_COMM CPU_ADAGRAD CPU_ADAM CPU_LION CUTLASS_OPS DEEP_COMPILE EVOFORMER_ATTN "
    "FP_QUANTIZER FUSED_ADAM "
    "FUSED_LAMB FUSED_LION GDS INFERENCE_CORE_OPS QUANTIZER RAGGED_DEVICE_OPS RAGGED_OPS "
    "RANDOM_LTD SHM_COMM "
    "SPARSE_ATTN SPATIAL_INFERENCE STOCHASTIC_TRANSFORMER STRING TRANSFORMER "
    "TRANSFORMER_INFERENCE UTILS"
)
_DEEPSPEED_UP_TO: dict[tuple[int, ...], tuple[int, ...]] = {
    (0, 9, 3): (0, 16, 9),
    (0, 9, 4): (0, 16, 9),
    (0, 9, 5): (0, 18, 4),
}


@rule(
    "R11",
    "torchaudio-mismatch",
    applies="the training interpreter",
    source="pytorch/audio PR 4226; LLaMA-Factory data/mm_plugin.py imports torchaudio; "
    "pytorch.org previous-versions",
)
def torchaudio_mismatch(case: Case) -> Iterator[Finding]:
    """torch, torchvision and torchaudio of different builds.

    LLaMA-Factory imports torchaudio even for text.
    """
    errors = case.machine.capabilities.errors if case.machine.capabilities else {}
    versions = {
        name: case.packages.get(name, "") for name in ("torch", "torchaudio", "torchvision")
    }
    tags = {version.partition("+")[2] for version in versions.values() if "+" in version}
    if "torchaudio" in errors:
        said = f"can't be imported: {errors['torchaudio']}"
    elif (
        versions["torchaudio"]
        and case.version("torch")
        and _minor(case, "torchaudio") > _minor(case, "torch")
    ):
        said = "is newer than torch"
    elif len(tags) > 1:
        said = "is of another build"
    else:
        return
    yield seen(
        f"torchaudio {versions['torchaudio'] or '?'} beside torch {versions['torch'] or '?'} "
        f"{said}; "
        "LLaMA-Factory imports it at its start, even for text",
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        torch_fix(case),
        "error" if "torchaudio" in errors or not _imported(case, "torchaudio") else "warn",
    )


def _imported(case: Case, package: str) -> bool:
    return case.machine.capabilities is not None and package in case.machine.capabilities.steps


def _minor(case: Case, package: str) -> tuple[int, ...]:
    return (case.version(package) or (0, 0))[:2]


@rule(
    "R26",
    "bitsandbytes-arch",
    applies="4-bit weights on AMD GPUs",
    source="unsloth PR 7354, install.sh; bitsandbytes PR 1748, PR 1856; Guide-AMD-HIP-ROCm",
)
def bitsandbytes_arch(case: Case) -> Iterator[Finding]:
    """bitsandbytes' wheels have no gfx906 kernels; it must be built for the card."""
    report = case.machine.capabilities
    facts = report.steps.get("bitsandbytes-libraries") if report else None
    if facts is None or "error" in facts or not case.amd:
        return
    has = facts.get("rocm_archs")
    wanted = case.preset is not None and (
        case.preset.weights == "nf4" or bool(case.argument("quantization_bit"))
    )
    missing = [gpu.arch for gpu in case.amd if gpu.arch and gpu.arch not in (has or [])]
    if missing and (wanted or case.preset is None):
        yield seen(
            f"bitsandbytes {case.packages.get('bitsandbytes', '')} has no kernels for "
            f"{missing[0]}: no 4-bit weights",
            f"its ROCm libraries name {', '.join(has) if has else 'no architecture'}",
            bitsandbytes_for(missing[0]),
            "error" if wanted else "info",
        )


@rule(
    "R28",
    "deepspeed-version",
    applies="zero2 and zero3",
    source="LLaMA-Factory parser.py; DeepSpeed#7347",
)
def deepspeed_version(case: Case) -> Iterator[Finding]:
    """Each LLaMA-Factory takes DeepSpeed only up to a version, and DISABLE_VERSION_CHECK does not
    skip that check.
    """
    installed, trainer = case.version("deepspeed"), case.version("llamafactory")
    limit = _DEEPSPEED_UP_TO.get(trainer[:3], (0, 16, 4)) if trainer else None
    sharded = case.preset is not None and case.preset.sharding in ("zero2", "zero3")
    if installed and limit and installed > limit and (sharded or case.preset is None):
        text = ".".join(map(str, limit))
        yield seen(
            f"DeepSpeed {case.packages['deepspeed']} is newer than LLaMA-Factory "
            f"{case.packages['llamafactory']} takes "
            f"({text})",
            "package versions",
            pip(
                f"pip install 'deepspeed>=0.10.0,<={text}'",
                text=f"pip install 'deepspeed>=0.10.0,<={text}', or sharding: none (enough for "
                "LoRA on two GPUs)",
            ),
            "error" if sharded else "info",
        )


@rule(
    "R29",
    "deepspeed-build",
    applies="building DeepSpeed",
    source="deepspeed 0.18.3 op_builder; DeepSpeed#4989",
)
def deepspeed_build(case: Case) -> Iterator[Finding]:
    """DS_BUILD_OPS=1 builds every operator at once and dies at dskernels.

    Unknown DS_BUILD_ names do nothing.
    """
    switches = [name for name in case.env if name.startswith("DS_BUILD_")]
    unknown = [
        name for name in switches if name.removeprefix("DS_BUILD_") not in _BUILD_SWITCHES.split()
    ]
    if case.env.get("DS_BUILD_OPS") == "1":
        yield seen(
            "DS_BUILD_OPS=1 makes DeepSpeed build every operator when it is installed, also those "
            "that need dskernels",
            "environment",
            pip(
                "export DS_BUILD_OPS=0 && pip install deepspeed",
                text="DS_BUILD_OPS=0: operators are built when needed",
            ),
            "warn",
        )
    if unknown:
        yield seen(
            f"DeepSpeed knows no {', '.join(unknown)}", "environment", unset(*unknown), "warn"
        )


@rule(
    "R43",
    "conv3d-torch29",
    applies="vision models",
    source="LLaMA-Factory loader.py; pytorch#166122",
)
def conv3d(case: Case) -> Iterator[Finding]:
    """LLaMA-Factory refuses vision models with Conv3D under torch 2.9."""
    torch = case.version("torch")
    if torch and (2, 9) <= torch < (2, 10) and "vision_config" in case.model:
        yield seen(
            f"torch {case.packages['torch']} is refused for vision models (slow Conv3D)",
            "vision_config in the model's config.json",
            pip(
                text="torch 2.8.0 with torchvision 0.23.0 and torchaudio 2.8.0 from the same "
                "index, or 2.10 and newer"
            ),
        )


@rule(
    "R51",
    "amd-smi-python",
    applies="amdsmi, pyrsmi",
    source="amdsmi 7.0.2 and pyrsmi 1.1.0, run without ROCm",
)
def amd_smi(case: Case) -> Iterator[Finding]:
    """amdsmi and pyrsmi print and raise KeyError at import where ROCm's library is missing.

    Iisft reads sysfs.
    """
    there = [name for name in ("amdsmi", "pyrsmi") if name in case.packages]
    if there and not case.machine.host.amd_smi_library:
        yield seen(
            f"{there[0]} raises KeyError('libamd_smi.so') when a script imports it here; iisft "
            "does not need it",
            "/opt/rocm/lib/libamd_smi.so is missing",
            pip(f"pip uninstall -y {there[0]}"),
            "info",
        )
