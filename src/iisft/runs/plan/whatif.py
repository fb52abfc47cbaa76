"""What a plan can ask of the machine: trace the real step without data, run a few real steps, find
the fastest way.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft import process
from iisft.child.constants_iisft import PROFILE_FILE, PROFILE_KEY
from iisft.errors import CheckFailed, IisftError
from iisft.estimate.best import best as fastest
from iisft.estimate.forecast import Forecast
from iisft.estimate.memory import GIB
from iisft.estimate.suggestions import Change
from iisft.estimate.timing import computed_precision, micro_batch_flops
from iisft.llamafactory.interpreter import training_interpreter
from iisft.models.view.build import with_step
from iisft.runs.plan import create
from iisft.runs.plan.make import make_plan
from iisft.runs.plan.plan import Plan, Preflight
from iisft.runs.plan.request import Request
from iisft.runs.record import measurements
from iisft.runs.record.folder import RunFolder
from iisft.runs.supervise import control
from iisft.workspace import Workspace

Say = Callable[[str], None]

_TRACE_TIMEOUT_S = 1200.0
_PROBE_STEPS = (4, 60)  # the second where the first went by between two looks at the log
_PROBED_CANDIDATES = 2


def best(plan: Plan) -> list[dict[str, Any]]:
    """The five fastest ways to the same training that fit, the preset's own among them where it is
    one.
    """
    if plan.forecast is None:
        return []
    found = []
    for values, result in fastest(plan.preset, plan.forecast.workload):
        seconds = result.step_s
        found.append(
            {
                "change": Change(values, "", 0).text,
                "step_s": round(seconds.typical, 3) if seconds else None,
                "peak_gib": round(result.peak_gib, 2),
                "fits": result.fits,
            }
        )
    return found


def trace_case(plan: Plan) -> dict[str, Any] | None:
    """What child/trace_step.py is asked.

    None where a trace can't say anything about this preset.
    """
    result, facts = plan.forecast, plan.facts
    sharding = plan.preset.sharding
    if (
        result is None
        or facts is None
        or result.shape.way == "nf4"
        or sharding not in ("none", "fsdp")
    ):
        return None
    shape, target = result.shape, plan.preset.lora.target
    return {
        "config": facts.config,
        "weights": shape.weights,
        "arithmetic": "float32" if shape.way == "exact" else "native",
        "autocast": shape.autocast,
        "attention": shape.attention,
        "batch": shape.batch,
        "length": shape.length,
        "checkpointing": shape.checkpointing,
        "layers_kept": shape.layers_kept,
        "logits": "all" if shape.positions is None else "trained",
        "positions": shape.positions,
        "chunk": shape.chunk,
        "rank": shape.rank,
        "dropout": shape.dropout,
        "target": target if isinstance(target, str) else ",".join(target),
        "optimizer": plan.preset.train.optimizer,
        "sharding": sharding,
        "ranks": result.layout.ranks,
    }


def trace(plan: Plan, say: Say) -> dict[str, Any]:
    """Trace the step of a plan in the training interpreter; what goes wrong becomes `error`."""
    case = trace_case(plan)
    if case is None:
        return {"error": "a trace covers neither nf4 weights nor ZeRO, and needs config.json"}
    say(
        "tracing the real step without data: importing LLaMA-Factory takes 10 to 40 s, the step 5 "
        "to 30 s"
    )
    script = Path(__file__).parents[2] / "child" / "trace_step.py"
    try:
        done = process.run(
            [str(training_interpreter()), str(script), json.dumps([case])],
            timeout_s=_TRACE_TIMEOUT_S,
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
    except (OSError, TimeoutError, ValueError, IndexError) as error:
        return {"error": f"the training environment can't trace: {error}"}
    if "error" in answer:
        return answer
    return _compared(plan, answer)


def _compared(plan: Plan, answer: dict[str, Any]) -> dict[str, Any]:
    """The trace is of one process: DDP's buckets are added to it as the plan adds them."""
    result = plan.forecast
    assert result is not None
    buckets = result.memory.parts.get("ddp buckets", 0)
    peak = answer["peak"] + buckets
    return {
        "peak_gib": round(peak / GIB, 4),
        "phase": answer["phase"],
        "phases": {
            name: round((size + buckets) / GIB, 4) for name, size in answer["phases"].items()
        },
        "parts": {name: round(size / GIB, 4) for name, size in answer["parts"].items()}
        | ({"ddp buckets": round(buckets / GIB, 4)} if buckets else {}),
        "predicted_over_traced": round(result.memory.step_peak / peak, 4),
        "seconds": answer["seconds"],
    }


def probe(
    request: Request,
    workspace: Workspace,
    say: Say,
    *,
    changes: tuple[str, ...] = (),
    profile: Path | None = None,
) -> dict[str, Any]:
    """A few steps of the real trainer with exactly this preset: no checkpoint, and the run is
    deleted afterwards. `profile`: where torch's profiler's record of a step goes.

    What it measured stays in runs/measured.jsonl for the next plan. Errors become `error`.
    """
    request = replace(request, overrides=(*request.overrides, *changes))
    judged: dict[str, Any] = {}
    for steps in _PROBE_STEPS:
        judged = _run_probe(request, workspace, say, steps, profile)
        if "error" in judged or "step_s" in judged:
            return judged
    return judged | {"error": "the steps are too short to be timed; a longer run will tell"}


def _run_probe(
    request: Request, workspace: Workspace, say: Say, steps: int, profile: Path | None
) -> dict[str, Any]:
    only = ("data.eval=null", "save.eval_every_steps=null", f"train.max_steps={steps}")
    name = f"probe-{time.strftime('%Y%m%d-%H%M%S')}-{steps}"
    try:
        plan = make_plan(
            replace(request, name=name, overrides=(*request.overrides, *only)),
            workspace,
            Preflight.here(workspace),
        )
        plan.require_sound()
        plan = replace(plan, train_yaml=plan.train_yaml | {"save_strategy": "no"})
        if profile is not None and plan.view is not None:
            plan = replace(plan, view=with_step(plan.view, {PROFILE_KEY: True}))
        say(f"running {steps} real steps as {name}{_about(plan, steps)}; Ctrl-C ends it")
        create.create(plan)
    except IisftError as error:
        return _refusal(error)
    try:
        create.start(plan)
        ended = control.wait(plan.folder)
        if ended.state != "finished":
            return {"error": f"the probe {ended.state}: {ended.reason}"}
        written = {} if profile is None else _written(plan.folder.output / PROFILE_FILE, profile)
        return {
            "steps": steps,
            **written,
            **_judged(measurements.measure(plan.folder.read_events()), plan.forecast),
        }
    except IisftError as error:
        return _refusal(error)
    finally:
        _remove(plan.folder)


def _written(made: Path, wanted: Path) -> dict[str, str]:
    """The profile where it was asked for; what goes wrong with it loses no measurement."""
    try:
        shutil.copyfile(made, wanted)
    except OSError as error:
        return {"profile_error": f"{wanted} can't be written: {error.strerror}"}
    return {"profile": str(wanted)}


def _about(plan: Plan, steps: int) -> str:
    result = plan.forecast
    if result is None or result.step_s is None:
        return ""
    return f", about {max(1, round(steps * result.step_s.typical / 60))} min after loading"


def _refusal(error: IisftError) -> dict[str, Any]:
    """All of it, where several findings speak against the run."""
    several = error.errors if isinstance(error, CheckFailed) else ()
    return {
        "error": "; ".join(finding.text for finding in several) or error.message,
        "fix": error.fix,
    }


def _remove(folder: RunFolder) -> None:
    with contextlib.suppress(IisftError):
        control.request_stop(folder, now=True)
        control.wait(folder)
    with contextlib.suppress(IisftError, OSError):
        control.remove(folder)


def _judged(found: dict[str, Any], result: Forecast | None) -> dict[str, Any]:
    """The measurement beside the prediction."""
    judged: dict[str, Any] = dict(found)
    if result is None:
        return judged
    workload, device = result.workload, result.workload.accelerator.device
    if "tokens_per_s" in found:
        per_token = micro_batch_flops(workload.model, result.shape) / result.shape.rows
        judged["tflops"] = round(found["tokens_per_s"] * per_token / workload.ranks / 1e12, 4)
        if device is not None:
            precision = computed_precision(result.shape)
            judged["mfu"] = round(
                judged["tflops"] / (device.fp32 if precision == "fp32" else device.half), 4
            )
    if "step_s" in found and result.step_s is not None:
        judged["step_predicted_over_measured"] = round(result.step_s.typical / found["step_s"], 4)
    if "peak_gib" in found:
        judged["peak_predicted_over_measured"] = round(result.peak_gib / found["peak_gib"], 4)
    return judged


def probe_best(
    found: list[dict[str, Any]], request: Request, workspace: Workspace, say: Say
) -> list[dict[str, Any]]:
    """Measure the first few of `best`."""
    measured_ones = []
    for one in found[:_PROBED_CANDIDATES]:
        changes = tuple(word for word in str(one["change"]).split() if word != "--set")
        measured_ones.append({**one, "probe": probe(request, workspace, say, changes=changes)})
    return measured_ones + found[_PROBED_CANDIDATES:]
