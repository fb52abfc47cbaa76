"""What is done to one run: status, logs, wait, stop, resume."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.child.constants_iisft import SAID_MARK
from iisft.cli import console
from iisft.cli.options import DetachOption, JsonOption, RunArgument, VerboseOption
from iisft.errors import UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.runs.record.folder import RunFolder
    from iisft.runs.supervise.resume import Resumed

_LONGEST_LINE = 2000  # bytes, in the mean of those at a log's end


def status(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Show one run: progress, what was observed, checkpoints.

    \b
    Examples:
      iisft status
      iisft status RUN --json
    """
    from iisft.cli.figures import describe_run
    from iisft.runs.queue import entries
    from iisft.runs.record.state import find_run, status_of

    entries.ensure_runner(Workspace.current())
    found = status_of(find_run(Workspace.current(), run))
    facts = found.as_full_json()
    if as_json:
        console.out_json(facts)
        return
    for line in describe_run(found):
        console.out(line)
    _print_checkpoints_and_findings(facts)
    console.out(f"folder       {found.folder.path}")
    if found.can_go_on:
        console.out(f"go on        iisft resume {found.folder.id}")


def _print_checkpoints_and_findings(facts: dict[str, Any]) -> None:
    for checkpoint in facts["checkpoints"]:
        loss, fault = checkpoint["eval_loss"], checkpoint.get("fault", "")
        console.out(
            f"checkpoint-{checkpoint['step']}"
            + (f"  eval_loss {loss:.4f}" if loss is not None else "")
            + (", the best" if checkpoint["best"] else "")
            + (f" (not complete: {fault})" if fault else "")
        )
    for finding in facts["findings"]:
        console.out(f"{finding.get('severity', 'finding')}: {finding.get('message', '')}")
        if finding.get("fix"):
            console.out(f"  fix: {finding['fix']}")


_Follow = Annotated[bool, typer.Option("--follow", "-f", help="Follow until the run ends.")]
_AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Events (metrics, states, findings): a list, with --follow one per line."
    ),
]
_Last = Annotated[
    int | None, typer.Option("--lines", "-n", min=1, help="Only the last N lines, or events.")
]


def logs(
    run: RunArgument = None,
    follow: _Follow = False,
    as_json: _AsJson = False,
    last: _Last = None,
) -> None:
    """Print the trainer's log, or the run's events.

    \b
    Examples:
      iisft logs -f
      iisft logs RUN -n 50
      iisft logs RUN --json
    """
    from iisft.cli.follow import Since
    from iisft.files import LineFollower
    from iisft.runs.record.folder import parse_event
    from iisft.runs.record.history import last_lines
    from iisft.runs.record.state import find_run
    from iisft.runs.supervise import control

    folder = find_run(Workspace.current(), run)
    before = Since() if last is None else Since.here(folder)
    if as_json:
        events = [] if follow and last is None else list(folder.read_events())[-(last or 0) :]
        if not follow:
            console.out_json(events)
            return
        for event in events:
            console.out_json_line(event)
    elif last is not None:
        for line in last_lines(folder.train_log, last, _LONGEST_LINE * last):
            console.out_live(line)
    lines = (
        LineFollower(folder.events, before.events)
        if as_json
        else LineFollower(folder.train_log, before.log)
    )

    def show() -> None:
        for line in lines.read():
            if not as_json:
                if not line.startswith(SAID_MARK):  # the trainer's own line stands beside it
                    console.out_live(line)
            elif (event := parse_event(line)) is not None:
                console.out_json_line(event)

    show()
    if follow:
        control.wait(folder, show)


def wait(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Wait until a run has ended, and end as it did.

    Exit 0: finished; 1: failed or lost; 130: stopped.

    \b
    Examples:
      iisft wait RUN && iisft predict RUN
    """
    from iisft.cli.follow import say_end
    from iisft.runs.record.state import find_run
    from iisft.runs.supervise import control

    ended = control.wait(find_run(Workspace.current(), run))
    if as_json:
        console.out_json(ended.as_full_json())
    say_end(ended)
    raise typer.Exit(control.exit_code(ended))


def stop(
    run: RunArgument = None,
    now: Annotated[
        bool, typer.Option("--now", help="Kill it without asking for a checkpoint.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a run with a checkpoint, after the current step.

    \b
    Examples:
      iisft stop
      iisft stop RUN --now
    """
    from iisft.runs.record.state import find_run
    from iisft.runs.supervise import control

    folder = find_run(Workspace.current(), run)
    control.request_stop(folder, now=now)
    if not now:
        console.say(
            "asked for a checkpoint; the current step is finished first (--now kills at once)"
        )
    ended = control.wait_for_kill(folder) if now else control.wait(folder)
    if as_json:
        console.out_json(ended.as_full_json())
    else:
        console.out(f"{folder.id}: {ended.state} - {ended.reason}")


_AllLost = Annotated[
    bool, typer.Option("--all-lost", help="Resume every lost run, as after a reboot.")
]
_AcceptDrift = Annotated[
    bool,
    typer.Option(
        "--accept-drift", help="Resume even if model, data, packages or files have changed."
    ),
]
_FromStart = Annotated[
    bool, typer.Option("--from-start", help="Start over when no complete checkpoint is left.")
]


def _refuse_longer(folder: "RunFolder", key: str, value: float) -> None:
    """More steps are another run: the learning rate follows their number."""
    from iisft.errors import RunStateError
    from iisft.runs.supervise.resume import longer

    raise RunStateError(
        "resume-longer",
        f"a resume goes on as {folder.id} began: it can't change {key}",
        where=str(folder.path),
        fix=f"{longer(folder)}{key}={value:g}",
    )


def resume(
    run: RunArgument = None,
    all_lost: _AllLost = False,
    accept_drift: _AcceptDrift = False,
    from_start: _FromStart = False,
    epochs: Annotated[
        float | None, typer.Option(help="Refused, with the command for a longer run.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="The same.")] = None,
    node_rank: Annotated[int, typer.Option(help="This machine's number, from 0.")] = 0,
    detach: DetachOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Resume a run from its last complete checkpoint.

    If its trainer is still alive, the run gets a new supervisor instead.

    \b
    Examples:
      iisft resume RUN
      iisft resume --all-lost
    """
    from iisft.cli.follow import Since, follow, say_end
    from iisft.runs.record.folder import RunFolder
    from iisft.runs.record.state import find_run
    from iisft.runs.supervise import control
    from iisft.runs.supervise.resume import resume as bring_back

    workspace = Workspace.current()
    if all_lost:
        _require_alone(run is not None or accept_drift or from_start)
        _resume_all_lost(workspace, as_json=as_json)
        return
    folder = RunFolder(find_run(workspace, run).path, node_rank)
    for key, value in (("train.epochs", epochs), ("train.max_steps", max_steps)):
        if value is not None:
            _refuse_longer(folder, key, value)
    since = Since.here(folder)
    resumed = bring_back(folder, accept_drift=accept_drift, from_start=from_start)
    console.say(_describe(resumed))
    if detach:
        console.out_json(_as_json(resumed)) if as_json else console.out(folder.id)
        return
    ended = follow(folder, verbose=verbose, to_stdout=not as_json, since=since)
    if as_json:
        console.out_json(ended.as_full_json())
    say_end(ended)
    raise typer.Exit(control.exit_code(ended))


def _require_alone(other: bool) -> None:
    if other:
        text = "--all-lost takes no run, accepts no drift and starts nothing over"
        raise UsageError("all-lost", text)


def _resume_all_lost(workspace: Workspace, *, as_json: bool) -> None:
    from iisft.errors import IisftError
    from iisft.runs.queue import entries
    from iisft.runs.record.state import all_runs
    from iisft.runs.supervise.resume import resume as bring_back

    results: list[dict[str, object]] = []
    first_failure = None
    of_queue = {entry.id for entry in entries.read(workspace).entries}
    for status in all_runs(workspace):
        if not status.folder.record.exists() or (status.state != "lost" and status.supervised):
            continue
        if status.folder.id in of_queue:
            results.append({"id": status.folder.id, "queued": True})
            console.say(f"{status.folder.id}: the queue resumes it when its GPUs are free")
            continue
        try:
            resumed = bring_back(status.folder)
        except IisftError as error:  # one run that can't come back must not keep the others down
            first_failure = first_failure or error.exit_code
            results.append({"id": status.folder.id, "error": error.as_json()})
            console.failure(error)
        else:
            results.append(_as_json(resumed))
            console.say(_describe(resumed))
    entries.ensure_runner(workspace)
    if as_json:
        console.out_json(results)
    elif not results:
        console.say("no run is lost")
    if first_failure is not None:
        raise typer.Exit(first_failure)


def _describe(resumed: "Resumed") -> str:
    name = resumed.folder.id
    if resumed.attached:
        return f"{name}: the trainer still runs; a new supervisor took over at step {resumed.step}"
    if resumed.step:
        note = f"\n  note: {resumed.note}" if resumed.note else ""
        return f"{name}: goes on from checkpoint-{resumed.step}{note}"
    return f"{name}: no complete checkpoint, so it starts over"


def _as_json(resumed: "Resumed") -> dict[str, object]:
    return {"id": resumed.folder.id, "attached": resumed.attached, "from_step": resumed.step}
