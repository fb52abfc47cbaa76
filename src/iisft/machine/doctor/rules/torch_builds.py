"""Whether the installed torch was built for the GPUs that are here."""

import bisect
import re
from collections.abc import Iterator

from iisft.errors import Finding
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import export, torch_for
from iisft.quoting import is_count
from iisft.rules import Fix, rule, seen

# TheRock's releases count on from 7.9.
_RELEASES = ((5, 5), (5, 6), (5, 7), (6, 0), (6, 1), (6, 2), (6, 3), (6, 4), (7, 0), (7, 1), (7, 2),
             (7, 9), (7, 10), (7, 11), (7, 12), (7, 13), (7, 14), (7, 15))  # fmt: skip
_HIPBLASLT = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1200", "gfx1201")
RDNA2_SIBLINGS = ("gfx1031", "gfx1032", "gfx1034", "gfx1035", "gfx1036")


def _install(case: Case) -> Fix:
    return torch_for(case.gpus[0].arch or case.gpus[0].vendor, case.machine.host)


def _is(case: Case) -> str:
    return f"torch {case.torch['version']}"


def overridden(case: Case, arch: str) -> str:
    """The architecture whose code the runtime loads for `arch`: HSA_OVERRIDE_GFX_VERSION=10.3.0
    names gfx1030.
    """
    match = re.fullmatch(
        r"(\d+)\.(\d+)\.(\d+)", case.env.get("HSA_OVERRIDE_GFX_VERSION", "").strip()
    )
    return f"gfx{match[1]}{match[2]}{int(match[3]):x}" if match else arch


@rule(
    "R01",
    "torch-not-rocm",
    applies="AMD GPUs",
    source="LLaMA-Factory README; unsloth install_python_stack.py; the first user's record",
)
def torch_not_rocm(case: Case) -> Iterator[Finding]:
    """An AMD GPU with a CUDA or CPU build of torch: it can't see the GPU, and says only that there
    is none.

    PyPI's torch is the CUDA build; torchvision and torchaudio from PyPI pull it back in.
    """
    version = case.packages.get("torch", "")
    wanted = (
        case.preset.hardware
        if case.preset and not case.on_cpu and case.preset.hardware.vendor == "amd"
        else None
    )
    if (case.amd or wanted) and version and case.hip is None and "rocm" not in version:
        gpu = (
            case.machine.describe_gpu(case.amd[0]) if case.amd else "AMD GPU that the preset is for"
        )
        yield seen(
            f"torch {version} is not a ROCm build: it can't see the {gpu}",
            "torch.version.hip is None",
            torch_for(
                case.amd[0].arch if case.amd else wanted.arch if wanted else "", case.machine.host
            ),
        )


@rule(
    "R02",
    "rocblas-no-gfx906",
    applies="MI50, MI60, Radeon VII (gfx906)",
    source="ROCm/legacy-rocm-build#4625, #5215; unsloth PR 7354; LocalAI#9313",
)
def rocblas_without_gfx906(case: Case) -> Iterator[Finding]:
    """AMD left gfx906 out of rocBLAS from ROCm 6.4 on. torch imports and sees the card; the first
    matmul aborts.

    The message is then: rocBLAS error: Cannot read TensileLibrary.dat for GPU arch : gfx906. Newer
    torch with such kernels: TheRock's nightlies (torch[device-gfx906], 2.11 to 2.14; built, and not
    tested on the card by AMD) and the images mixa3607/pytorch-gfx906 (torch 2.13, ROCm 7.14).
    """
    there = case.torch.get("blas_archs")
    if case.computes or "gfx906" not in case.archs or not case.hip or there is None:
        return
    if "gfx906" not in there:
        yield seen(
            f"{_is(case)} brings a rocBLAS without gfx906 kernels: the first matmul will abort "
            "the process",
            f"rocblas/library has {', '.join(there) or 'no kernel files'}",
            torch_for("gfx906", case.machine.host),
        )


@rule(
    "R03",
    "arch-list-missing",
    applies="AMD GPUs",
    source="pytorch .ci/docker/manywheel/build.sh; pytorch#132570, PR 142827",
)
def no_code_for_amd(case: Case) -> Iterator[Finding]:
    """A torch without code objects for the card: HIP error: invalid device function at the first
    operation.

    For gfx906 passing this is not enough, see R02.
    """
    has = [str(name).partition(":")[0] for name in case.torch.get("arch_list") or []]
    if not case.hip or not has or case.computes:
        return
    arch = case.main_arch
    if case.amd and arch and overridden(case, arch) not in has:
        sibling = arch in RDNA2_SIBLINGS and "gfx1030" in has
        yield seen(
            f"{_is(case)} has no code for {arch}: it fails with 'invalid device function'",
            f"torch.cuda.get_arch_list() is {', '.join(has)}",
            export("HSA_OVERRIDE_GFX_VERSION=10.3.0")
            if sibling
            else torch_for(arch, case.machine.host),
        )


@rule(
    "R12",
    "cuda-arch-missing",
    applies="NVIDIA GPUs",
    source="pytorch#172352, #190385; Whisper-WebUI#653; ComfyUI PR 16438",
)
def no_code_for_nvidia(case: Case) -> Iterator[Finding]:
    """A torch without kernels for the card's compute capability: no kernel image is available.

    CUDA 13 builds (PyPI's) begin with Turing (7.5), cu126 with Maxwell (5.0), and torch 2.14 is the
    last that is built with it. sm_60 code runs on 6.1.
    """
    has = [str(name) for name in case.torch.get("arch_list") or []]
    if case.torch.get("cuda") is None or not has or case.computes:
        return
    for arch in dict.fromkeys(gpu.arch for gpu in case.nvidia if gpu.arch):
        if not any(_serves(name, arch) for name in has):
            yield seen(
                f"{_is(case)} has no kernels for {arch}: 'no kernel image is available for "
                "execution on the device'",
                f"torch.cuda.get_arch_list() is {', '.join(has)}",
                torch_for(arch, case.machine.host),
            )


def _serves(built: str, arch: str) -> bool:
    """Code for sm_XY runs on the same major with at least that minor.

    Compute_XY is compiled for anything newer.
    """
    kind, _, text = built.partition("_")
    have, want = re.match(r"\d+", text), arch.removeprefix("sm_")
    if have is None or not is_count(want):
        return False
    number, wanted = int(have[0]), int(want)
    if kind == "compute":
        return number <= wanted
    return number // 10 == wanted // 10 and number % 10 <= wanted % 10


@rule(
    "R13",
    "torch-load-refused",
    applies="transformers 4.52 and newer with torch older than 2.6",
    source="transformers PR 37785; LlamaFactory#8379; CVE-2025-32434",
)
def torch_load_refused(case: Case) -> Iterator[Finding]:
    """transformers refuses torch.load below torch 2.6: no checkpoint's optimizer.pt, no
    pytorch_model.bin.

    Training itself works, so it is found out at the first resume.
    """
    torch, transformers = case.version("torch"), case.version("transformers")
    if torch and transformers and torch < (2, 6) and transformers >= (4, 52):
        yield seen(
            f"torch {case.packages['torch']} is older than 2.6: transformers "
            f"{case.packages['transformers']} will not "
            "load a checkpoint's optimizer, so a run that stops can't be resumed",
            "package versions",
            _install(case) if case.gpus else torch_for("cpu", case.machine.host),
            "error" if case.preset else "warn",
        )


@rule(
    "R14",
    "driver-vs-userspace",
    applies="AMD GPUs",
    source="rocm.docs.amd.com: user and kernel-space support matrix (plus and minus two releases)",
)
def driver_too_far(case: Case) -> Iterator[Finding]:
    """AMD tests a kernel driver with user space at most two releases away.

    Torch brings its own user space.
    """
    driver, wheel = case.machine.host.rocm_release, case.hip and case.hip[:2]
    if not case.amd or driver is None or wheel is None or len(wheel) < 2 or case.computes:
        return
    if min(driver, wheel) < _RELEASES[0]:
        return  # of a time before that statement
    apart = abs(_place(driver) - _place(wheel))
    if apart > 2:
        yield seen(
            f"torch is built for ROCm {wheel[0]}.{wheel[1]}, this machine's ROCm is "
            f"{driver[0]}.{driver[1]}: AMD tests "
            "driver and user space at most two releases apart",
            f"/opt/rocm/.info/version is {case.machine.host.rocm}",
            _install(case),
            "warn",
        )


def _place(release: tuple[int, ...]) -> int:
    """Where a release stands in their order; one that is newer than all of them is next."""
    return bisect.bisect_left(_RELEASES, release)


@rule(
    "R35",
    "hipblaslt-unsupported",
    applies="AMD GPUs without hipBLASLt kernels",
    source="pytorch#138067, PR 128753; ROCm/hipBLASLt#1243; torch Context.cpp",
)
def no_hipblaslt(case: Case) -> Iterator[Finding]:
    """torch warns 'Attempting to use hipBLASLt on an unsupported architecture' and takes hipBLAS:
    harmless.

    2.5 development builds raised instead.
    """
    without = [arch for arch in case.archs if arch.startswith("gfx") and arch not in _HIPBLASLT]
    if case.hip and without and case.env.get("TORCH_BLAS_PREFER_HIPBLASLT") != "0":
        yield seen(
            f"hipBLASLt has no kernels for {', '.join(without)}: torch says so at the first "
            "matmul and takes hipBLAS, "
            "which is right",
            "TORCH_BLAS_PREFER_HIPBLASLT is not 0",
            export(
                "TORCH_BLAS_PREFER_HIPBLASLT=0",
                text="export TORCH_BLAS_PREFER_HIPBLASLT=0 silences it",
            ),
            "info",
        )


@rule(
    "R39",
    "rdna2-rocm7",
    applies="RDNA2 (gfx103x)",
    source="unsloth PR 6124, PR 7277; TheRock SUPPORTED_GPUS.md",
    basis="reported",
)
def rdna2_under_rocm7(case: Case) -> Iterator[Finding]:
    """pytorch.org's wheels for ROCm 7 were reported to crash on RDNA2; TheRock's, which bring
    rocm-sdk-core, are tested there (its SUPPORTED_GPUS.md).
    """
    cards = [arch for arch in case.archs if arch.startswith("gfx103")]
    if "rocm-sdk-core" in case.packages or case.computes:
        return
    if cards and case.hip and case.hip[0] >= 7:
        yield seen(
            f"{_is(case)} (ROCm 7) was reported to crash with a segmentation fault on "
            f"{', '.join(cards)}",
            f"torch.version.hip is {case.torch['hip']}",
            torch_for(cards[0], case.machine.host),
            "warn",
        )


@rule(
    "R52",
    "rocm-image-too-new",
    applies="MI50, MI60, Radeon VII in a container",
    source="LLaMA-Factory docker/docker-rocm/Dockerfile; mixa3607/ML-gfx906",
)
def image_without_gfx906(case: Case) -> Iterator[Finding]:
    """LLaMA-Factory's own ROCm image is built on AMD's ROCm 7, whose rocBLAS has no gfx906 kernels.

    Images of the same release that were built for the card have them: the kernels are looked at.
    """
    host, own = case.machine.host, case.torch.get("blas_archs")
    if case.computes or (own is not None and "gfx906" in own):
        return
    if host.container and "gfx906" in case.archs and host.blas_archs:
        if "gfx906" in host.blas_archs:
            return
        yield seen(
            f"this container's image has ROCm {host.rocm}, whose rocBLAS has no gfx906 kernels",
            f"{host.container}; /opt/rocm/lib/rocblas/library has {', '.join(host.blas_archs)}",
            Fix(
                "use an image with ROCm 6.3, or one built for the card (mixa3607/pytorch-gfx906: "
                "torch 2.13 on ROCm 7.14)",
                stage="container",
            ),
            "warn",
        )


@rule(
    "nvidia-driver-old",
    applies="NVIDIA GPUs",
    source="docs.nvidia.com/deploy/cuda-compatibility: CUDA 13 needs driver 580, CUDA 12 driver "
    "525",
)
def nvidia_driver_old(case: Case) -> Iterator[Finding]:
    """A CUDA 13 build of torch (PyPI's) under a driver older than 580, or CUDA 12 under one older
    than 525.
    """
    cuda, driver = case.torch.get("cuda"), case.machine.host.nvidia_major
    if not case.nvidia or not cuda or driver is None:
        return
    needed = {"13": 580, "12": 525}.get(str(cuda).partition(".")[0], 0)
    if driver < needed:
        yield seen(
            f"{_is(case)} needs an NVIDIA driver of {needed} or newer, this one is "
            f"{case.machine.host.nvidia_driver}: "
            "torch will see no GPU",
            "/proc/driver/nvidia/version",
            torch_for(case.nvidia[0].arch or "nvidia", case.machine.host),
        )
