"""Which GPUs the machine has, from the kernel's own files and nvidia-smi, without torch.

Every probe takes a root path, so that a whole machine can be a folder of files.
"""

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from iisft import process

_AMD_VENDOR = 0x1002
_MASKS = {
    "amd": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `arch` is gfx906 or sm_70, "" when unknown; `memory_gib` is 0 when unknown."""

    vendor: str
    arch: str
    memory_gib: float
    name: str = ""


def visible_gpus(root: Path = Path("/")) -> list[Gpu]:
    """GPUs that a process started from here would see: the machine's, less what *_VISIBLE_DEVICES hides."""
    found = [*amd_gpus(root), *nvidia_gpus(root)]
    for vendor, names in _MASKS.items():
        for name in names:
            if (mask := os.environ.get(name)) is not None:
                found = _masked(found, vendor, mask)
    return found


def amd_gpus(root: Path = Path("/")) -> list[Gpu]:
    """AMD GPUs as the kernel's KFD topology tells them; HSA_OVERRIDE_GFX_VERSION does not reach it."""
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    found = []
    for node in sorted(nodes.glob("[0-9]*"), key=lambda path: int(path.name)):
        properties = dict(re.findall(r"^(\w+)\s+(\d+)$", _read(node / "properties"), re.MULTILINE))
        version = int(properties.get("gfx_target_version", 0))
        if int(properties.get("vendor_id", 0)) == _AMD_VENDOR and version > 0:
            # linux kfd_topology: major * 10000 + minor * 100 + stepping, the stepping printed in hex
            arch = f"gfx{version // 10000}{version // 100 % 100}{version % 100:x}"
            found.append(Gpu("amd", arch, _kfd_memory_gib(node), _read(node / "name").strip()))
    return found


def nvidia_gpus(root: Path = Path("/")) -> list[Gpu]:
    """NVIDIA GPUs of the driver's /proc folder, with what nvidia-smi knows about them on this machine."""
    present = sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    if not present:
        return []
    if root == Path("/") and (program := shutil.which("nvidia-smi")):
        query = [program, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
        with contextlib.suppress(OSError, TimeoutError):
            result = process.run(query, timeout_s=20)
            if result.returncode == 0 and (known := parse_nvidia_smi(result.stdout)):
                return known
    return [Gpu("nvidia", "", 0.0) for _ in present]


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Lines of `nvidia-smi --query-gpu=name,compute_cap,memory.total --format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and re.fullmatch(r"\d+\.\d+", parts[1]):
            memory = float(parts[2]) / 1024 if parts[2].replace(".", "").isdigit() else 0.0
            found.append(Gpu("nvidia", f"sm_{parts[1].replace('.', '')}", memory, parts[0]))
    return found


def _kfd_memory_gib(node: Path) -> float:
    sizes = [
        int(match[1])
        for bank in node.glob("mem_banks/*/properties")
        if (match := re.search(r"^size_in_bytes\s+(\d+)$", _read(bank), re.MULTILINE))
    ]
    return max(sizes, default=0) / 2**30


def _masked(gpus: list[Gpu], vendor: str, mask: str) -> list[Gpu]:
    own = [gpu for gpu in gpus if gpu.vendor == vendor]
    chosen = []
    for item in filter(None, (part.strip() for part in mask.split(","))):
        if item.isdigit():
            if int(item) >= len(own):
                break  # CUDA and HIP ignore everything from the first invalid index on
            chosen.append(own[int(item)])
        elif item == "-1":
            break
        elif own:
            chosen.append(own[0])  # a UUID names one of them
    return [gpu for gpu in gpus if gpu.vendor != vendor] + chosen


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
