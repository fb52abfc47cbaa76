"""What nvidia-smi says, the one way in which NVIDIA's driver is asked: a child with a time limit,
for under a wedged driver it never answers, nor would NVML, which would take the caller with it.
"""

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iisft import process

_TIMEOUT_S = 10.0
_FIELDS = (
    "name,compute_cap,memory.total,driver_version,pci.bus_id,pcie.link.width.current,pcie.link.width.max,"
    "temperature.gpu,power.limit,power.default_limit,uuid"
)
_OLD_FIELDS = "name,compute_cap,memory.total"  # a driver that refuses one field refuses the query
# What changes from moment to moment. Drivers from 535 on call the reasons of slow clocks events.
_NOW_FIELDS = "name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
_REASONS = tuple(
    ",".join(f"clocks_{word}_reasons.{kind}_thermal_slowdown" for kind in ("sw", "hw"))
    for word in ("event", "throttle")
)
_FILES = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Smi:
    """How nvidia-smi ended and what it printed."""

    status: Literal["missing", "ok", "failed", "hangs"]
    output: str = ""


NO_SMI = Smi("missing")


@dataclass(frozen=True, slots=True)
class NvidiaCard:
    """One line of nvidia-smi.

    Unknown is "", 0.0 or None; memory in GiB, temperature in degrees Celsius, power in W.
    """

    name: str
    arch: str
    memory_gib: float
    driver: str = ""
    bus: str = ""
    link_width: int | None = None
    link_width_max: int | None = None
    temperature_c: float | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    uuid: str = ""


def is_here() -> bool:
    """Whether this machine may have an NVIDIA GPU with a driver."""
    return any(Path(path).exists() for path in _FILES)


def ask_nvidia_smi() -> Smi:
    """Ask the machine's nvidia-smi; never raises, never longer than its limit."""
    return _ask(_FIELDS, _OLD_FIELDS)


def ask_for_now() -> list[list[str]]:
    """One line for each GPU: name, load in percent, memory in use and at all in MiB, degrees
    Celsius, watts, and twice "Active" where heat slows it down. Empty where nobody answers.
    """
    smi = _ask(*(f"{_NOW_FIELDS},{reasons}" for reasons in _REASONS), _NOW_FIELDS)
    if smi.status != "ok":
        return []
    lines = [[part.strip() for part in line.split(",")] for line in smi.output.splitlines()]
    return [[*parts, "", ""][:8] for parts in lines if len(parts) >= 6]


def ask_for_processes() -> list[tuple[str, str]] | None:
    """The UUID of a GPU and the number of a process that computes on it (which may be [N/A]), one
    pair for each; None where nobody answers.
    """
    smi = _ask("gpu_uuid,pid", of="compute-apps")
    if smi.status != "ok":
        return None
    lines = [[part.strip() for part in line.split(",")] for line in smi.output.splitlines()]
    return list(dict.fromkeys((parts[0], parts[1]) for parts in lines if len(parts) == 2))


def ask_for_use() -> dict[str, tuple[float | None, float | None]] | None:
    """For each GPU by its UUID the GiB in use and the load in percent; None without an answer."""
    smi = _ask("uuid,memory.used,utilization.gpu")
    if smi.status != "ok":
        return None
    lines = [[part.strip() for part in line.split(",")] for line in smi.output.splitlines()]
    return {
        uuid: (None if (mib := number_of(used)) is None else mib / 1024, number_of(load))
        for uuid, used, load in (parts for parts in lines if len(parts) == 3)
    }


def _ask(*queries: str, of: str = "gpu") -> Smi:
    """The answer to the first query that this driver's nvidia-smi knows."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return NO_SMI
    said = ""
    for fields in queries:
        try:
            done = process.run(
                [program, f"--query-{of}={fields}", "--format=csv,noheader,nounits"],
                timeout_s=_TIMEOUT_S,
            )
        except TimeoutError:
            return Smi("hangs")
        except OSError as error:
            return Smi("failed", str(error))
        if done.returncode == 0:
            return Smi("ok", done.stdout)
        said = said or (done.stdout + done.stderr).strip()
    return Smi("failed", said[:2000])


def parse_nvidia_smi(text: str) -> list[NvidiaCard]:
    """Lines of `nvidia-smi --query-gpu=...

    --format=csv,noheader,nounits`; lines that are none are passed over.
    """
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) >= 3 and re.fullmatch(r"\d+\.\d+", parts[1]):
            more = [*parts[3:], *[""] * 8]
            found.append(
                NvidiaCard(
                    parts[0],
                    f"sm_{parts[1].replace('.', '')}",
                    (number_of(parts[2]) or 0.0) / 1024,
                    more[0],
                    _bus(more[1]),
                    _whole(more[2]),
                    _whole(more[3]),
                    number_of(more[4]),
                    number_of(more[5]),
                    number_of(more[6]),
                    more[7],
                )
            )
    return found


def _bus(text: str) -> str:
    """00000000:1A:00.0 as the kernel writes it: 0000:1a:00.0."""
    return text.lower()[-12:] if text else ""


def number_of(text: str) -> float | None:
    """None for [N/A], and for what is not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(text: str) -> int | None:
    number = number_of(text)
    return None if number is None else int(number)
