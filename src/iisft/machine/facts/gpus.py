"""Which GPUs the machine has, from the kernel's own files and nvidia-smi, without torch.

Every probe takes a root path, so that a whole machine can be a folder of files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from iisft.child.constants_iisft import GPU_VARIABLES
from iisft.machine.facts.nvidia_smi import (
    NO_SMI,
    Smi,
    ask_nvidia_smi,
    is_here,
    parse_nvidia_smi,
)
from iisft.machine.facts.reader import Reader
from iisft.machine.facts.sensors import AMD_VENDOR
from iisft.quoting import is_count

NODES = "sys/class/kfd/kfd/topology/nodes"
_MASKS = {  # in the order in which they are applied
    "amd": GPU_VARIABLES,
    "nvidia": GPU_VARIABLES[-1:],
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    `arch` is gfx906 or sm_70, "" when unknown; `memory_gib` is 0 when unknown; `bus` is
    0000:03:00.0; `uuid` is what *_VISIBLE_DEVICES may name it by.
    """

    vendor: str
    arch: str
    memory_gib: float
    name: str = ""
    bus: str = ""
    no_atomics: bool = False
    uuid: str = ""


MASKS = frozenset(name for names in _MASKS.values() for name in names)


def masked(gpus: list[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that *_VISIBLE_DEVICES leave."""
    for vendor, names in _MASKS.items():
        for name in names:
            if (mask := environment.get(name)) is not None:
                gpus = _masked(gpus, vendor, mask)
    return gpus


def amd_gpus(root: Path | Reader = Path("/")) -> list[Gpu]:
    """AMD GPUs as the kernel's KFD topology tells them.

    HSA_OVERRIDE_GFX_VERSION does not reach it.
    """
    reader = root if isinstance(root, Reader) else Reader(root)
    found = []
    for name in reader.names(NODES, "[0-9]*"):
        node = f"{NODES}/{name}"
        properties = _properties(reader, f"{node}/properties")
        version = properties.get("gfx_target_version", 0)
        if properties.get("vendor_id") == AMD_VENDOR and version > 0:
            # linux kfd_topology: major * 10000 + minor * 100 + stepping, the stepping printed in
            # hex
            arch = f"gfx{version // 10000}{version // 100 % 100}{version % 100:x}"
            found.append(
                Gpu(
                    "amd",
                    arch,
                    _kfd_memory_gib(reader, node),
                    reader.text(f"{node}/name"),
                    _bus(properties),
                    _no_atomics(reader, node),
                    # as rocminfo prints it, and ROCR_VISIBLE_DEVICES takes it
                    f"GPU-{serial:016x}" if (serial := properties.get("unique_id", 0)) else "",
                )
            )
    return found


def nvidia_gpus(root: Path | Reader = Path("/"), smi: Smi | None = None) -> list[Gpu]:
    """NVIDIA GPUs of the driver's /proc folder, with what nvidia-smi knows about them.

    Args:
        root: where the machine's files lie.
        smi: what nvidia-smi said; left out, it is asked where the machine is this one.
    """
    reader = root if isinstance(root, Reader) else Reader(root)
    present = reader.names("proc/driver/nvidia/gpus")
    if smi is None:
        smi = ask_nvidia_smi() if reader.live and is_here() else NO_SMI
    known = [
        Gpu("nvidia", card.arch, card.memory_gib, card.name, card.bus, uuid=card.uuid)
        for card in parse_nvidia_smi(smi.output)
    ]
    return known or [
        Gpu("nvidia", "", 0.0, _model_name(reader, bus), bus.lower()) for bus in present
    ]


def _model_name(reader: Reader, bus: str) -> str:
    match = re.search(
        r"^Model:\s*(.+)$", reader.text(f"proc/driver/nvidia/gpus/{bus}/information"), re.MULTILINE
    )
    return match[1].strip() if match else ""


def bus_of_node(reader: Reader, node: str) -> str:
    """Where the GPU of a node of the kernel's KFD topology is plugged in; "" when unknown."""
    return _bus(_properties(reader, f"{NODES}/{node}/properties"))


def _properties(reader: Reader, path: str) -> dict[str, int]:
    return {
        name: int(value)
        for name, value in re.findall(r"^(\w+)\s+(\d+)$", reader.text(path), re.MULTILINE)
    }


def _bus(properties: Mapping[str, int]) -> str:
    if "location_id" not in properties:
        return ""
    place = properties["location_id"]
    domain, bus, device = properties.get("domain", 0), place >> 8 & 0xFF, place >> 3 & 0x1F
    return f"{domain:04x}:{bus:02x}:{device:02x}.{place & 7}"


def _no_atomics(reader: Reader, node: str) -> bool:
    """Bits 2 and 3 of a link's flags: no 32 or 64 bit atomics (linux kfd_crat.h)."""
    flags = [
        _properties(reader, f"{node}/io_links/{link}/properties").get("flags", 0)
        for link in reader.names(f"{node}/io_links")
    ]
    return any(value & 0b1100 for value in flags)


def _kfd_memory_gib(reader: Reader, node: str) -> float:
    sizes = [
        _properties(reader, f"{node}/mem_banks/{bank}/properties").get("size_in_bytes", 0)
        for bank in reader.names(f"{node}/mem_banks")
    ]
    return max(sizes, default=0) / 2**30


def _masked(gpus: list[Gpu], vendor: str, mask: str) -> list[Gpu]:
    own = [gpu for gpu in gpus if gpu.vendor == vendor]
    chosen = []
    for item in filter(None, (part.strip() for part in mask.split(","))):
        if is_count(item):
            if int(item) >= len(own):
                break  # CUDA and HIP ignore everything from the first invalid index on
            chosen.append(own[int(item)])
        elif item == "-1" or (named := _named(own, item)) is None:
            break
        else:
            chosen.append(named)
    return [gpu for gpu in gpus if gpu.vendor != vendor] + chosen


def _named(own: list[Gpu], uuid: str) -> Gpu | None:
    """The GPU of that UUID, which may be cut short. None where it is certain that none has it.

    A slice of a partitioned GPU has a UUID of its own: its size is not known here, and neither is
    the card where nothing tells the cards' UUIDs.
    """
    if not own:
        return None
    alike = len({(gpu.arch, gpu.memory_gib) for gpu in own}) == 1
    unknown = replace(own[0], uuid="") if alike else Gpu(own[0].vendor, "", 0.0)
    if uuid.startswith("MIG-"):
        return replace(unknown, memory_gib=0.0)
    if not all(gpu.uuid for gpu in own):
        return unknown
    return next((gpu for gpu in own if gpu.uuid.lower().startswith(uuid.lower())), None)
