"""iisft plan: does a run fit, how long does it take, and what would make it fit."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, ModelOption, SetOption, TrainDataOption, complete_presets
from iisft.errors import UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.estimate.forecast import Forecast
    from iisft.estimate.shape import Measured
    from iisft.estimate.suggestions import Suggestion
    from iisft.estimate.timing import Span
    from iisft.gpu_table import Device
    from iisft.runs.plan.plan import Plan
    from iisft.runs.plan.request import Request


def complete_devices() -> list[str]:
    from iisft.gpu_table import DEVICES

    return [device.key for device in DEVICES]


_Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        help="A preset's name or file; default: the one for these GPUs.",
        autocompletion=complete_presets,
    ),
]
_Gpus = Annotated[int | None, typer.Option(help="GPUs per machine instead of the preset's.")]
_Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|SIZE",
        help="Plan for this card, mi50-32g for example, or for one of 24g.",
        autocompletion=complete_devices,
    ),
]
_Best = Annotated[
    bool,
    typer.Option(
        "--best",
        help="Search batch, checkpointing, logits, attention and sharding for the fastest run.",
    ),
]
_Trace = Annotated[
    bool,
    typer.Option(
        "--trace", help="Trace the real step without data in the training environment as well."
    ),
]
_Probe = Annotated[
    bool,
    typer.Option(
        "--probe", help="Run a few real steps of the preset here, and measure; nothing is kept."
    ),
]
_Profile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --probe: record one step by torch's profiler, as a Chrome trace.",
    ),
]


def plan(
    preset: _Preset = None,
    model: ModelOption = None,
    data: TrainDataOption = None,
    gpus: _Gpus = None,
    nodes: Annotated[int, typer.Option(help="Number of machines.")] = 1,
    device: _Device = None,
    overrides: SetOption = None,
    best: _Best = False,
    trace: _Trace = False,
    probe: _Probe = False,
    profile: _Profile = None,
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
    from iisft.runs.plan.make import make_plan
    from iisft.runs.plan.request import Request, default_preset

    if profile is not None and (not probe or best):
        raise UsageError(
            "profile-without-probe", "--profile records a step of --probe", where="--profile",
            fix="--probe --profile FILE, without --best",
        )  # fmt: skip
    workspace = Workspace.current()
    card = _device(device)
    name = preset or default_preset(workspace, None if isinstance(card, float) else card)
    if preset is None:
        console.say(f"no --preset given: planned for {name}")
    request = Request(name, tuple(overrides or ()), model, data, gpus=gpus, nodes=nodes)
    made = make_plan(request, workspace, device=card)
    extra: dict[str, Any] = {}
    if best or trace or probe:
        extra = _extras(made, request, best=best, trace=trace, probe=probe, profile=profile)
    if probe:
        made = make_plan(request, workspace, device=card)  # with what was just measured
    _print(made, extra, as_json=as_json)
    console.findings(made.findings)


def _extras(
    plan: "Plan", request: "Request", *, best: bool, trace: bool, probe: bool, profile: Path | None
) -> dict[str, Any]:
    """What takes longer than a plan, or asks the machine."""
    from iisft.runs.plan import whatif

    extra: dict[str, Any] = {}
    workspace = Workspace.current()
    if best:
        extra["best"] = whatif.best(plan)
    if trace:
        extra["trace"] = whatif.trace(plan, console.say)
    if probe and best:
        extra["best"] = whatif.probe_best(extra["best"], request, workspace, console.say)
    elif probe:
        extra["probe"] = whatif.probe(request, workspace, console.say, profile=profile)
    return extra


def _device(key: str | None) -> "Device | float | None":
    """A card, or only its gigabytes."""
    if key is None:
        return None
    import difflib

    from iisft.gpu_table import DEVICES, find_device, memory_of

    found = find_device(key) or memory_of(key)
    if found is None:
        keys = [device.key for device in DEVICES]
        near = [name for name in keys if name.startswith(key.lower())]
        near = near or difflib.get_close_matches(key.lower(), keys, n=2) or keys
        raise UsageError(
            "device-unknown",
            f"no device named {key!r}",
            where="--device",
            fix=f"{', '.join(near)}; or its memory: 24g",
        )
    return found


def _print(plan: "Plan", extra: dict[str, Any], *, as_json: bool) -> None:
    from iisft.cli import plan_text
    from iisft.estimate.suggestions import contrasts

    result = plan.forecast
    compared = (
        contrasts(plan.preset, result.workload) if result and not plan.accelerator.on_cpu else []
    )
    if as_json:
        console.out_json(_document(plan, compared) | extra)
        return
    for line in plan_text.lines(plan, compared, extra):
        console.out(line)


def _document(plan: "Plan", compared: "list[Suggestion]") -> dict[str, Any]:
    """The keys of the design; what is not known is null."""
    result, accelerator = plan.forecast, plan.accelerator
    return {
        "fits": None,
        "gpu_gib": round(accelerator.memory_gib, 3),
        **dict.fromkeys(("peak_gib", "phase", "parts", "overhead_gib")),
        "suggestions": [one.as_json() for one in plan.suggestions],
        **dict.fromkeys(("step_s", "total_h", "overhead", "phases")),
        "contrasts": [one.as_json() | {"name": one.change.reason} for one in compared],
        **dict.fromkeys(("step_s_range", "steps", "epoch_h", "total_h_range", "finish")),
        **dict.fromkeys(("checkpoint_gib", "disk_gib", "layers_kept", "logits_chunk")),
        "counted_tokens": None,
        "preset": plan.document.name,
        "model": plan.preset.model.id,
        "model_source": plan.facts.source if plan.facts else None,
        "device": accelerator.device.key if accelerator.device else None,
        "planned_for": accelerator.source,
        "world_size": plan.placement.world_size,
        "global_batch": plan.global_batch,
        "measured": _measured(result.workload.measured) if result else None,
        "data": plan.account,
        "findings": [finding.as_json() for finding in plan.findings],
    } | (_memory(result) | _time(result, plan.preset.train.epochs) if result else {})


def _memory(result: "Forecast") -> dict[str, Any]:
    parts, overhead, phases = (
        {name: round(size / 2**30, 4) for name, size in sizes.items()}
        for sizes in (result.memory.parts, result.memory.overhead, result.memory.phases)
    )
    return {
        "fits": result.fits,
        "peak_gib": round(sum(parts.values()), 4),
        "phase": result.memory.phase,
        "parts": parts,
        "overhead_gib": round(sum(overhead.values()), 4),
        "overhead": overhead,
        "phases": phases,
        "layers_kept": result.shape.layers_kept,
        "logits_chunk": result.shape.chunk,
        "counted_tokens": result.shape.length,
        "checkpoint_gib": round(result.checkpoint_gib, 3),
        "disk_gib": round(result.disk_gib, 3),
    }


def _time(result: "Forecast", epochs: float) -> dict[str, Any]:
    seconds, total = result.step_s, result.total_s
    return {
        "step_s": round(seconds.typical, 6) if seconds else None,
        "step_s_range": _range(seconds, 1.0),
        "steps": result.steps,
        "total_h": round(total.typical / 3600, 6) if total else None,
        "epoch_h": round(total.typical / 3600 / epochs, 6) if total else None,
        "total_h_range": _range(total, 3600.0),
        "finish": _finish(total),
    }


def _range(span: "Span | None", unit: float) -> list[float] | None:
    return [round(span.low / unit, 6), round(span.high / unit, 6)] if span else None


def _finish(total: "Span | None") -> str | None:
    if total is None:
        return None
    end = time.time() + min(total.typical, 1e9)  # no calendar has later days
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(end))


def _measured(measured: "Measured | None") -> dict[str, Any] | None:
    if measured is None:
        return None
    tflops, peak, step = measured.tflops, measured.peak_ratio, measured.step_ratio
    return {
        "runs": measured.runs,
        "tflops": round(tflops, 4) if tflops else None,
        "peak_measured_over_predicted": round(peak, 4) if peak else None,
        "step_measured_over_predicted": round(step, 4) if step else None,
    }
