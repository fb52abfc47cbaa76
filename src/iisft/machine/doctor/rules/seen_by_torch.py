"""Which GPUs torch sees, beside what the kernel and nvidia-smi tell, and what --deep measured on
them: products, memory, copies, the all-reduce, attention.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from iisft.errors import Finding, Severity
from iisft.gpu_table import architecture
from iisft.machine.doctor.engine import Case, causes_of_hang, training_gpus
from iisft.machine.doctor.fixes import by_hand, export, torch_for
from iisft.machine.facts.gpus import Gpu
from iisft.quoting import is_count
from iisft.rules import Fix, rule, seen

_EMULATED = 1.3  # times slower than the fastest other dtype
_OFF = 0.1  # of values around 1; rounding to fp16 makes 0.001


def _trouble(result: Mapping[str, Any]) -> str:
    """How a check went wrong; "" when it didn't."""
    if result.get("died"):
        said = f": {result['said']}" if result.get("said") else ""
        return f"{result['died']}{said}"
    return str(result.get("error", ""))


@rule(
    "R04",
    "gemm-smoke",
    applies="any GPU, with --deep",
    source="mi50-gfx906-unsloth-bnb4bit-lab: trust runtime probes over version strings; "
    "rocBLAS#1339",
)
def gemm_fails(case: Case) -> Iterator[Finding]:
    """A small product per dtype on each GPU, in a process of its own: it fails, aborts or never
    returns.
    """
    for result in case.deep_results("matmul"):
        trouble = _trouble(result)
        if trouble:
            yield seen(
                f"a {result.get('dtype')} product on {result.get('device')} fails: {trouble}",
                "env-check --deep",
                _cause(case, trouble),
            )


def _cause(case: Case, trouble: str) -> Fix:
    arch = case.gpus[0].arch if case.gpus else ""
    if any(word in trouble for word in ("Tensile", "invalid device function", "no kernel image")):
        return torch_for(arch, case.machine.host)
    if "hostcall" in trouble or "present state" in trouble:
        return by_hand("no PCIe atomics in this slot (R27): move the card to a slot of the CPU")
    if "did not return" in trouble:
        return by_hand(
            "the driver hangs: see sudo dmesg, then reboot; with several GPUs see R08 and R09"
        )
    return by_hand("see the other findings; with none: sudo dmesg")


@rule(
    "R17",
    "multi-gpu-handshake",
    applies="two ranks, with --deep",
    source="the first user's record; ROCm/vllm#390; rccl#1129; nccl#667",
    basis="reported",
)
def handshake(case: Case) -> Iterator[Finding]:
    """An all-reduce of two ranks: when it does not come back in 60 s, training won't either."""
    for result in case.deep_results("all-reduce"):
        trouble = _trouble(result)
        if not trouble:
            continue
        causes = causes_of_hang(case)
        named = "; ".join(f"{one.id} {one.message}" for one in causes)
        yield seen(
            f"two ranks can't exchange data ({result.get('backend')}): {trouble}. "
            + (
                f"Probable causes here: {named}"
                if named
                else "None of the known causes shows on this machine"
            ),
            "env-check --deep",
            causes[0].fix
            if causes
            else export(
                "NCCL_P2P_DISABLE=1",
                text="try export NCCL_P2P_DISABLE=1, then also NCCL_SHM_DISABLE=1 (slow)",
            ),
        )


@rule(
    "bf16-measured",
    applies="GPUs, with --deep",
    source="measured products of 2048 x 2048, bf16 against fp16 and fp32",
)
def bf16_measured(case: Case) -> Iterator[Finding]:
    """The measured rate of bf16 contradicts what is known of the architecture."""
    for device, measured in case.rates().items():
        index = device.removeprefix("cuda:")
        if not (
            is_count(index)
            and int(index) < len(case.gpus)
            and {"bfloat16", "float16", "float32"} <= set(measured)
        ):
            continue
        known = architecture(case.gpus[int(index)].arch)
        slow = measured["bfloat16"] * _EMULATED < max(measured["float16"], measured["float32"])
        if known and known.bf16 and slow:
            yield seen(
                f"bf16 is emulated or broken on {device}: {measured['bfloat16']:.1f} TFLOP/s, "
                f"{measured['float16']:.1f} in fp16 and {measured['float32']:.1f} in fp32",
                "env-check --deep",
                torch_for(case.gpus[int(index)].arch, case.machine.host),
                "warn",
            )


@rule("memory-short", applies="GPUs, with --deep", source="allocation up to the preset's need")
def memory_short(case: Case) -> Iterator[Finding]:
    """Less memory can be allocated than the preset needs: another process holds it, or the card is
    smaller.
    """
    for result in case.deep_results("memory"):
        trouble = _trouble(result)
        reached, wanted = float(result.get("gib", 0.0)), float(result.get("wanted_gib", 0.0))
        if trouble or reached < wanted:
            yield seen(
                f"{reached:.1f} of {wanted:.1f} GiB could be allocated on {result.get('device')}"
                + (f": {trouble}" if trouble else ""),
                "env-check --deep",
                by_hand(
                    "end what holds it (rocm-smi, nvidia-smi show the processes), or take a "
                    "smaller model"
                ),
            )


@rule(
    "copy-fails",
    applies="GPUs, with --deep",
    source="copies between host and device, and between devices",
)
def copies(case: Case) -> Iterator[Finding]:
    """A copy fails or arrives changed: a bad link, or P2P that the platform does not carry."""
    for result in case.deep_results("copy"):
        trouble = _trouble(result)
        if trouble:
            yield seen(
                f"copying {result.get('source')} to {result.get('device')} fails: {trouble}",
                "env-check --deep",
                by_hand(
                    "reseat the card, see sudo dmesg; between cards: iommu=pt (R08), or "
                    "NCCL_P2P_DISABLE=1"
                ),
            )


@rule(
    "sdpa-self-test",
    applies="GPUs, with --deep",
    source="pytorch PR 128922, PR 135964; transformers PR 33317",
)
def sdpa(case: Case) -> Iterator[Finding]:
    """sdpa in fp16 on scores that overflow fp16: it must stay finite and agree with float32, where
    eager gives NaN.
    """
    for result in case.deep_results("sdpa"):
        trouble = _trouble(result)
        off = result.get("off")
        if not trouble and result.get("finite") is False:
            trouble = "it overflows like eager attention, fp16 training would give NaN"
        elif not trouble and isinstance(off, float) and off > _OFF:
            trouble = f"it is {off:.2g} off attention in float32"
        if trouble:
            yield seen(
                f"sdpa in fp16 on {result.get('device')} fails: {trouble}",
                "env-check --deep",
                torch_for(case.gpus[0].arch, case.machine.host)
                if case.gpus
                else by_hand("torch 2.6 or newer"),
                "warn",
            )


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
