"""A machine packed into one file, and read back elsewhere: how a person asks for help.

Under the names that the files have below /; iisft/answers.json is what is no file,
iisft/interpreter.json what the training interpreter said, iisft/deep.json what --deep measured.
"""

import io
import json
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import InputError
from iisft.llamafactory.capabilities import Capabilities
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.doctor import deep
from iisft.machine.facts.live import Answers
from iisft.machine.facts.machine import Machine, probe
from iisft.machine.facts.reader import Reader
from iisft.secrets import redact

_OWN = "iisft"
_LARGEST = 64 * 2**20
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
    """Write what the probes read, and nothing else. Of the kernel's command line only words about
    devices.

    Raises:
        OSError: the file can't be written.
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
    if machine.deep is not None:
        contents[f"{_OWN}/deep.json"] = _json(dict(machine.deep))
    with files.atomic_writer(file) as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for folder in sorted(reader.folders - contents.keys()):
            about = tarfile.TarInfo(folder)
            about.type, about.mode, about.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
            archive.addfile(about)
        for path, text in sorted(contents.items()):
            content = text.encode("utf-8", "replace")
            about = tarfile.TarInfo(path)
            about.size, about.mtime = len(content), int(time.time())
            archive.addfile(about, io.BytesIO(content))


def unpack(place: Path) -> Machine:
    """The machine in a packed file, or in a folder of files that begins where / would be.

    Raises:
        InputError: it is neither.
    """
    if place.is_dir():
        return _of_folder(place)
    with tempfile.TemporaryDirectory(prefix="iisft-machine-") as folder:
        try:
            with tarfile.open(place) as archive:
                if sum(member.size for member in archive.getmembers()) > _LARGEST:
                    raise InputError(
                        "machine-file",
                        "this is no file of env-check --collect: too large",
                        where=str(place),
                    )
                archive.extractall(folder, filter="data")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise InputError(
                "machine-file",
                f"can't be read: {error}",
                where=str(place),
                fix="a file that iisft env-check --collect wrote, or a folder of files as below /",
            ) from error
        return _of_folder(Path(folder))


def _of_folder(root: Path) -> Machine:
    told = files.read_json_object(root / _OWN / "answers.json") or {}
    answers = (
        Answers.from_json(told["answers"])
        if isinstance(told.get("answers"), dict)
        else Answers.of_folder(root)
    )
    machine = probe(Reader(root), answers)
    unreadable = told.get("unreadable")
    lost = {**machine.unreadable, **(unreadable if isinstance(unreadable, dict) else {})}
    interpreter, report, launcher = _read_interpreter(
        files.read_json_object(root / _OWN / "interpreter.json")
    )
    return Machine(
        machine.gpus, machine.cards, machine.host, machine.answers, interpreter, launcher, report,
        deep.sound(files.read_json_object(root / _OWN / "deep.json")), lost,
    )  # fmt: skip


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
    text = redact({"document": json.dumps(value, ensure_ascii=False, indent=2)})["document"] + "\n"
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
