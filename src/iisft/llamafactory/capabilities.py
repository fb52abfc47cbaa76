"""What the training interpreter's packages can do, told by a child process with time limits, and
remembered.

Importing them takes 5 to 20 s, may abort the process (a broken torch) or never return (a wedged
driver). The answer of a child that came through is kept per interpreter, versions and whatever else
the caller names.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft import files, process
from iisft.llamafactory.environment import gpu_order
from iisft.llamafactory.interpreter import Interpreter
from iisft.workspace import cache_folder

_SCRIPT = Path(__file__).parents[1] / "child" / "trainer_report.py"
_STEP_LIMIT_S = 120.0  # the child ends a later step itself
_SILENCE_S = 140.0  # for a step that can't be ended from inside
_TIMEOUT_S = 900.0

# faulthandler's reports say where a child was, not what was wrong.
_STACK = re.compile(
    r'File "|Thread 0x|Current thread|Timeout \(|Fatal Python error|Extension modules|<no Python '
    r"frame>"
)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# What a field of a step must be; a file that a person sent may hold anything.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "seconds": lambda value: isinstance(value, int | float) and math.isfinite(value),
    "error": lambda value: isinstance(value, str),
    "version": lambda value: isinstance(value, str),
    "hip": lambda value: value is None or isinstance(value, str),
    "cuda": lambda value: value is None or isinstance(value, str),
    "arch_list": _texts,
    "blas_archs": lambda value: value is None or _texts(value),
    "rocm_archs": lambda value: value is None or _texts(value),
    "available": lambda value: isinstance(value, bool),
    "versions": lambda value: isinstance(value, dict) and _texts(list(value.values())),
    "devices": lambda value: isinstance(value, list) and all(map(_is_device, value)),
    "peers": lambda value: isinstance(value, list),
}


def _is_device(value: Any) -> bool:
    size = value.get("memory_gib", 0.0) if isinstance(value, dict) else None
    return isinstance(size, int | float) and math.isfinite(size)


def _sound(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are what they should be."""
    return {
        name: value for name, value in facts.items() if name in _FIELDS and _FIELDS[name](value)
    }


@dataclass(frozen=True)
class Death:
    """The step at which the child ended by itself: `how` is a signal, "did not return" or an exit
    code.
    """

    step: str
    how: str
    said: str


@dataclass(frozen=True)
class Capabilities:
    """The child's report, step by step; what was not reached is missing.

    `steps` is name -> facts, `seconds` the time of all steps, `died` how the child ended when it
    didn't come through.
    """

    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    died: Death | None = None

    @property
    def seconds(self) -> float:
        return sum(float(facts.get("seconds", 0.0)) for facts in self.steps.values())

    @property
    def errors(self) -> dict[str, str]:
        """Step -> what its import raised."""
        return {name: str(facts["error"]) for name, facts in self.steps.items() if "error" in facts}

    @property
    def torch(self) -> Mapping[str, Any]:
        """version, hip, cuda, arch_list, blas_archs; empty when torch can't be imported."""
        facts = self.steps.get("torch", {})
        return {} if "error" in facts or "version" not in facts else facts

    @property
    def devices(self) -> list[Mapping[str, Any]] | None:
        """The GPUs as torch sees them; None when it was not asked."""
        facts = self.steps.get("devices", {})
        return list(facts["devices"]) if isinstance(facts.get("devices"), list) else None

    @property
    def peers(self) -> list[list[int]]:
        return list(self.steps.get("devices", {}).get("peers") or [])

    @property
    def versions(self) -> dict[str, str]:
        """Packages that are not part of a run's record: pip, triton, amdsmi..."""
        return dict(self.steps.get("packages", {}).get("versions") or {})

    def as_json(self) -> dict[str, Any]:
        died = self.died and {"step": self.died.step, "how": self.died.how, "said": self.died.said}
        return {"steps": {name: dict(facts) for name, facts in self.steps.items()}, "died": died}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Capabilities":
        """What as_json wrote; other shapes are passed over."""
        steps, died = document.get("steps"), document.get("died")
        return cls(
            {
                str(name): _sound(facts)
                for name, facts in steps.items()
                if isinstance(facts, Mapping)
            }
            if isinstance(steps, Mapping)
            else {},
            Death(str(died.get("step", "")), str(died.get("how", "")), str(died.get("said", "")))
            if isinstance(died, Mapping)
            else None,
        )


def ask(interpreter: Interpreter, also: Sequence[str] = (), *, fresh: bool = False) -> Capabilities:
    """The report of the child, from the cache when nothing changed since.

    Args:
        interpreter: whose packages.
        also: what else the answer depends on (GPUs, driver, boot).
        fresh: ask even when the answer is known; it is remembered all the same.
    """
    file = _remembered(interpreter, also)
    if not fresh and (known := files.read_json_object(file)) is not None:
        return Capabilities.from_json(known)
    found = _ask(interpreter)
    if found.steps and found.died is None and not found.errors:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_json_atomically(file, found.as_json())
        except OSError:
            pass  # without a cache it is only slower
    return found


def known(interpreter: Interpreter, also: Sequence[str] = ()) -> bool:
    """Whether `ask` would answer at once."""
    return _remembered(interpreter, also).is_file()


def _remembered(interpreter: Interpreter, also: Sequence[str]) -> Path:
    key = json.dumps(
        [str(interpreter.path), interpreter.python, interpreter.packages, list(also)],
        sort_keys=True,
    )
    return cache_folder() / f"capabilities-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _ask(interpreter: Interpreter) -> Capabilities:
    env = gpu_order(os.environ) | {"HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONSAFEPATH", None)  # the child imports what lies beside it
    try:
        done = process.run(
            [str(interpreter.path), str(_SCRIPT), str(_STEP_LIMIT_S)],
            timeout_s=_TIMEOUT_S,
            silence_s=_SILENCE_S,
            env=env,
        )
    except process.RanTooLong as late:
        return parse(late.stdout, late.stderr, None)
    except OSError as error:
        return Capabilities(died=Death("start", "did not start", str(error)))
    return parse(done.stdout, done.stderr, done.returncode)


def parse(stdout: str, stderr: str, returncode: int | None) -> Capabilities:
    """The report from what the child wrote; `returncode` is None when it had to be killed."""
    steps: dict[str, Mapping[str, Any]] = {}
    begun, ended = "start", False
    for line in stdout.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if not isinstance(document, dict):
            continue
        if isinstance(name := document.pop("step", None), str):
            steps[name] = _sound(document)
        begun = str(document.get("begin", begun))
        ended = ended or document.get("end") is True
    # an interpreter that says nothing is none to judge
    if ended or (returncode == 0 and not steps):
        return Capabilities(steps)
    end = last_moments(returncode, stderr)
    return Capabilities(steps, Death(begun, end["died"], end["said"]))


def last_moments(returncode: int | None, stderr: str) -> dict[str, str]:
    """How a child ended that should not have: `died` is a signal, "did not return" or an exit code;
    `said` its words.

    `returncode` is None for one that had to be killed. What faulthandler's watchdog ended did not
    return either.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    spoken = [line for line in lines if not _STACK.match(line)]
    if returncode is None or "Timeout (" in stderr:
        died = "did not return"
    else:
        died = process.signal_name(returncode) if returncode < 0 else f"exit code {returncode}"
    return {"died": died, "said": (spoken or [""])[-1][:500]}
