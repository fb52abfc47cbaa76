"""Which GPUs torch sees in the training interpreter, beside what the kernel and nvidia-smi tell."""

from collections.abc import Iterator

from iisft.errors import Finding, Severity
from iisft.machine.doctor.engine import Case, training_gpus
from iisft.machine.doctor.fixes import by_hand, export, torch_for
from iisft.machine.facts.gpus import Gpu
from iisft.rules import rule, seen

_SAME_SIZE = 0.9  # what the driver keeps of a card is less


@rule(
    "torch-not-cuda",
    applies="NVIDIA GPUs, and presets for them",
    source="torch.version.cuda; LlamaFactory#10511 (an AMD and an NVIDIA GPU in one machine)",
)
def torch_not_cuda(case: Case) -> Iterator[Finding]:
    """A ROCm or CPU build of torch for an NVIDIA GPU: it can't see the GPU, and says only that
    there is none, or trains on the AMD GPU beside it.
    """
    hardware = case.preset.hardware if case.preset and not case.on_cpu else None
    wanted = hardware.arch if hardware and hardware.vendor == "nvidia" else ""
    version = case.packages.get("torch", "")
    other = not case.torch.get("cuda") if case.torch else "+rocm" in version or "+cpu" in version
    if not version or not other or not (wanted or case.nvidia):
        return
    arch = case.nvidia[0].arch if case.nvidia else wanted
    yield seen(
        f"torch {version} is not a CUDA build: it can't see "
        + (case.machine.describe_gpu(case.nvidia[0]) if case.nvidia else "an NVIDIA GPU"),
        "torch.version.cuda is None",
        torch_for(arch or "nvidia", case.machine.host),
    )


@rule(
    "gpus-hidden", applies="any GPU", source="torch.cuda.is_available in the training interpreter"
)
def torch_sees_fewer(case: Case) -> Iterator[Finding]:
    """The kernel has GPUs, torch was built for them, and sees fewer."""
    report = case.machine.capabilities
    if report is None or report.devices is None or not case.gpus:
        return
    vendor = "amd" if case.hip else "nvidia" if case.torch.get("cuda") else ""
    expected = [gpu for gpu in training_gpus(case.machine.told, vendor) if gpu.vendor == vendor]
    if len(report.devices) < len(expected):
        yield seen(
            f"torch sees {len(report.devices)} of {len(expected)} GPUs",
            "torch.cuda.device_count() in the training interpreter",
            by_hand("see the other findings (driver, permission, *_VISIBLE_DEVICES); then dmesg"),
        )


@rule(
    "gpus-differ",
    applies="any GPU",
    source="OpenRLHF#402, vllm#41848 (MIG); unsloth#6352, gpustack#1633 (order); "
    "legacy-rocm-build#5444 (APU); legacy-rocm-build#3734, #4062 (WSL)",
)
def torch_sees_others(case: Case) -> Iterator[Finding]:
    """torch sees another GPU, or another size of it, than the kernel and nvidia-smi tell: a slice
    of a partitioned card, a processor's graphics, Windows' driver, another order of the cards.

    What torch sees is what trains, so it is what everything else here is judged by.
    """
    machine, gpus = case.machine, case.gpus
    pairs = [pair for pair in machine.torch_sees if pair[0] in gpus]
    if (other := _other_order(case)) is not None:
        yield other
    found = {_difference(machine.describe_gpu(gpu), gpu, match): gpu for gpu, match in pairs}
    for (text, severity), gpu in found.items():
        if text:
            yield seen(
                text,
                "torch.cuda.get_device_properties in the training interpreter",
                by_hand(f"nothing, if {gpu.memory_gib:.1f} GiB is what you gave to it"),
                severity,
            )


def _difference(name: str, gpu: Gpu, match: Gpu | None) -> tuple[str, Severity]:
    if match is None:
        return (
            f"torch sees {name} with {gpu.memory_gib:.1f} GiB, of which the kernel's files tell "
            "nothing (WSL?): its heat and load can't be watched"
        ), "info"
    small, large = sorted((gpu.memory_gib, match.memory_gib))
    if not small or small > large * _SAME_SIZE:
        return "", "info"
    return (
        f"torch sees {gpu.memory_gib:.1f} GiB of {name}, the driver says {match.memory_gib:.1f}: "
        "torch's figure counts"
    ), "warn" if gpu.memory_gib < match.memory_gib else "info"


def _other_order(case: Case) -> Finding | None:
    """CUDA counts the fastest card first, where CUDA_DEVICE_ORDER does not say PCI_BUS_ID."""
    machine = case.machine
    if not case.torch.get("cuda") or machine.answers.environment.get("CUDA_DEVICE_ORDER"):
        return None
    told = [gpu for gpu in machine.told if gpu.vendor == "nvidia"]
    matched = [match for _, match in machine.torch_sees]
    for index, (match, gpu) in enumerate(zip(matched, told, strict=False)):
        if match is not None and gpu.arch and match.arch != gpu.arch:
            return seen(
                f"GPU {index} is {match.name or match.arch} for torch and "
                f"{gpu.name or gpu.arch} for nvidia-smi: CUDA counts the fastest first",
                f"CUDA_VISIBLE_DEVICES={machine.answers.environment.get('CUDA_VISIBLE_DEVICES')}",
                export("CUDA_DEVICE_ORDER=PCI_BUS_ID"),
                "warn",
            )
    return None
