"""Which torch, torchvision and torchaudio go together on which hardware, and the commands that
install them.

Versions and indexes: pytorch.org/get-started/previous-versions. rocm6.3 is the last of its indexes
whose rocBLAS has gfx906 kernels (legacy-rocm-build#4625); cu126 is the last CUDA index with Pascal
and Volta kernels (pytorch#172352), and torch 2.14 the last with it (pytorch#190385). For gfx906
there are also TheRock's nightlies (RELEASES.md; the sanity tests of SUPPORTED_GPUS.md are empty
there, #3759 names what is left out) and the images of mixa3607/ML-gfx906: rule R02 names them.
"""

from dataclasses import dataclass
from pathlib import Path

from iisft.quoting import shell_word

INDEXES = "https://download.pytorch.org/whl/"
_CUDA_13_DRIVER = 580  # docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility


@dataclass(frozen=True, slots=True)
class TorchSet:
    """Three packages of one index that work together."""

    hardware: str
    torch: str
    torchvision: str
    torchaudio: str
    index: str

    @property
    def command(self) -> str:
        """Installs the three, or puts them in the place of others once they are here.

        `--index-url` keeps pip from mixing in another index's build. The build is part of each
        version: without it, pip takes a CUDA build of that version for what was asked for, and
        torch would have to be uninstalled first.
        """
        return (
            f"pip install torch=={self.torch}+{self.index} "
            f"torchvision=={self.torchvision}+{self.index} "
            f"torchaudio=={self.torchaudio}+{self.index}"
            f" --index-url {INDEXES}{self.index}"
        )


GFX906 = TorchSet("MI50, MI60, Radeon VII", "2.7.1", "0.22.1", "2.7.1", "rocm6.3")
_RDNA2 = TorchSet("RDNA2", "2.7.1", "0.22.1", "2.7.1", "rocm6.3")
_ROCM = TorchSet("CDNA (MI100 and newer), RDNA3 and newer", "2.9.1", "0.24.1", "2.9.1", "rocm6.4")
OLD_NVIDIA = TorchSet(
    "Pascal and Volta, and any card under an older driver", "2.9.1", "0.24.1", "2.9.1", "cu126"
)
_CPU = TorchSet("the CPU", "2.9.1", "0.24.1", "2.9.1", "cpu")

# The first prefix that fits decides; what is not named here takes torch from constraints-torch.txt.
_BY_ARCH: tuple[tuple[str, TorchSet], ...] = (
    ("gfx900", GFX906),
    ("gfx906", GFX906),
    ("gfx10", _RDNA2),
    ("gfx", _ROCM),
    ("sm_5", OLD_NVIDIA),
    ("sm_6", OLD_NVIDIA),
    ("sm_70", OLD_NVIDIA),
    ("sm_72", OLD_NVIDIA),
    ("cpu", _CPU),
)


def constraints(*, with_torch: bool) -> tuple[Path, ...]:
    """The files that name tested versions, in the checkout or in the installed wheel.

    Args:
        with_torch: torch's own set too; False where a torch is there that must stay.
    """
    package = Path(__file__).parents[1]
    installed = package / "constraints"
    folder = installed if installed.is_dir() else package.parents[1]
    names = ("constraints.txt", "constraints-torch.txt") if with_torch else ("constraints.txt",)
    return tuple(folder / name for name in names)


def install(*, with_torch: bool = True) -> str:
    """The command that installs iisft with LLaMA-Factory, at the tested versions."""
    files = constraints(with_torch=with_torch)
    return " ".join(
        ["pip install 'iisft[train]'", *(f"-c {shell_word(str(file))}" for file in files)]
    )


def torch_set(arch: str, nvidia_driver: int | None = None) -> TorchSet | None:
    """The set for an architecture; None where the set of constraints-torch.txt (CUDA 13) serves.

    Args:
        arch: gfx906, sm_70, cpu.
        nvidia_driver: the driver's major version; CUDA 13 builds need 580.
    """
    for prefix, found in _BY_ARCH:
        if arch.startswith(prefix):
            return found
    return OLD_NVIDIA if nvidia_driver is not None and nvidia_driver < _CUDA_13_DRIVER else None


def install_commands(arch: str, nvidia_driver: int | None = None) -> tuple[str, ...]:
    """The commands that set up the training interpreter, torch first so that nothing
    replaces it.
    """
    found = torch_set(arch, nvidia_driver)
    return (install(),) if found is None else (found.command, install(with_torch=False))
