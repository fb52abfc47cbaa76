"""iisft plan: does a run fit, how long does it take, and what would make it fit."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, SetOption, complete_datasets, complete_presets
from iisft.errors import UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.gpu_table import Device
    from iisft.runs.plan.command import Planned
    from iisft.runs.plan.request import TrainRequest


def complete_devices() -> list[str]:
    from iisft.gpu_table import DEVICES

    return [device.key for device in DEVICES]


def plan(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="A preset's name or file; default: the one for these GPUs.",
            autocompletion=complete_presets,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or hub id instead of the "
                                                   "preset's.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Staged dataset instead of the "
                                      "preset's.", autocompletion=complete_datasets)
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs per machine instead of the "
                                                  "preset's.")] = None,
    nodes: Annotated[int, typer.Option(help="Number of machines.")] = 1,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Plan for this card, mi50-32g for "
                                          "example.", autocompletion=complete_devices),
    ] = None,
    overrides: SetOption = None,
    best: Annotated[
        bool, typer.Option("--best", help="Search batch, checkpointing, attention and sharding "
                                          "for the fastest run.")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Trace the real step without data in the training "
                                           "environment as well.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run a few real steps of the preset here, and measure; "
                                           "nothing is kept.")
    ] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Forecast memory, time and disk of a run from config.json alone.

    It always ends with 0: a run that does not fit is an answer, and the changes that would
    fit stand beside it.

    \b
    Examples:
      iisft plan --preset mi50 --device mi50-32g
      iisft plan --preset mi50 --set weights=fp32
      iisft plan --preset ampere --device a100-80g --best
    """
    from iisft.runs.plan import command
    from iisft.runs.plan.request import TrainRequest

    workspace = Workspace.current()
    card = _device(device)
    name = preset or command.default_preset(workspace, card)
    if preset is None:
        console.say(f"no --preset given: planned for {name}")
    request = TrainRequest(name, tuple(overrides or ()), model, data, gpus=gpus, nodes=nodes)
    planned = command.make(request, workspace, card)
    extra: dict[str, Any] = {}
    if best or trace or probe:
        extra = _extras(planned, request, best=best, trace=trace, probe=probe)
    if probe:
        planned = command.make(request, workspace, card)  # with what was just measured
    if as_json:
        console.out_json(planned.as_json() | extra)
    else:
        _print(planned, extra)
    console.findings(planned.findings)


def _extras(
    planned: "Planned", request: "TrainRequest", *, best: bool, trace: bool, probe: bool
) -> dict[str, Any]:
    """What takes longer than a plan, or asks the machine."""
    from iisft.runs.plan import whatif

    extra: dict[str, Any] = {}
    workspace = Workspace.current()
    if best:
        extra["best"] = whatif.best(planned)
    if trace:
        extra["trace"] = whatif.trace(planned, console.say)
    if probe and best:
        extra["best"] = whatif.probe_best(extra["best"], request, workspace, console.say)
    elif probe:
        extra["probe"] = whatif.probe(request, workspace, console.say)
    return extra


def _device(key: str | None) -> "Device | None":
    if key is None:
        return None
    import difflib

    from iisft.gpu_table import DEVICES, find_device

    found = find_device(key)
    if found is None:
        keys = [device.key for device in DEVICES]
        near = difflib.get_close_matches(key.lower(), keys, n=2) or keys
        raise UsageError(
            "device-unknown", f"no device named {key!r}", where="--device", fix=", ".join(near)
        )
    return found


def _print(planned: "Planned", extra: dict[str, Any]) -> None:
    from iisft.cli import plan_text

    for line in plan_text.lines(planned, extra):
        console.out(line)
