"""What no file tells: variables, permissions, free space, programs on PATH, nvidia-smi.

Packed as one JSON document.
"""

import grp
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft.llamafactory.environment import steering
from iisft.machine.facts.nvidia_smi import NO_SMI, Smi, ask_nvidia_smi, is_here
from iisft.machine.facts.reader import Reader
from iisft.secrets import redact

_MORE_VARIABLES = ("DISABLE_VERSION_CHECK", "OPTIM_TORCH", "PL_TORCH_DISTRIBUTED_BACKEND")
_PROGRAMS = ("git", "gcc", "g++", "mpirun", "nvidia-smi", "rocm-smi")


@dataclass(frozen=True, slots=True)
class Access:
    """A device file: whether it is there, whether we may read and write it, and the group
    that may.
    """

    exists: bool
    usable: bool
    group: str = ""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system."""

    total: int
    free: int


@dataclass(frozen=True)
class Answers:
    """What only the running machine can tell; empty for a folder of files without answers.

    `devices` and `spaces` are by path ("workspace" for the current one), `programs` those of
    _PROGRAMS found on PATH.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, Access] = field(default_factory=dict)
    spaces: Mapping[str, Space] = field(default_factory=dict)
    programs: tuple[str, ...] | None = None
    nvidia_smi: Smi = NO_SMI

    @classmethod
    def of_this_machine(cls, workspace: Path | None = None) -> "Answers":
        """Ask this machine; nvidia-smi has a time limit."""
        own = {name: os.environ[name] for name in _MORE_VARIABLES if name in os.environ}
        return cls(
            environment=steering(os.environ) | redact(own),
            devices={path: _access(path) for path in _device_files()},
            spaces=_spaces({"/dev/shm": Path("/dev/shm"), "workspace": workspace or Path.cwd()}),
            programs=tuple(name for name in _PROGRAMS if shutil.which(name)),
            nvidia_smi=ask_nvidia_smi() if is_here() else NO_SMI,
        )

    @classmethod
    def of_files(cls, reader: Reader) -> "Answers":
        """What a machine's files without recorded answers tell: which device files there are, if
        they have a /dev.
        """
        if not reader.exists("dev"):
            return cls()
        nodes = [f"/dev/dri/{name}" for name in reader.names("dev/dri", "renderD*")]
        there = {path: reader.exists(path.lstrip("/")) for path in ("/dev/kfd", *nodes)}
        return cls(devices={path: Access(exists, exists) for path, exists in there.items()})

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Answers":
        """What as_json wrote; what is missing or of another shape is left out."""
        smi = _mapping(document.get("nvidia_smi"))
        status = smi.get("status")
        programs = document.get("programs")
        return cls(
            {str(k): str(v) for k, v in _mapping(document.get("environment")).items()},
            {
                str(path): Access(
                    bool(about.get("exists")),
                    bool(about.get("usable")),
                    str(about.get("group", "")),
                )
                for path, about in _mapping(document.get("devices")).items()
                if isinstance(about, Mapping)
            },
            {
                str(path): Space(about["total"], about["free"])
                for path, about in _mapping(document.get("spaces")).items()
                if isinstance(about, Mapping)
                and all(isinstance(about.get(key), int) for key in ("total", "free"))
            },
            tuple(map(str, programs)) if isinstance(programs, list) else None,
            Smi(status, str(smi.get("output", "")))
            if status in ("ok", "failed", "hangs")
            else NO_SMI,
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "environment": dict(self.environment),
            "devices": {
                path: {"exists": about.exists, "usable": about.usable, "group": about.group}
                for path, about in self.devices.items()
            },
            "spaces": {
                path: {"total": about.total, "free": about.free}
                for path, about in self.spaces.items()
            },
            "programs": None if self.programs is None else list(self.programs),
            "nvidia_smi": {"status": self.nvidia_smi.status, "output": self.nvidia_smi.output},
        }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _device_files() -> list[str]:
    try:
        nodes = sorted(str(path) for path in Path("/dev/dri").glob("renderD*"))
    except OSError:
        nodes = []
    return ["/dev/kfd", *nodes]


def _access(path: str) -> Access:
    try:
        group = os.stat(path).st_gid  # noqa: PTH116 - device files by their names
    except OSError:
        return Access(exists=False, usable=False)
    try:
        name = grp.getgrgid(group).gr_name
    except KeyError:
        name = str(group)
    return Access(exists=True, usable=os.access(path, os.R_OK | os.W_OK), group=name)


def _spaces(places: Mapping[str, Path]) -> dict[str, Space]:
    found = {}
    for name, place in {**places, "temporary": Path(tempfile.gettempdir())}.items():
        try:
            about = os.statvfs(place)
        except OSError:
            continue
        found[name] = Space(about.f_frsize * about.f_blocks, about.f_frsize * about.f_bavail)
    return found
