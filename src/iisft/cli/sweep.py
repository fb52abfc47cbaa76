"""iisft sweep: a grid of runs, checked together and queued as one family."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, ModelOption, PresetOption, TrainDataOption
from iisft.cli.train import checked_plan, prepare_demo
from iisft.errors import CheckFailed, UsageError
from iisft.quoting import shell_word
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.errors import Finding
    from iisft.runs.plan.plan import Plan
    from iisft.runs.plan.request import Request
    from iisft.runs.queue.sweep import Checked

_Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=A,B,...",
        help="Several values with commas: one run for each, for each combination of several --set. "
        "A list is one value: [a,b].",
    ),
]
_Name = Annotated[
    str | None, typer.Option(help="The family's name; the runs are NAME-1, NAME-2, ...")
]
_Random = Annotated[
    int | None, typer.Option("--random", metavar="N", help="N of the combinations, at random.")
]
_Seed = Annotated[int, typer.Option(help="With --random: another seed draws others.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Check every run; queue nothing.")]


def sweep(
    preset: PresetOption = None,
    overrides: _Sets = None,
    name: _Name = None,
    drawn: _Random = None,
    seed: _Seed = 0,
    model: ModelOption = None,
    data: TrainDataOption = None,
    gpus: Annotated[int | None, typer.Option(help="Ranks of each run, as for train.")] = None,
    dry_run: _DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Queue a run for each combination of values.

    Every run is checked before one is queued. All have the preset's seed, so that they see the
    rows in the same order. Without options: every sweep there is.

    \b
    Examples:
      iisft sweep -p mi50 --set lora.rank=16,64 --set train.epochs=2,5 --name s
      iisft sweep -p mi50 --set lora.rank=8,16 --set train.seed=1,2,3 --random 4
      iisft sweep
    """
    from iisft.runs.plan.request import Request
    from iisft.runs.queue import sweep as sweeping

    workspace = Workspace.current()
    if preset is None:
        if overrides or name or drawn is not None or model or data:
            raise UsageError("preset-missing", "sweep needs --preset NAME", fix="iisft preset list")
        _list(workspace, as_json=as_json)
        return
    family = name or time.strftime("sweep-%Y%m%d-%H%M%S")
    points = sweeping.points(overrides or (), family, drawn=drawn, seed=seed)
    sweeping.check_free(family, workspace)
    request = Request(preset, points[0].overrides, model, data, points[0].name, gpus)
    if not dry_run:
        prepare_demo(request, workspace)
    checked = sweeping.check(points, request, _plan_of(workspace), console.say)
    found = sweeping.together(checked, workspace.runs)
    found += _never_rehearsed(checked, workspace)
    failed = any(finding.severity == "error" for finding in found)
    if not dry_run and failed:
        raise CheckFailed(found)
    console.findings(found)
    if not dry_run:
        _queue(checked, workspace, family)
    if as_json:
        console.out_json(_document(family, checked, found, queued=not dry_run))
    else:
        _print(checked, "" if dry_run else family)
    if failed:
        raise typer.Exit(CheckFailed(found).exit_code)


def _plan_of(workspace: Workspace) -> Any:
    def plan(request: "Request") -> Any:
        return checked_plan(request, workspace, queued=True)

    return plan


def _never_rehearsed(checked: "list[Checked]", workspace: Workspace) -> "list[Finding]":
    """Of the longest run alone."""
    from iisft.rehearsal.verdict import never_rehearsed

    plans = [one.plan for one in checked if one.plan is not None]
    longest = max(plans, key=lambda plan: _hours(plan) or 0.0, default=None)
    return list(never_rehearsed(longest, workspace.rehearsals)) if longest else []


def _queue(checked: "list[Checked]", workspace: Workspace, family: str) -> None:
    from iisft.runs.queue import entries
    from iisft.runs.queue import sweep as sweeping

    sweeping.queue(checked, workspace, family)
    entries.ensure_runner(workspace, added=True)


def _hours(plan: "Plan | None") -> float | None:
    total = plan.forecast.total_s if plan and plan.forecast else None
    return total.typical / 3600 if total else None


def _print(checked: "list[Checked]", queued_as: str) -> None:
    rows = []
    for one in checked:
        hours = _hours(one.plan)
        rows.append(
            (
                one.point.name,
                *one.point.values.values(),
                (one.plan.fits if one.plan else None) or "-",
                console.duration(hours * 3600) if hours is not None else "-",
            )
        )
    console.table(rows, ("RUN", *checked[0].point.values, "FITS", "TAKES"))
    if queued_as:
        console.say(f"queued; iisft queue shows when they run, iisft compare {queued_as} ranks")


def _document(
    family: str, checked: "list[Checked]", found: "list[Finding]", *, queued: bool
) -> dict[str, Any]:
    return {
        "family": family,
        "queued": queued,
        "runs": [
            {
                "id": one.point.name,
                "values": dict(one.point.values),
                "sound": one.sound,
                "fits": one.plan.fits if one.plan else None,
                "total_h": _hours(one.plan),
                "findings": [finding.as_json() for finding in one.findings],
            }
            for one in checked
        ],
        "findings": [finding.as_json() for finding in found],
    }


def _list(workspace: Workspace, *, as_json: bool) -> None:
    """Every family with the states of its runs."""
    from collections import Counter

    from iisft.runs.record.families import families
    from iisft.runs.record.state import brief_of

    states = {
        name: Counter(brief_of(folder).state for folder in folders)
        for name, folders in families(workspace).items()
    }
    if as_json:
        console.out_json(
            [{"family": name, "states": dict(counted)} for name, counted in states.items()]
        )
        return
    if not states:
        console.say("no sweep yet: iisft sweep --preset NAME --set lora.rank=16,64")
        return
    rows = [
        (
            name,
            str(counted.total()),
            ", ".join(f"{count} {state}" for state, count in sorted(counted.items())),
        )
        for name, counted in states.items()
    ]
    console.table(rows, ("SWEEP", "RUNS", ""))
    console.say(f"rank one with: iisft compare {shell_word(next(iter(states)))}")
