"""What nvidia-smi says, asked in a child with a time limit: under a wedged driver it never answers,
nor would NVML.
"""

import re
import shutil
from dataclasses import dataclass
from typing import Literal

from iisft import process

_TIMEOUT_S = 10.0
_FIELDS = (
    "name,compute_cap,memory.total,driver_version,pci.bus_id,pcie.link.width.current,pcie.link.width.max,"
    "temperature.gpu,power.limit,power.default_limit"
)
_OLD_FIELDS = "name,compute_cap,memory.total"  # a driver that refuses one field refuses the query


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


def ask_nvidia_smi() -> Smi:
    """Ask the machine's nvidia-smi; never raises, never longer than its limit."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return NO_SMI
    said = ""
    for fields in (_FIELDS, _OLD_FIELDS):
        try:
            done = process.run(
                [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
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
            more = [*parts[3:], *[""] * 7]
            found.append(
                NvidiaCard(
                    parts[0],
                    f"sm_{parts[1].replace('.', '')}",
                    (_number(parts[2]) or 0.0) / 1024,
                    more[0],
                    _bus(more[1]),
                    _whole(more[2]),
                    _whole(more[3]),
                    _number(more[4]),
                    _number(more[5]),
                    _number(more[6]),
                )
            )
    return found


def _bus(text: str) -> str:
    """00000000:1A:00.0 as the kernel writes it: 0000:1a:00.0."""
    return text.lower()[-12:] if text else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    number = _number(text)
    return None if number is None else int(number)
