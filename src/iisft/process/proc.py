"""What /proc tells of processes: which one a pid is, and what it was started with."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EXITING = 0x4  # PF_EXITING of linux/sched.h, field 9 of /proc/PID/stat


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that can't be confused with a later one of the same pid: pid, start time and boot.

    `start_ticks` is field 22 of /proc/PID/stat: clock ticks since boot, so that a changed clock
    doesn't matter.
    """

    pid: int
    start_ticks: int
    boot_id: str

    def as_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": self.boot_id}

    @classmethod
    def from_json(cls, value: Any) -> "ProcessIdentity | None":
        try:
            return cls(int(value["pid"]), int(value["start_ticks"]), str(value["boot_id"]))
        except (TypeError, KeyError, ValueError, OverflowError):
            return None

    def alive(self) -> bool:
        return identity_of(self.pid) == self

    def alive_for(self, variable: str, value: str, owner: int) -> bool:
        """Whether it lives and was started with that variable: any file may name any process.

        The environment of another user's process can't be read; then it must be the one of `owner`.
        """
        place = Path(f"/proc/{self.pid}")
        try:
            found = (place / "environ").read_bytes()
            flags = int((place / "stat").read_text().rpartition(")")[2].split()[6])
            foreign = place.stat().st_uid != owner
        except PermissionError:
            return self.alive() and _owner(place) == owner
        except (OSError, ValueError, IndexError):
            return False
        # one that is being torn down has no environment any more, and may still hold its GPU
        ours = os.fsencode(f"{variable}={value}") in found.split(b"\0")
        return self.alive() and (ours or (not found and not foreign and bool(flags & _EXITING)))


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a live process; None when there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else ProcessIdentity(pid, int(fields[18]), boot_id)


def environment_of(pid: int) -> dict[str, str]:
    """The variables that a process was started with; empty when it is gone or another user's."""
    pairs = (
        item.decode("utf-8", "surrogateescape").partition("=")
        for item in environ_entries(Path(f"/proc/{pid}"))
    )
    return {name: value for name, separator, value in pairs if separator}


def environ_entries(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _owner(place: Path) -> int | None:
    try:
        return place.stat().st_uid
    except OSError:
        return None


def has_variable(pid: int, name: bytes) -> bool:
    return any(item.startswith(name + b"=") for item in environ_entries(Path(f"/proc/{pid}")))


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
