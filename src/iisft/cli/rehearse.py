"""iisft rehearse: some minutes that tell whether a long run will hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, ModelOption, SetOption, TrainDataOption, complete_presets
from iisft.cli.train import checked_plan, prepare_demo
from iisft.errors import InputError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.rehearsal.verdict import Verdict
    from iisft.runs.plan.plan import Plan

_Preset = Annotated[
    str,
    typer.Option(
        "--preset", "-p", help="A preset's name or file.", autocompletion=complete_presets
    ),
]
_Gpus = Annotated[int | None, typer.Option(help="Ranks on this machine, as for train.")]
_Collect = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.tar.gz",
        help="Pack the verdict with what env-check reads, to be sent: no secret, no row.",
    ),
]


def rehearse(
    preset: _Preset,
    model: ModelOption = None,
    data: TrainDataOption = None,
    overrides: SetOption = None,
    gpus: _Gpus = None,
    collect: _Collect = None,
    as_json: JsonOption = False,
) -> None:
    """Try a long run in minutes: memory, speed, a kill and the resume.

    Real steps on the longest rows, one evaluation and checkpoint; the trainer is killed and
    must come back with the same loss. Exit 4: memory or disk are too small; 1: the run would
    fail.

    \b
    Examples:
      iisft rehearse --preset mi50
      iisft rehearse --preset mi50 --data triage --collect rehearsal.tar.gz
    """
    from iisft.rehearsal.rehearse import rehearse as run
    from iisft.runs.plan.request import Request

    workspace = Workspace.current()
    if collect is not None and collect.exists():
        raise console.exists(collect)
    request = Request(preset, tuple(overrides or ()), model, data, gpus=gpus)
    prepare_demo(request, workspace)
    plan = checked_plan(request, workspace)
    plan.require_sound()
    console.findings(plan.findings)
    found = run(plan, workspace, console.say)
    if collect is not None:
        _collect(collect, found, workspace)
    if as_json:
        console.out_json(found.document)
    else:
        for line in _lines(plan, found):
            console.out(line)
        if found.ok:
            console.out(f"  {'next':<11}{request.command('train')}")
    console.findings(found.findings)
    raise typer.Exit(found.exit_code)


def _collect(file: Path, found: "Verdict", workspace: Workspace) -> None:
    from iisft.machine.doctor import bundle, inspect
    from iisft.machine.facts.reader import Reader
    from iisft.rehearsal.verdict import without_rows

    reader = Reader()
    machine = inspect.this_machine(workspace.root, reader)
    machine, _ = inspect.inspected(machine, console.say)
    content = bundle.packed(machine, reader, rehearsal=without_rows(found.document))
    console.write(file, content, InputError, "file-write")
    console.say(f"{file}: the verdict and what env-check reads; it holds no secret and no row")


def _lines(plan: "Plan", found: "Verdict") -> list[str]:
    """One screen."""
    known = found.document
    lines = {
        "memory": f"peak {_gib(known['peak_gib'])}; planned {_gib(known['planned_gib'])}, the "
        f"card has {_gib(known['card_gib'])}",
        "time": _time(plan, known),
        "checkpoint": f"{_gib(known['checkpoint_gib'])} in {_seconds(known['checkpoint_s'])}; "
        f"{_gib(known['disk_gib'])} on disk at the end, {_gib(known['free_gib'])} free",
        "evaluation": _evaluation(known),
        "resume": _resume(known["resume"]),
        "prediction": "one answer written and read back" if known["prediction"] else "failed",
        "proven": _proven(known["observed"]),
    }
    shown = [f"{known['name']}: {'ok' if found.ok else 'would fail'}"]
    shown += [f"  {name:<11}{text}" for name, text in lines.items() if text]
    return shown


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} GiB" if value < 1 else f"{value:.2f} GiB"


def _seconds(value: float | None) -> str:
    return "unknown time" if value is None else f"{value:.1f} s"


def _time(plan: "Plan", known: dict[str, Any]) -> str:
    if known["step_s"] is None:
        return "unknown: no ordinary step was timed"
    text = f"{known['step_s']:.3g} s per step"
    own = plan.preset.train.accumulation
    if known["accumulation"] != own:
        text += f" (from {known['accumulation']} of {own} micro-batches)"
    if known["total_h"] is None:
        return text
    duration = console.duration(known["total_h"] * 3600)
    end = known["finish"][:16].replace("T", " ")
    return f"{text}; {known['steps']} steps take {duration}: started now they end {end}"


def _evaluation(known: dict[str, Any]) -> str:
    return "" if known["eval_s"] is None else f"{known['eval_s']:.1f} s for all rows"


def _resume(resume: dict[str, bool | None]) -> str:
    from iisft.rehearsal.short import CHECKPOINT, KILLED_AFTER

    again = f"steps {CHECKPOINT + 1} and {KILLED_AFTER}"
    if not resume["ok"]:
        return "failed"
    same = "to the bit" if resume["loss_equal"] else "to the last digits"
    return (
        f"killed, went on from checkpoint-{CHECKPOINT}; loss and gradient of {again} are the "
        f"same {same}"
    )


def _proven(observed: dict[str, Any]) -> str:
    if not observed:
        return ""
    ranks = observed["world_size"]
    return (
        f"{observed['weights_dtype']} weights, {observed['compute_dtype']} arithmetic, "
        f"{observed['attention']} attention, {ranks} rank{'' if ranks == 1 else 's'}"
    )
