"""A machine packed into one file, and read back elsewhere: how a person asks for help.

Under the names that the files have below /; iisft/answers.json is what is not a file,
iisft/interpreter.json what the training interpreter said, iisft/deep.json what --deep measured.
"""

import errno
import gzip
import io
import re
import tarfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from iisft import files, json_values
from iisft.errors import InputError
from iisft.llamafactory.capabilities import Capabilities
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.doctor import deep
from iisft.machine.facts.live import Answers
from iisft.machine.facts.machine import Machine, probe
from iisft.machine.facts.reader import Disk, Packed, Place, Reader
from iisft.secrets import hide

_OWN = "iisft"
_LARGEST = 64 * 2**20
_LARGEST_FILE = 8 * 2**20
_LONGEST_NAME = 300
_MOST_MEMBERS = 20_000  # a server with eight GPUs has about 1,500
# Where the probes look; see machine/facts.
_KNOWN = re.compile(
    r"(?:sys/(?:class/(?:kfd|drm|iommu)|bus/pci|kernel/iommu_groups|module/amdgpu|fs/cgroup)"
    r"|proc/(?:cmdline|cpuinfo|meminfo|1|sys/kernel|driver/nvidia)|etc/os-release|opt/rocm"
    r"|dev/(?:kfd|dri|dxg|nvidiactl)|iisft/(?:answers|interpreter|deep)\.json)(?:/.*)?"
    r"|\.dockerenv|run/\.containerenv|dev"
)
# tarfile follows chains of headers by calling itself, and takes numbers as they come.
_UNREADABLE = (
    OSError, EOFError, tarfile.TarError, zlib.error, ValueError, RecursionError, OverflowError,
)  # fmt: skip
_TOLD = (
    "iommu",
    "intel_iommu",
    "amd_iommu",
    "pci",
    "pcie",
    "amdgpu",
    "nvidia",
    "nouveau",
    "modprobe.blacklist",
    "numa",
)


def pack(machine: Machine, reader: Reader, file: Path) -> None:
    """Write packed() to a file.

    Raises:
        OSError: the file can't be written.
    """
    files.write_bytes_atomically(file, packed(machine, reader))


def packed(
    machine: Machine, reader: Reader, *, rehearsal: Mapping[str, Any] | None = None
) -> bytes:
    """What the probes read, and the verdict of a rehearsal where there is one. Of the kernel's
    command line only words about devices.
    """
    contents = {
        path: text
        for path, text in reader.files.items()
        if path != "proc/sys/kernel/random/boot_id"
    }
    if "proc/cmdline" in contents:
        words = contents["proc/cmdline"].split()
        contents["proc/cmdline"] = " ".join(
            word for word in words if word.partition("=")[0].startswith(_TOLD)
        )
    documents: dict[str, Any] = {
        "answers": machine.answers.as_json(),
        "unreadable": dict(machine.unreadable),
    }
    contents[f"{_OWN}/answers.json"] = _json(documents)
    if machine.interpreter is not None:
        contents[f"{_OWN}/interpreter.json"] = _json(_interpreter(machine))
    for name, value in (("deep", machine.deep), ("rehearsal", rehearsal)):
        if value is not None:
            contents[f"{_OWN}/{name}.json"] = _json(dict(value))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for folder in sorted(reader.folders - contents.keys()):
            about = tarfile.TarInfo(folder)
            about.type, about.mode, about.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
            archive.addfile(about)
        for path, text in sorted(contents.items()):
            content = hide(text).encode("utf-8", "replace")
            about = tarfile.TarInfo(path)
            about.size, about.mtime = len(content), int(time.time())
            archive.addfile(about, io.BytesIO(content))
    return stream.getvalue()


def unpack(place: Path) -> Machine:
    """The machine in a packed file, or in a folder of files that begins where / would be.

    Nothing is ever extracted: what the file holds under the names that the probes ask for is read
    into memory, and everything else is passed over.

    Raises:
        InputError: it is neither.
    """
    if place.is_dir():
        return _machine(Disk(place))
    try:
        contents, folders = _packed(place)
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            "machine-file",
            f"can't be read: {reason}",
            where=str(place),
            fix="a file that iisft env-check --collect wrote, or a folder of files as below /",
        ) from error
    if not contents:
        raise InputError(
            "machine-file",
            "this is not a file of env-check --collect: it holds nothing that the probes read",
            where=str(place),
            fix="on the machine in question: iisft env-check --collect machine.tar.gz",
        )
    return _machine(Packed(contents, folders))


class _Bounded(io.RawIOBase):
    """What a stream of unknown origin holds, up to a limit: it may unpack to terabytes."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._left = _LARGEST

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self._left:
            raise OSError(errno.EFBIG, f"it holds more than {_LARGEST // 2**20} MiB")
        found = self._stream.read(size)
        self._left -= len(found)
        return found


def _packed(file: Path) -> tuple[dict[str, bytes], set[str]]:
    """The regular files and folders of known names; a name that comes twice counts once."""
    contents: dict[str, bytes] = {}
    folders: set[str] = set()
    with files.open_regular(file) as stream:
        packed = stream.peek(2)[:2] == b"\x1f\x8b"
        plain = _Bounded(gzip.GzipFile(fileobj=stream) if packed else stream)
        with tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|") as archive:
            for number, member in enumerate(archive, 1):
                if number > _MOST_MEMBERS:
                    raise OSError(errno.EFBIG, f"it holds more than {_MOST_MEMBERS} files")
                name = member.name.removeprefix("./")
                if len(name) > _LONGEST_NAME or not _KNOWN.fullmatch(name) or name in contents:
                    continue
                if member.isdir():
                    folders.add(name)
                elif member.isreg() and not member.issparse():
                    content = archive.extractfile(member)
                    contents[name] = content.read(_LARGEST_FILE) if content else b""
    return contents, folders


def _machine(place: Place) -> Machine:
    told = _document(place, "answers.json") or {}
    reader = Reader(place)
    answers = (
        Answers.from_json(told["answers"])
        if isinstance(told.get("answers"), dict)
        else Answers.of_files(Reader(place))
    )
    machine = probe(reader, answers)
    unreadable = told.get("unreadable")
    lost = {**machine.unreadable, **(unreadable if isinstance(unreadable, dict) else {})}
    interpreter, report, launcher = _read_interpreter(_document(place, "interpreter.json"))
    return Machine(
        machine.gpus, machine.cards, machine.host, machine.answers, interpreter, launcher, report,
        deep.sound(_document(place, "deep.json")), {str(k): str(v) for k, v in lost.items()},
    )  # fmt: skip


def _document(place: Place, name: str) -> dict[str, Any] | None:
    try:
        value = json_values.parse_json(place.read(f"{_OWN}/{name}", _LARGEST_FILE))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _interpreter(machine: Machine) -> dict[str, Any]:
    found = machine.interpreter
    assert found is not None
    return {
        "path": str(found.path),
        "python": found.python,
        "packages": found.packages,
        "launcher": str(found.launcher) if found.launcher else None,
        "launcher_present": machine.launcher_present,
        "report": machine.capabilities.as_json() if machine.capabilities else None,
    }


def _read_interpreter(
    told: dict[str, Any] | None,
) -> tuple[Interpreter | None, Capabilities | None, bool]:
    if told is None or not isinstance(packages := told.get("packages"), dict):
        return None, None, True
    launcher, report = told.get("launcher"), told.get("report")
    found = Interpreter(
        Path(str(told.get("path", "python"))),
        str(told.get("python", "")),
        {str(name): str(version) for name, version in packages.items()},
        Path(launcher) if isinstance(launcher, str) else None,
    )
    return (
        found,
        Capabilities.from_json(report) if isinstance(report, dict) else None,
        told.get("launcher_present") is not False,
    )


def _json(value: dict[str, Any]) -> str:
    """Indented, without passwords in URLs and the user's name.

    Variables of secret names were hidden before.
    """
    text = hide(json_values.json_text(value, indent=2)) + "\n"
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
