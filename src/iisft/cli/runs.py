"""iisft runs: list, remove, compare."""

import os
import time
from typing import Annotated

import typer

from iisft.cli import console, options
from iisft.cli.options import JsonOption, QuietOption, complete_runs
from iisft.errors import UsageError
from iisft.workspace import Workspace

runs_app = options.group(
    """List the runs, newest first; compare or delete them.

\b
Examples:
  iisft runs
  iisft runs diff A B
""",
    no_args_is_help=False,
    invoke_without_command=True,
)


@runs_app.callback()
def runs(context: typer.Context, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Every run, newest first."""
    if context.invoked_subcommand is not None:
        return
    from iisft.cli.console import duration
    from iisft.runs.queue import entries
    from iisft.runs.record.state import QUEUED, all_runs

    workspace = Workspace.current()
    entries.ensure_runner(workspace)
    found = all_runs(workspace)
    if not found and not quiet:
        named = "" if os.environ.get("IISFT_HOME") else "; export IISFT_HOME=DIR names another"
        console.say(f"no runs in the workspace {workspace.root}{named}")
    if as_json:
        console.out_json([run.as_json() for run in found])
    elif quiet:
        for run in found:
            console.out(run.folder.id)
    else:
        rows = []
        for run in found:
            facts = run.as_json()
            loss = facts["loss"]
            rows.append(
                (
                    run.folder.id,
                    run.state,
                    f"{facts['step']}/{facts['total_steps'] or '?'}",
                    f"{float(loss):.4f}" if loss is not None else "-",
                    duration(run.eta_s) if run.eta_s is not None else "-",
                    str(run.ranks or "-"),
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
                    if run.started
                    else "-",
                )
            )
        console.table(rows, ("RUN", "STATE", "STEP", "LOSS", "ETA", "RANKS", "STARTED"))
        if any(run.state == QUEUED for run in found):
            console.say("when the queued ones start: iisft queue")


@runs_app.command()
def rm(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Run ids.", autocompletion=complete_runs),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every run that failed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Delete runs that are not running, with their checkpoints.

    \b
    Examples:
      iisft runs rm demo-20261124-204849
      iisft runs rm --failed
    """
    from iisft.runs.record.state import all_runs, find_run
    from iisft.runs.supervise import control

    workspace = Workspace.current()
    if not runs and not failed:
        raise UsageError("no-runs-named", "name the runs, or --failed for all that failed")
    folders = [find_run(workspace, name) for name in dict.fromkeys(runs or ())]
    if failed:
        named = {folder.id for folder in folders}
        gone = [run.folder for run in all_runs(workspace) if run.state == "failed"]
        folders += [folder for folder in gone if folder.id not in named]
    if not folders:
        console.say("no run has failed")
        return
    for folder in folders:
        control.check_removable(folder)
    ids = ", ".join(folder.id for folder in folders)
    console.require_yes(yes, f"delete {ids} with all checkpoints?", "iisft runs rm --yes RUN...")
    for folder in folders:
        control.remove(folder)
        console.out(folder.id)


@runs_app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A run.", autocompletion=complete_runs)],
    other: Annotated[
        str, typer.Argument(metavar="B", help="Another.", autocompletion=complete_runs)
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: preset, data, model, versions, observations.

    \b
    Examples:
      iisft runs diff A B
    """
    from iisft.runs.record.state import find_run
    from iisft.runs.supervise import drift

    found = drift.compare(*(find_run(Workspace.current(), name) for name in (one, other)))
    if as_json:
        console.out_json({key: list(values) for key, values in found.items()})
    elif not found:
        console.say(f"{one} and {other} do not differ")
    else:
        console.table(
            [(key, *map(_shown, values)) for key, values in found.items()], ("", one, other)
        )


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
