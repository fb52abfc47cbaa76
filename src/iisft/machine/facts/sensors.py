"""What the GPUs of this machine are doing now: load, memory, heat, power. Nothing here may fail;
unknown is None.

Files and units of AMD GPUs: docs.kernel.org/gpu/amdgpu/thermal.html (gpu_busy_percent in percent,
temp*_input and temp*_crit in millidegrees Celsius, power1_average and power1_input in microwatts)
and driver-misc.html beside it (mem_info_vram_used and mem_info_vram_total in bytes, product_name).
NVIDIA's: docs.nvidia.com/deploy/nvml-api (utilization in percent, memory in bytes, temperature in
degrees Celsius, power in milliwatts).
"""

import contextlib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft.machine.facts.reader import Reader

AMD_VENDOR = 0x1002
_DRM = "sys/class/drm"
_ON_THE_DIE = ("junction", "edge")
_NEAR_CRITICAL_C = 2.0
_THERMAL_SLOWDOWN = 0x20 | 0x40  # nvmlClocksThrottleReasonSwThermalSlowdown, ...HwThermalSlowdown
_NVML_TEMPERATURE_GPU = 0

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

    NVIDIA GPUs are seen where nvidia-ml-py is installed, and only on the real machine (root "/").
    Never raises.
    """
    reader = Reader(root)
    amd = [_amd_sample(reader, device) for device in amd_devices(reader)]
    return [*amd, *(_nvidia() if reader.live else [])]


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


def _nvidia() -> list[GpuSample]:
    """Through nvidia-ml-py, which wraps the driver's own library.

    Without it, or without a driver, none.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except Exception:
        return []
    handles = [_asked(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    return [_nvidia_sample(nvml, handle) for handle in handles if handle is not None]


def _nvidia_sample(nvml: Any, gpu: Any) -> GpuSample:
    name = _asked(lambda: nvml.nvmlDeviceGetName(gpu))
    memory = _asked(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu))
    reasons = _asked(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
    return GpuSample(
        vendor="nvidia",
        name=name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or ""),
        busy_percent=_asked(lambda: float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)),
        memory_used_gib=_asked(lambda: memory.used / 2**30),
        memory_total_gib=_asked(lambda: memory.total / 2**30),
        temperature_c=_asked(
            lambda: float(nvml.nvmlDeviceGetTemperature(gpu, _NVML_TEMPERATURE_GPU))
        ),
        power_w=_asked(lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
        throttled=None if reasons is None else bool(reasons & _THERMAL_SLOWDOWN),
    )


def _asked(question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where the driver doesn't know it."""
    with contextlib.suppress(Exception):
        return question(*arguments)
    return None
