"""What the GPUs of this machine are doing now: load, memory, heat, power. Nothing here may fail;
unknown is None.

Files and units of AMD GPUs: docs.kernel.org/gpu/amdgpu/thermal.html (gpu_busy_percent in percent,
temp*_input and temp*_crit in millidegrees Celsius, power1_average and power1_input in microwatts)
and driver-misc.html beside it (mem_info_vram_used and mem_info_vram_total in bytes, product_name).
NVIDIA's: nvidia-smi --help-query-gpu.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iisft.machine.facts.nvidia_smi import ask_for_now, is_here, number_of
from iisft.machine.facts.reader import Reader

AMD_VENDOR = 0x1002
_DRM = "sys/class/drm"
_ON_THE_DIE = ("junction", "edge")
_NEAR_CRITICAL_C = 2.0
_SAME_SIZE = 0.9  # torch calls a card of 32 GiB one of 31.98, the driver keeps up to 4 % of some

# A sensor that is switched off or not connected reports 0xffff or a negative number.
_PERCENT = (0.0, 100.0)
_DEGREES_C = (-50.0, 200.0)
_WATTS = (0.0, 5000.0)


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one moment; None = unknown. `name` is the product's, else the PCI id, else "".

    Memory in GiB, temperature in degrees Celsius, power in watts. `throttled`: slowed down because
    of heat, or at most 2 degrees from it.
    """

    vendor: str
    name: str
    busy_percent: float | None = None
    memory_used_gib: float | None = None
    memory_total_gib: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttled: bool | None = None


@dataclass(frozen=True, slots=True)
class Temperature:
    """One temperature of a card and the value at which it slows down, if it has one."""

    label: str
    celsius: float
    critical: float | None

    @property
    def near_critical(self) -> bool:
        return self.critical is not None and self.celsius >= self.critical - _NEAR_CRITICAL_C


def sample(root: Path = Path("/")) -> list[GpuSample]:
    """Every GPU of the machine whose files lie under `root`: AMD's in the order of their cards,
    then NVIDIA's.

    NVIDIA's are asked only on the real machine (root "/"). Never raises.
    """
    reader = Reader(root)
    amd = [_amd_sample(reader, device) for device in amd_devices(reader)]
    asked = ask_for_now() if reader.live and is_here() else []
    return [*amd, *map(_nvidia_sample, asked)]


def samples_of(sizes_gib: Sequence[float]) -> list[GpuSample]:
    """The samples, where they are certain to be of the GPUs of these sizes; else none.

    The sensors number all GPUs, variables may hide some from a process; and of a partitioned card
    and of a processor's graphics they tell another size than a process gets.
    """
    found = sample()
    told = sorted(one.memory_total_gib or 0.0 for one in found)
    sizes = sorted(sizes_gib)
    same = len(told) == len(sizes) and all(
        min(pair) >= max(pair) * _SAME_SIZE for pair in zip(told, sizes, strict=True)
    )
    return found if same else []


def amd_devices(reader: Reader) -> list[str]:
    """The folders of AMD's cards, in their order."""
    names = [name for name in reader.names(_DRM, "card*") if re.fullmatch(r"card\d+", name)]
    devices = [f"{_DRM}/{name}/device" for name in names]
    return [device for device in devices if reader.number(f"{device}/vendor") == AMD_VENDOR]


def temperatures(reader: Reader, device: str) -> list[Temperature]:
    """All temperatures of an AMD card.

    The memory's counts too: HBM at its limit slows the card down like a hot die.
    """
    found = []
    for hwmon in _hwmons(reader, device):
        for file in reader.names(hwmon, "temp*_input"):
            channel = f"{hwmon}/{file.removesuffix('_input')}"
            celsius = _number(reader, f"{channel}_input", 1000, _DEGREES_C)
            if celsius is not None:
                critical = _number(reader, f"{channel}_crit", 1000, (1.0, 200.0))
                found.append(Temperature(reader.text(f"{channel}_label"), celsius, critical))
    return found


def watts(reader: Reader, device: str, *names: str) -> float | None:
    """The first of these files of an AMD card that holds a power."""
    files = [f"{hwmon}/{name}" for name in names for hwmon in _hwmons(reader, device)]
    values = (_number(reader, file, 1e6, _WATTS) for file in files)
    return next((value for value in values if value is not None), None)


def _amd_sample(reader: Reader, device: str) -> GpuSample:
    found = temperatures(reader, device)
    shown = [one.celsius for one in found if one.label in _ON_THE_DIE]
    judged = [one.near_critical for one in found if one.critical is not None]
    return GpuSample(
        vendor="amd",
        name=reader.text(f"{device}/product_name") or _pci_id(reader, device),
        busy_percent=_number(reader, f"{device}/gpu_busy_percent", 1, _PERCENT),
        memory_used_gib=_number(reader, f"{device}/mem_info_vram_used", 2**30),
        memory_total_gib=_number(reader, f"{device}/mem_info_vram_total", 2**30),
        temperature_c=max(shown or [one.celsius for one in found], default=None),
        power_w=watts(reader, device, "power1_average", "power1_input"),
        throttled=any(judged) if judged else None,
    )


def _pci_id(reader: Reader, device: str) -> str:
    """As lspci -n prints it; most cards that aren't made for servers have no product_name."""
    number = reader.text(f"{device}/device").removeprefix("0x")
    return f"1002:{number}" if number else ""


def _hwmons(reader: Reader, device: str) -> list[str]:
    return [f"{device}/hwmon/{name}" for name in reader.names(f"{device}/hwmon", "hwmon*")]


def _number(
    reader: Reader, path: str, unit: float, plausible: tuple[float, float] = (0.0, float("inf"))
) -> float | None:
    whole = reader.number(path)
    if whole is None:
        return None
    try:
        value = whole / unit
    except OverflowError:
        return None
    return value if plausible[0] <= value <= plausible[1] else None


def _nvidia_sample(told: list[str]) -> GpuSample:
    name, busy, used, total, celsius, power, *reasons = told
    judged = [reason == "Active" for reason in reasons if reason in ("Active", "Not Active")]
    return GpuSample(
        vendor="nvidia",
        name=name,
        busy_percent=number_of(busy),
        memory_used_gib=_gib(used),
        memory_total_gib=_gib(total),
        temperature_c=number_of(celsius),
        power_w=number_of(power),
        throttled=any(judged) if judged else None,
    )


def _gib(mib: str) -> float | None:
    size = number_of(mib)
    return None if size is None else size / 1024
