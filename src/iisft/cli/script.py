"""Writing a run down for elsewhere: a script, or a job of an engine."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.errors import UsageError
from iisft.quoting import shell_word
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.runs.plan.plan import Plan
    from iisft.runs.plan.request import Request

ANY_ADDRESS = "node0:29500"  # the engine names node 0; the port is ours

ScriptOption = Annotated[
    Path | None,
    typer.Option(help="Write a bash script that trains without iisft; with --for another file."),
]


class Engine(StrEnum):
    """What starts a run on several machines."""

    SLURM = "slurm"
    DSTACK = "dstack"
    SKYPILOT = "skypilot"
    JOBSET = "jobset"
    PYTORCHJOB = "pytorchjob"


EngineOption = Annotated[
    Engine | None,
    typer.Option(
        "--for",
        help="With --script: a job that runs on each of --nodes machines. All but slurm need "
        "iisft there.",
    ),
]
ImageOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="With --for: the container image of the job.")
]


def engine_of(
    engine: Engine | None, script: Path | None, image: str | None, *, slurm: bool
) -> Engine | None:
    """For whom the script is; refused where the options contradict each other."""
    if script is None and (slurm or engine or image):
        option = "--slurm" if slurm else "--for" if engine else "--image"
        raise UsageError("slurm-script", f"{option} goes with --script FILE")
    if slurm and engine not in (None, Engine.SLURM):
        raise UsageError("slurm-script", f"--slurm is --for slurm, not --for {engine}")
    engine = Engine.SLURM if slurm else engine
    if image is not None and engine in (None, Engine.SLURM):
        raise UsageError("job-image", "--image goes with --for dstack, skypilot or Kubernetes'")
    return engine


def write_script(
    plan: "Plan", request: "Request", file: Path, engine: Engine | None, image: str | None
) -> None:
    from iisft.runs.plan import job
    from iisft.runs.plan import script as scripts

    plan.require_sound()
    if engine in (None, Engine.SLURM):
        text = scripts.render(plan, slurm=engine is Engine.SLURM)
        command = "sbatch" if engine else "bash"
    else:
        text, command = job.render(engine, plan, request, Workspace.current(), image)
    console.write(file, text, UsageError, "script-write")
    if file.is_file() and engine in (None, Engine.SLURM):
        file.chmod(0o755)
    console.findings(plan.findings)
    console.say(f"{file}: {command} {shell_word(str(file))}")
