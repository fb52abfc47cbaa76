"""iisft runs, status, logs, wait, stop."""

import time
from typing import Annotated

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, QuietOption, complete_runs
from iisft.workspace import Workspace

RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="A run's id; left out = the newest.", autocompletion=complete_runs),
]


def register_run_commands(app: typer.Typer) -> None:
    """Put this file's commands at the top level."""
    for command in (runs, status, logs, wait, stop):
        app.command()(command)


def runs(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Every run, newest first."""
    from iisft.cli.follow import duration
    from iisft.runs.state import all_runs

    found = all_runs(Workspace.current())
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
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)) if run.started else "-",
                )
            )
        console.table(rows, ("RUN", "STATE", "STEP", "LOSS", "ETA", "STARTED"))


def status(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """One run: state, progress, what was observed, checkpoints, findings."""
    from iisft.cli.follow import describe_metrics
    from iisft.runs.state import find_run, status_of

    found = status_of(find_run(Workspace.current(), run))
    facts = found.as_full_json()
    if as_json:
        console.out_json(facts)
        return
    console.out(f"{found.folder.id}: {found.state}{' - ' + found.reason if found.reason else ''}")
    console.out(f"preset       {found.preset}")
    if found.metrics:
        step_s = [found.metrics["median_step_s"]] if "median_step_s" in found.metrics else []
        figures = describe_metrics(found.metrics, step_s if found.live else [])
        console.out(f"progress     step {found.metrics['step']}/{found.metrics['total_steps']}  {figures}")
    for name, value in (found.observed or {}).items():
        console.out(f"{name.replace('_', ' '):<21}{value}")
    for checkpoint in facts["checkpoints"]:
        console.out(f"checkpoint-{checkpoint['step']}{'' if checkpoint['complete'] else ' (not complete)'}")
    for finding in facts["findings"]:
        console.out(f"{finding.get('severity', 'finding')}: {finding.get('message', '')}")
    console.out(f"folder       {found.folder.path}")


def logs(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Events (metrics, states, findings): a list, with --follow one per line.")
    ] = False,
) -> None:
    """The trainer's log, or the run's events."""
    from iisft.files import LineFollower
    from iisft.runs import control
    from iisft.runs.state import find_run

    folder = find_run(Workspace.current(), run)
    if as_json and not follow:
        console.out_json(list(folder.read_events()))
        return
    lines = LineFollower(folder.events if as_json else folder.train_log)

    def show() -> None:
        for line in lines.read():
            console.out(line)

    show()
    if follow:
        control.wait(folder, show)


def wait(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Block until a run has ended, and end as it did: 0 finished, 1 failed or lost, 130 stopped."""
    from iisft.runs import control
    from iisft.runs.state import find_run

    ended = control.wait(find_run(Workspace.current(), run))
    if as_json:
        console.out_json(ended.as_full_json())
    console.say(f"{ended.folder.id}: {ended.state} - {ended.reason}")
    raise typer.Exit(control.exit_code(ended))


def stop(
    run: RunArgument = None,
    now: Annotated[bool, typer.Option("--now", help="Kill it without asking for a checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a run: with a checkpoint where possible."""
    from iisft.runs import control
    from iisft.runs.state import find_run

    folder = find_run(Workspace.current(), run)
    control.request_stop(folder, now=now)
    if not now:
        console.say("asked for a checkpoint; the present step is finished first (--now kills at once)")
    ended = control.wait(folder)
    if as_json:
        console.out_json(ended.as_full_json())
    else:
        console.out(f"{folder.id}: {ended.state} - {ended.reason}")
