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

_AMD_VENDOR = "0x1002"
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
class _Sensor:
    label: str
    temperature_c: float
    critical_c: float | None


def sample(root: Path = Path("/")) -> list[GpuSample]:
    """Every GPU of the machine whose files lie under `root`: AMD's in the order of their cards,
    then NVIDIA's.

    NVIDIA GPUs are seen where nvidia-ml-py is installed, and only on the real machine (root "/").
    Never raises.
    """
    return [*_amd(root), *(_nvidia() if root == Path("/") else [])]


def _amd(root: Path) -> list[GpuSample]:
    cards = [
        path
        for path in _entries(root / "sys/class/drm", "card*")
        if re.fullmatch(r"card\d+", path.name)
    ]
    cards.sort(key=lambda path: int(path.name.removeprefix("card")))
    return [
        _amd_sample(card / "device")
        for card in cards
        if _text(card / "device/vendor") == _AMD_VENDOR
    ]


def _amd_sample(device: Path) -> GpuSample:
    sensors = _sensors(device)
    shown = [sensor for sensor in sensors if sensor.label in _ON_THE_DIE] or sensors
    judged = [sensor for sensor in sensors if sensor.critical_c is not None]
    powers = [
        power
        for name in ("power1_average", "power1_input")
        for hwmon in _hwmons(device)
        if (power := _number(hwmon / name, 1e6, _WATTS)) is not None
    ]
    return GpuSample(
        vendor="amd",
        name=_text(device / "product_name") or _pci_id(device),
        busy_percent=_number(device / "gpu_busy_percent", 1, _PERCENT),
        memory_used_gib=_number(device / "mem_info_vram_used", 2**30),
        memory_total_gib=_number(device / "mem_info_vram_total", 2**30),
        temperature_c=max((sensor.temperature_c for sensor in shown), default=None),
        power_w=powers[0] if powers else None,
        throttled=any(_is_hot(sensor) for sensor in judged) if judged else None,
    )


def _pci_id(device: Path) -> str:
    """As lspci -n prints it; most cards that aren't made for servers have no product_name."""
    number = _text(device / "device").removeprefix("0x")
    return f"1002:{number}" if number else ""


def _sensors(device: Path) -> list[_Sensor]:
    """All temperatures of a card.

    The memory's counts too: HBM at its limit slows the card down like a hot die.
    """
    found = []
    for hwmon in _hwmons(device):
        for file in _entries(hwmon, "temp*_input"):
            channel = file.name.removesuffix("_input")
            temperature = _number(file, 1000, _DEGREES_C)
            if temperature is not None:
                critical = _number(hwmon / f"{channel}_crit", 1000, (1.0, 200.0))
                found.append(_Sensor(_text(hwmon / f"{channel}_label"), temperature, critical))
    return found


def _is_hot(sensor: _Sensor) -> bool:
    return (
        sensor.critical_c is not None
        and sensor.temperature_c >= sensor.critical_c - _NEAR_CRITICAL_C
    )


def _hwmons(device: Path) -> list[Path]:
    return _entries(device / "hwmon", "hwmon*")


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:  # a card that vanishes while it is looked at
        return []


def _number(
    path: Path, unit: float, plausible: tuple[float, float] = (0.0, float("inf"))
) -> float | None:
    try:
        value = int(_text(path)) / unit
    except (ValueError, OverflowError):
        return None
    return value if plausible[0] <= value <= plausible[1] else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


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
