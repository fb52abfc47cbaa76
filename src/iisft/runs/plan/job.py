"""A plan as a job of an engine that runs one `iisft train` on each of several machines: dstack,
SkyPilot, Kubernetes.

Unlike a script for Slurm, a job needs iisft there, and the workspace under the same path.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from iisft import __version__, notices
from iisft.errors import InputError, UsageError
from iisft.presets import documents
from iisft.quoting import shell_comment, shell_word, visible_line
from iisft.runs.plan.engines import COMMANDS, DOCUMENTS, KUBERNETES, SECRETS, Job
from iisft.runs.plan.plan import Plan
from iisft.runs.plan.request import Request
from iisft.secrets import hide, is_secret
from iisft.workspace import Workspace

_LONGEST_NAME = 40
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9._/-]*")


def render(
    engine: str, plan: Plan, request: Request, workspace: Workspace, image: str | None
) -> tuple[str, str]:
    """The engine's file, and the command that takes it.

    Raises:
        UsageError: Kubernetes needs an image.
        InputError: an option holds a secret, or a path is no text.
    """
    if engine in KUBERNETES and image is None:
        raise UsageError("job-image", f"--for {engine} needs --image NAME, one that has iisft")
    mounts = _mounts(plan, workspace)
    for path in mounts:
        if not path.isprintable():
            raise InputError("job-path", "an engine's file can't name this folder", where=path)
    words = _words(plan, request, workspace)

    def script(rank: str, host: str, port: str = "") -> str:
        port = port or (plan.placement.rendezvous or "").rpartition(":")[2]
        return "\n".join(_script(plan, words, workspace, (rank, host, port))) + "\n"

    job = Job(_slug(plan.folder.id), plan, script, mounts, _secrets(plan), image)
    command = COMMANDS[engine]
    if engine == "skypilot":
        command += "".join(f" --secret {name}" for name in job.secrets)
    head = shell_comment(
        f"Written by iisft {__version__} from the preset {visible_line(plan.document.name)}: "
        f"{command} FILE"
    )
    if engine in KUBERNETES and job.secrets:
        given = " ".join(f'--from-literal={name}="${name}"' for name in job.secrets)
        head += [f"# Before: kubectl create secret generic {SECRETS} {given}"]
    text = yaml.dump(
        DOCUMENTS[engine](job), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9
    )
    return "\n".join([*head, text]), command


def _words(plan: Plan, request: Request, workspace: Workspace) -> list[str]:
    """The command but for which node it is; paths are whole, for it runs elsewhere."""
    for text in request.overrides:
        path, value = documents.parse_override(text)
        if hide(text) != text or (value and is_secret(str(path[-1]).rpartition(".")[2])):
            raise InputError(
                "job-secret",
                f"--set {'.'.join(map(str, path))} is secret, and would stand in the file",
                fix="write the value into the preset, readable by you alone",
            )
    preset = request.preset
    if preset not in documents.available(workspace):
        preset = str(plan.document.file)
    words = ["iisft", "train", "--preset", preset]
    for text in request.overrides:
        words += ["--set", text]
    if request.model is not None:
        given = Path(request.model).expanduser()
        words += ["--model", str(given.absolute()) if given.is_dir() else request.model]
    if request.data is not None:
        words += ["--data", request.data]
    if request.gpus is not None:
        words += ["--gpus", str(request.gpus)]
    return [*words, "--name", plan.folder.id, "--nodes", str(request.nodes)]


def _script(
    plan: Plan, words: list[str], workspace: Workspace, place: tuple[str, str, str]
) -> Iterator[str]:
    rank, host, port = place
    yield "set -eu"
    yield f"rank={rank} host={host} port={port}"
    yield f"export IISFT_HOME={_word(str(workspace.root))}"
    # the engine ends a job by SIGTERM: all nodes stop with a checkpoint
    yield f"ended() {{ iisft stop {_word(plan.folder.id)} || true; }}"
    yield "trap ended TERM INT"
    yield f'{" ".join(map(_word, words))} --node-rank "$rank" --rendezvous "$host:$port" &'
    yield "while kill -0 $! 2>/dev/null; do wait $! || true; done"
    yield "wait $!  # bash remembers the exit code"


def _word(text: str) -> str:
    """One word for the shell in which nothing is left for the engine to fill in: Kubernetes reads
    $(NAME) and $$, dstack ${{ NAME }} and $$.
    """
    return r"$'\x24'".join(map(shell_word, text.split("$")))


def _mounts(plan: Plan, workspace: Workspace) -> list[str]:
    """Folders that the run reads and writes, none inside of another."""
    shipped = {documents.available(workspace).get(file.stem) for file in plan.document.files}
    presets = [file.parent for file in plan.document.files if file not in shipped]
    wanted = sorted(
        {workspace.root, plan.model_folder, *presets}, key=lambda path: (len(path.parts), path)
    )
    kept: list[Path] = []
    for folder in wanted:
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return [str(folder) for folder in kept]


def _secrets(plan: Plan) -> list[str]:
    """Names of this shell's variables that places of notices and trackers need."""
    named = {
        name
        for address in plan.preset.notify
        for name in re.findall(r"\$\{?(\w+)", address)
        if name in os.environ
    }
    of_trackers = tuple(f"{tracker.upper()}_" for tracker in plan.preset.track)
    named |= {name for name in os.environ if name.startswith(of_trackers) and is_secret(name)}
    return sorted(named | ({notices.VARIABLE} & os.environ.keys()))


def _slug(run: str) -> str:
    """A run's name as all engines take one; another name never becomes the same."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if name != run or not name[:1].isalpha() or not 2 <= len(name) <= _LONGEST_NAME:
        digest = hashlib.sha256(run.encode()).hexdigest()[:8]
        stem = name[: _LONGEST_NAME - len("run--") - len(digest)].strip("-")
        name = f"run-{stem}-{digest}" if stem else f"run-{digest}"
    return name


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks, other text in quotes, as YAML 1.1 and 1.2 read alike."""

    def ignore_aliases(self, _: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None if _PLAIN.fullmatch(value) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _Dumper.text)
