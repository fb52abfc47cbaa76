"""iisft train: preflight, then a supervised run."""

from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.cli.options import (
    DetachOption,
    JsonOption,
    ModelOption,
    PresetOption,
    SetOption,
    TrainDataOption,
    VerboseOption,
)
from iisft.cli.script import (
    ANY_ADDRESS,
    EngineOption,
    ImageOption,
    ScriptOption,
    engine_of,
    write_script,
)
from iisft.errors import UsageError
from iisft.quoting import shell_word, shell_words
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.runs.plan.plan import Plan
    from iisft.runs.plan.request import Request
    from iisft.runs.record.folder import RunFolder
    from iisft.runs.record.state import RunStatus


_Name = Annotated[str | None, typer.Option(help="The run's id; default: preset and time.")]
_Gpus = Annotated[
    int | None,
    typer.Option(
        help="Ranks on this machine; CPU ranks where there is no GPU. Keeps the global batch."
    ),
]
_Rendezvous = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Address of node 0.")]
_Queue = Annotated[
    bool,
    typer.Option("--queue", help="Check now, start when its GPUs are free (iisft queue)."),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run; write nothing.")]


def train(
    preset: PresetOption = None,
    model: ModelOption = None,
    data: TrainDataOption = None,
    name: _Name = None,
    overrides: SetOption = None,
    gpus: _Gpus = None,
    nodes: Annotated[int, typer.Option(help="Number of machines.")] = 1,
    node_rank: Annotated[int, typer.Option(help="This machine's number, from 0.")] = 0,
    rendezvous: _Rendezvous = None,
    detach: DetachOption = False,
    queue: _Queue = False,
    verbose: VerboseOption = False,
    dry_run: _DryRun = False,
    script: ScriptOption = None,
    engine: EngineOption = None,
    image: ImageOption = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="The same as --for slurm.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything, then train what the preset says.

    Ctrl-C stops the run with a checkpoint. Exit 3: preset, model or data are wrong; 4: the
    machine or its memory; 1: training failed.

    \b
    Examples:
      iisft train --preset mi50 --dry-run
      iisft train --preset mi50 --set train.epochs=1 --detach
      iisft train --preset demo --name first
      iisft train --preset mi50 --queue
      iisft train -p mi50 --name big --nodes 2 --script big.yaml --for dstack
    """
    from iisft.runs.plan.request import Request

    engine = engine_of(engine, script, image, slurm=slurm)
    workspace = Workspace.current()
    if preset is None:
        raise _no_preset(workspace)
    if engine is not None:
        rendezvous = rendezvous or ANY_ADDRESS
    request = Request(
        preset, tuple(overrides or ()), model, data, name, gpus, nodes, node_rank, rendezvous
    )  # fmt: skip
    if not dry_run:
        prepare_demo(request, workspace)
    plan = checked_plan(request, workspace, queued=queue)
    if dry_run:
        _print_plan(plan, as_json=as_json)
        raise typer.Exit(plan.exit_code)
    if script is not None:
        write_script(plan.for_elsewhere(), request, script, engine, image)
        return
    plan.require_sound()
    _say_findings(plan, workspace)
    if queue:
        _add_to_queue(plan, workspace, as_json=as_json)
        return
    _run(plan, detach=detach, verbose=verbose, as_json=as_json)


def checked_plan(request: "Request", workspace: Workspace, *, queued: bool = False) -> "Plan":
    """The plan with everything that speaks against it here, now or (`queued`) when its GPUs are
    free.
    """
    from iisft.cli.progress import rows_bar
    from iisft.runs.plan.make import make_plan
    from iisft.runs.plan.plan import Preflight

    with rows_bar("counting tokens") as progress:
        here = Preflight.here(workspace, progress, console.say, queued=queued)
        return make_plan(request, workspace, here)


def _no_preset(workspace: Workspace) -> UsageError:
    """Which presets were made for the GPUs that are here."""
    from iisft.runs.plan.request import presets_for_here

    fitting = presets_for_here(workspace)
    text = "train needs --preset NAME"
    if fitting:
        text += f"; made for this machine: {', '.join(fitting)}"
    fix = f"iisft train --preset {shell_word(fitting[0])}" if fitting else "iisft preset list"
    return UsageError("preset-missing", text, fix=fix)


def _say_findings(plan: "Plan", workspace: Workspace) -> None:
    from iisft.rehearsal.verdict import never_rehearsed

    console.findings(plan.findings)
    console.findings(never_rehearsed(plan, workspace.rehearsals))


def _add_to_queue(plan: "Plan", workspace: Workspace, *, as_json: bool) -> None:
    from iisft.runs.queue import changes, entries

    folder = changes.add(plan, workspace)
    entries.ensure_runner(workspace, added=True)
    _print_begun(folder, as_json=as_json)
    console.say("queued; see when it starts with: iisft queue")


def _print_begun(folder: "RunFolder", *, as_json: bool) -> None:
    if as_json:
        console.out_json({"id": folder.id, "run_dir": str(folder.path)})
    else:
        console.out(folder.id)


def _run(plan: "Plan", *, detach: bool, verbose: bool, as_json: bool) -> None:
    from iisft.cli.follow import follow
    from iisft.runs.plan import create
    from iisft.runs.supervise import control

    if plan.placement.node_rank:
        create.join(plan)
    else:
        create.create(plan)
    try:
        create.start(plan)
    except KeyboardInterrupt:
        create.abandon(plan)
        raise
    folder = plan.folder
    if detach:
        _print_begun(folder, as_json=as_json)
        console.say(
            f"running; see it with: iisft watch {folder.id}   stop it with: iisft stop {folder.id}"
        )
        return
    console.say(
        f"run {folder.id}: global batch {plan.global_batch} = batch "
        f"{plan.preset.train.batch_size} x accumulation "
        f"{plan.preset.train.accumulation} x {plan.placement.world_size} ranks; Ctrl-C stops it "
        "with a checkpoint"
    )
    ended = follow(folder, verbose=verbose, to_stdout=not as_json)
    if as_json:
        console.out_json(ended.as_full_json())
    else:
        _print_end(plan, ended)
    raise typer.Exit(control.exit_code(ended))


def prepare_demo(request: "Request", workspace: Workspace) -> None:
    """Make the demo's model and rows where its preset is asked for."""
    from iisft import demo

    if request.preset == demo.PRESET:
        from iisft.demo import assets
        from iisft.runs.plan.request import check_nodes, resolve

        check_nodes(request)  # what was mistyped is said before half a minute of building
        resolve(request, workspace)
        assets.prepare(workspace, console.say)


def _print_plan(plan: "Plan", *, as_json: bool) -> None:
    from iisft.presets.yaml12 import render_yaml
    from iisft.secrets import redact, redact_all

    env = redact(plan.env)
    train_yaml = redact_all(plan.train_yaml)
    if as_json:
        console.out_json(
            {
                "argv": plan.argv,
                "env": env,
                "train_yaml": train_yaml,
                "global_batch": plan.global_batch,
                "world_size": plan.placement.world_size,
                "run_dir": str(plan.folder.path),
                "data": plan.account,
                "findings": [finding.as_json() for finding in plan.findings],
            }
        )
    else:
        console.out(f"# {plan.folder.path}")
        for name, value in env.items():
            console.out(f"export {name}={shell_word(value)}")
        console.out(shell_words(plan.argv))
        console.out(
            f"\n# train.yaml, global batch {plan.global_batch}, {plan.placement.world_size} ranks"
        )
        console.out(render_yaml(train_yaml).rstrip())
    console.findings(plan.findings)


def _print_end(plan: "Plan", ended: "RunStatus") -> None:
    from iisft.cli.follow import better_before, next_steps, say_end, say_warnings

    folder = plan.folder
    if ended.state != "finished":
        say_end(ended)
        return
    say_warnings(ended)
    losses = [
        float(e["loss"]) for e in folder.read_events() if e["kind"] == "metrics" and "loss" in e
    ]
    observed = ended.observed or {}
    started = f", started from {plan.start.source}" if plan.start else ""
    console.out(f"{folder.id}: finished, {ended.reason}")
    if losses:
        tail = losses[-5:]
        console.out(
            f"  loss       {losses[0]:.4f} -> {sum(tail) / len(tail):.4f} (mean of the last "
            f"{len(tail)} steps)"
        )
    console.out(
        f"  proven     {observed['weights_dtype']} weights, {observed['compute_dtype']} "
        "arithmetic, "
        f"{observed['attention']} attention, global batch {observed['global_batch']}, "
        f"{observed['rows']} rows{started}"
    )
    plot = folder.output / "training_loss.png"
    if plot.exists():
        console.out(f"  loss plot  {plot}")
    console.out(f"  adapter    {folder.output}")
    if line := better_before(ended):
        console.out(f"  best       {line}")
    console.out(f"  record     {folder.record}")
    console.out(f"  next       {next_steps(folder.id)}")
