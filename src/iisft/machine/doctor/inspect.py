"""Looking at this machine together with the interpreter that trains, and remembering what took long
to find out.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import Finding, IisftError
from iisft.llamafactory import capabilities, interpreter
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.doctor import deep
from iisft.machine.doctor.engine import Case, diagnose
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.live import Answers
from iisft.machine.facts.machine import Machine, probe
from iisft.machine.facts.reader import Reader
from iisft.workspace import cache_folder

_ASKED = ("torch", "llamafactory")
# Variables of traffic and threads change no import, and differ from job to job.
_OF_RUNNING = re.compile(r"(NCCL|RCCL|GLOO|UCX|OMP|MKL|OPENBLAS|NUMEXPR)_")


def this_machine(workspace: Path, reader: Reader | None = None) -> Machine:
    """The machine alone: milliseconds, and the time of nvidia-smi where there is an NVIDIA GPU."""
    return probe(reader, Answers.of_this_machine(workspace if workspace.is_dir() else None))


def with_interpreter(
    machine: Machine, found: Interpreter, say: Callable[[str], None], *, fresh: bool = False
) -> Machine:
    """The machine with what its training interpreter can do, and with the last --deep of this boot.

    The first time for a set of packages this imports them in a child (5 to 20 s); then it is
    remembered.

    Args:
        machine: this machine.
        found: the interpreter that trains.
        say: told before something takes long.
        fresh: ask the child even when its answer is known.
    """
    report = None
    if all(name in found.packages for name in _ASKED):
        also = _depends_on(machine)
        if fresh or not capabilities.known(found, also):
            kept = "" if fresh else "; remembered until a package changes"
            say(f"importing what trains with {found.path} (some seconds{kept})")
        report = capabilities.ask(found, also, fresh=fresh)
    return replace(
        machine,
        interpreter=found,
        launcher_present=found.cli.is_file(),
        capabilities=report,
        deep=deep.sound(files.read_json_object(_deep_file(machine, found))),
    )


def inspected(
    machine: Machine, say: Callable[[str], None], *, fresh: bool = False
) -> tuple[Machine, list[Finding]]:
    """with_interpreter for the interpreter that would train; one that can't be run is a finding."""
    try:
        found = interpreter.inspect(interpreter.training_interpreter())
    except IisftError as error:
        return machine, [error.finding]
    return with_interpreter(machine, found, say, fresh=fresh), []


def last_known() -> Machine:
    """The machine with what is already known of its interpreter: asks no child but nvidia-smi."""
    machine = probe()
    try:
        found = interpreter.inspect(interpreter.training_interpreter())
    except IisftError:
        return machine
    also = _depends_on(machine)
    report = capabilities.ask(found, also) if capabilities.known(found, also) else None
    return replace(machine, interpreter=found, capabilities=report)


def visible_gpus() -> list[Gpu]:
    """GPUs that a process started from here would see, as far as that is known at once."""
    return last_known().visible


def remember_deep(machine: Machine, results: Mapping[str, Any]) -> None:
    """Keep what --deep found for the rules of later commands.

    It counts until the next boot or change of packages.
    """
    if machine.interpreter is None:
        return
    file = _deep_file(machine, machine.interpreter)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json_atomically(file, results)
    except OSError:
        pass  # it will be measured again


def interpreter_errors(found: Interpreter) -> list[Finding]:
    """What keeps an interpreter from training anything, from its metadata alone."""
    machine = Machine(interpreter=found, launcher_present=found.cli.is_file())
    judged = diagnose(Case(ranks=1, on_cpu=True, machine=machine))
    return [one for one in judged if one.severity == "error"]


def _depends_on(machine: Machine) -> list[str]:
    """What the child's answer depends on besides the packages."""
    environment = machine.answers.environment
    devices = [f"{path} {about.usable}" for path, about in machine.answers.devices.items()]
    return [
        machine.host.boot_id,
        machine.host.nvidia_driver,
        str(machine.host.amdgpu),
        *(f"{gpu.bus} {gpu.arch}" for gpu in machine.gpus),
        *devices,
        *(
            f"{name}={environment[name]}"
            for name in sorted(environment)
            if not _OF_RUNNING.match(name)
        ),
    ]


def _deep_file(machine: Machine, found: Interpreter) -> Path:
    shell = dict(machine.answers.environment)
    key = json.dumps(
        [str(found.path), found.packages, shell, *_depends_on(machine)], sort_keys=True
    )
    return cache_folder() / f"deep-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
