"""Which torch, torchvision and torchaudio go together on which hardware, and the commands that
install them.

Versions and indexes: pytorch.org/get-started/previous-versions. rocm6.3 is the last index whose
rocBLAS has gfx906 kernels (legacy-rocm-build#4625); cu126 is the last CUDA index with Pascal and
Volta kernels (pytorch#172352).
"""

from dataclasses import dataclass

INDEXES = "https://download.pytorch.org/whl/"
INSTALL = "pip install 'iisft[train]' -c constraints.txt -c constraints-torch.txt"
INSTALL_BESIDE_TORCH = "pip install 'iisft[train]' -c constraints.txt"
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
        """Installs the three; `--index-url` keeps pip from mixing in another index's build."""
        return (
            f"pip install torch=={self.torch} torchvision=={self.torchvision} "
            f"torchaudio=={self.torchaudio}"
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
    return (INSTALL,) if found is None else (found.command, INSTALL_BESIDE_TORCH)
