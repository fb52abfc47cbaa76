"""The training interpreter: which one it is, what it has, and which arguments its LLaMA-Factory
takes.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files, process
from iisft.errors import EnvironmentFault
from iisft.llamafactory import installed
from iisft.llamafactory.torch_sets import install
from iisft.workspace import cache_folder

_CHILD_SCRIPTS = Path(__file__).parents[1] / "child"
_IMPORT_TIMEOUT_S = 300.0  # importing LLaMA-Factory takes 8 to 40 s cold
TESTED_VERSION = "0.9.5"


@dataclass(frozen=True)
class Interpreter:
    """A Python that trains, with the versions that its package metadata tells.

    `optional`: packages that only some arguments need; None where nobody looked.
    """

    path: Path
    python: str
    packages: dict[str, str]
    launcher: Path | None
    optional: frozenset[str] | None = None

    @property
    def cli(self) -> Path:
        return self.path.parent / "llamafactory-cli"


@dataclass(frozen=True)
class Argument:
    """A training argument of the installed LLaMA-Factory: its JSON types, and its choices when they
    are closed.
    """

    types: tuple[str, ...]
    choices: tuple[Any, ...] | None


def training_interpreter() -> Path:
    """`IISFT_PYTHON`, else the interpreter that iisft runs in."""
    return Path(os.environ.get("IISFT_PYTHON") or sys.executable).expanduser().absolute()


def inspect(path: Path) -> Interpreter:
    """Read what the interpreter at `path` has, in-process when it is this one.

    Raises:
        EnvironmentFault: the interpreter can't be run.
    """
    if path == Path(sys.executable).absolute():
        found = installed.report()
    else:
        try:
            result = process.run([str(path), installed.__file__], timeout_s=60)
            found = json.loads(result.stdout)
        except (OSError, TimeoutError, ValueError) as error:
            raise EnvironmentFault(
                "interpreter-broken",
                f"the training interpreter does not run: {error}",
                where=str(path),
                fix="set IISFT_PYTHON to a working Python, or unset it",
            ) from error
    launcher, optional = found["launcher"], found.get("optional")
    return Interpreter(
        path,
        found["python"],
        found["packages"],
        Path(launcher) if launcher else None,
        None if optional is None else frozenset(optional),
    )


def arguments(interpreter: Interpreter) -> dict[str, Argument]:
    """Every training argument of the installed LLaMA-Factory, asked in a child once per set of
    versions.

    Raises:
        EnvironmentFault: LLaMA-Factory can't be imported there.
    """
    versions = json.dumps(
        [str(interpreter.path), interpreter.python, interpreter.packages], sort_keys=True
    )
    cache = cache_folder() / f"arguments-{hashlib.sha256(versions.encode()).hexdigest()[:16]}.json"
    known = files.read_json_object(cache)
    if known is None:
        known = _ask_for_arguments(interpreter)
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            files.write_json_atomically(cache, known)
        except OSError:
            pass  # without a cache it is only slower
    return {
        name: Argument(tuple(about["types"]), tuple(about["choices"]) if about["choices"] else None)
        for name, about in known.items()
    }


def _ask_for_arguments(interpreter: Interpreter) -> dict[str, Any]:
    script = _CHILD_SCRIPTS / "llamafactory_arguments.py"
    try:
        result = process.run([str(interpreter.path), str(script)], timeout_s=_IMPORT_TIMEOUT_S)
        answer = json.loads(result.stdout) if result.returncode == 0 else None
    except (OSError, TimeoutError, ValueError) as error:
        raise EnvironmentFault(
            "llamafactory-broken", str(error), where=str(interpreter.path)
        ) from error
    if not isinstance(answer, dict):
        last = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise EnvironmentFault(
            "llamafactory-broken",
            f"LLaMA-Factory can't be imported: {last[0]}",
            where=str(interpreter.path),
            fix=install(),
        )
    return answer
