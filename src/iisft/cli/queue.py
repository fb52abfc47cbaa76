"""iisft queue: the runs that wait for their GPUs."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console, options
from iisft.cli.options import JsonOption, complete_runs
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.runs.queue.entries import Entry, Queue
    from iisft.runs.queue.times import Times

queue_app = options.group(
    """List the runs that wait for free GPUs; change their order.

A run starts when nobody's processes are on the GPUs that it needs, in the order of the queue:
iisft train --queue adds one.

\b
Examples:
  iisft queue
  iisft train --preset mi50 --queue
""",
    no_args_is_help=False,
    invoke_without_command=True,
)
_Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A waiting run's id.", autocompletion=complete_runs)
]


@queue_app.callback()
def queue(context: typer.Context, as_json: JsonOption = False) -> None:
    """Every run of the queue: position, state, when it is expected to begin and to end."""
    if context.invoked_subcommand is None:
        _show(as_json=as_json)


@queue_app.command()
def move(
    run: _Run,
    position: Annotated[int, typer.Argument(min=1, help="1 is the next to start.")],
    as_json: JsonOption = False,
) -> None:
    """Give a waiting run another position.

    \b
    Examples:
      iisft queue move RUN 1
    """
    from iisft.runs.queue import changes

    changes.move(Workspace.current(), run, position)
    _show(as_json=as_json)


@queue_app.command()
def rm(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run ids.", autocompletion=complete_runs),
    ],
    as_json: JsonOption = False,
) -> None:
    """Take waiting runs out of the queue, with their folders.

    \b
    Examples:
      iisft queue rm RUN
    """
    from iisft.runs.queue import changes

    changes.remove(Workspace.current(), runs)
    _show(as_json=as_json)


@queue_app.command()
def pause(as_json: JsonOption = False) -> None:
    """Start no more runs; those that run go on.

    \b
    Examples:
      iisft queue pause
    """
    from iisft.runs.queue import changes

    changes.pause(Workspace.current())
    _show(as_json=as_json)


@queue_app.command()
def run(as_json: JsonOption = False) -> None:
    """Go on after a pause.

    \b
    Examples:
      iisft queue run
    """
    from iisft.runs.queue import changes

    changes.go_on(Workspace.current())
    _show(as_json=as_json)


def _show(*, as_json: bool) -> None:
    from iisft.runs.queue import entries, times

    workspace = Workspace.current()
    entries.ensure_runner(workspace)
    found = entries.read(workspace)
    expected = times.expected(found)
    if as_json:
        console.out_json(_as_json(found, expected))
        return
    if not found.entries:
        console.say("the queue is empty; iisft train --queue adds a run, iisft runs lists all")
    else:
        rows = [_row(entry, expected[entry.id]) for entry in found.entries]
        console.table(rows, ("", "RUN", "STATE", "STARTS", "ENDS", "NEEDS", "FAMILY"))
    for run, why in found.why.items():
        console.say(f"{run}: {why}")
    if found.paused:
        console.say("paused: nothing more starts until iisft queue run")
    console.findings(found.findings)


def _row(entry: "Entry", expected: "Times") -> tuple[str, ...]:
    need = entry.need
    return (
        str(entry.position or "-"),
        entry.id,
        entry.status.state,
        _clock(expected.starts),
        _clock(expected.ends),
        f"{need.cards} x {need.arch}" if need.cards else "CPU",
        entry.family or "-",
    )


def _clock(moment: float | None) -> str:
    return "-" if moment is None else time.strftime("%a %H:%M", time.localtime(moment))


def _as_json(found: "Queue", expected: "dict[str, Times]") -> dict[str, Any]:
    return {
        "paused": found.paused,
        "runner": found.runner,
        "entries": [
            entry.as_json() | expected[entry.id]._asdict() | {"why": found.why.get(entry.id)}
            for entry in found.entries
        ],
        "findings": [finding.as_json() for finding in found.findings],
    }
