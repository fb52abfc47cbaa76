"""From a request to a plan: everything that a run is and needs, and every finding that speaks
against it.

Planning writes nothing but what can be made again, into the cache folder: a mix of datasets, counts
of rows. `plan`, `env-check --preset` and `train --dry-run` show the plan, and
`iisft.runs.plan.create` executes the same object.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from iisft import notices
from iisft.errors import Finding
from iisft.gpu_table import Device
from iisft.llamafactory import tokenized
from iisft.llamafactory.arguments import compile_arguments
from iisft.llamafactory.environment import Placement, env_findings, tracker_findings
from iisft.llamafactory.extra import reference_findings
from iisft.llamafactory.interpreter import Interpreter, training_interpreter
from iisft.machine.doctor.engine import training_gpus
from iisft.machine.doctor.inspect import visible_gpus
from iisft.machine.facts.gpus import Gpu
from iisft.models.view.build import with_step
from iisft.models.view.built import Built
from iisft.presets.checking import LoadedPreset
from iisft.presets.schema import Preset
from iisft.runs.plan import building, places, token_cache
from iisft.runs.plan import forecast as forecasts
from iisft.runs.plan import preflight as checks
from iisft.runs.plan import start as start_adapter
from iisft.runs.plan.plan import Plan, Preflight, _rows_are_known
from iisft.runs.plan.request import Request, check_nodes, resolve
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace

_LONGEST_STEM = 40  # characters of the preset's name in a run's


def make_plan(
    request: Request,
    workspace: Workspace,
    preflight: Preflight | None = None,
    *,
    gpus: Sequence[Gpu] | None = None,
    device: Device | float | None = None,
) -> Plan:
    """Resolve a request and forecast it; what is wrong with model, data, machine or packages
    becomes findings.

    Without a preflight it may be planned for GPUs that are not here: for those of another machine
    (`gpus`), or for one card (`device`).

    Raises:
        IisftError: the request itself or its preset can't be read, so that there is nothing to
        plan.
    """
    if preflight is not None:
        check_nodes(request)
    # before torch is asked: a wrong preset waits for no import
    loaded, placement, notes = resolve(request, workspace)
    if preflight is not None:
        preflight = preflight.asked()  # what torch sees decides about GPUs
        gpus = preflight.machine.visible_under(loaded.preset.env)
        if request.gpus is not None and not preflight.machine.visible:  # CPU ranks are meant
            placement = replace(placement, on_cpu=True)
    gpus = visible_gpus() if gpus is None else gpus
    plan, found = _planned(request, workspace, loaded, placement, gpus, device, preflight)
    of_step = forecasts.step_findings(plan.preset, plan.forecast)
    if preflight is None:
        warned = [
            replace(finding, severity="warn") if finding.severity == "error" else finding
            for finding in (*found.data, *found.start, *_start_findings(plan))
        ]
        findings = (*loaded.warnings, *notes, *found.forecast, *of_step, *warned)
        return replace(plan, findings=findings)
    notes = [*notes, *of_step]
    return _checked(plan, preflight, workspace, notes, found)


class _Found(NamedTuple):
    """What speaks against the model, its data, what is foreseen and the adapter to start from."""

    model: Sequence[Finding]
    data: list[Finding]
    forecast: list[Finding]
    start: list[Finding]


def _planned(
    request: Request,
    workspace: Workspace,
    loaded: LoadedPreset,
    placement: Placement,
    gpus: Sequence[Gpu],
    device: Device | float | None,
    preflight: Preflight | None,
) -> tuple[Plan, _Found]:
    """The plan, not judged yet."""
    start, of_start = start_adapter.find(loaded.preset, workspace)
    loaded = replace(loaded, preset=start_adapter.pinned(loaded.preset, start))
    preset, model_folder = loaded.preset, workspace.model_folder(loaded.preset.model.id)
    model = checks.model_for(preset, model_folder) if preflight else checks.UNCHECKED
    counting = model_folder if model.checkpoint is not None else None
    datasets, of_data = checks.datasets_for(
        preset, workspace, counting, preflight.progress if preflight else None
    )
    accelerator = forecasts.accelerator_for(
        preset,
        training_gpus(gpus, preset.hardware.vendor),
        placement.ranks,
        device,
        free=preflight is not None and preflight.queued,
    )
    facts, forecast, of_forecast = forecasts.forecast_run(
        preset, model_folder, accelerator, placement.world_size, datasets, workspace.runs,
        only_warn=placement.on_cpu,
    )  # fmt: skip
    name = request.name or _fresh_name(loaded.document.name, workspace)
    folder = RunFolder(workspace.runs / name, request.node_rank)
    plan = Plan(
        loaded=loaded,
        placement=placement,
        folder=folder,
        model_folder=model_folder,
        gpus=tuple(gpus),
        accelerator=accelerator,
        facts=facts,
        datasets=tuple(datasets),
        forecast=forecast,
        interpreter=Interpreter(training_interpreter(), "", {}, None),
        train_yaml=_train_yaml(preset, folder, placement),
        checkpoint=model.checkpoint,
        view=model.view and with_step(model.view, forecasts.step_keys(preset, forecast)),
        start=start,
    )
    return plan, _Found(model.findings, of_data, of_forecast, of_start)


def _train_yaml(preset: Preset, folder: RunFolder, placement: Placement) -> dict[str, Any]:
    return compile_arguments(
        preset,
        model=folder.model,
        dataset_dir=folder.dataset,
        output_dir=folder.output,
        on_cpu=placement.on_cpu,
    )


def _checked(
    plan: Plan,
    preflight: Preflight,
    workspace: Workspace,
    notes: list[Finding],
    found: _Found,
) -> Plan:
    """With everything that speaks against it here, and the rows' tokens."""
    preset, placement, runs = plan.preset, plan.placement, workspace.runs
    interpreter, doctored = checks.doctor_findings(
        plan.loaded, placement, preflight.machine, plan.checkpoint, plan.fits
    )
    findings = [*notes, *preflight.wrong, *doctored, *env_findings(plan.loaded)]
    findings += notices.check(preset.notify, os.environ)
    findings += tracker_findings(preset, os.environ)
    findings += checks.extra_argument_findings(plan.loaded, interpreter, on_cpu=placement.on_cpu)
    if _rows_are_known(preset) and not preset.llamafactory.get("dataloader_drop_last"):
        findings += checks.repeated_rows(preset, placement.world_size, plan.datasets)
    findings += found.model
    model: Built | None = None
    if not any(finding.severity == "error" for finding in found.model):
        model, objections = building.build(
            preset,
            plan.checkpoint,
            plan.view,
            plan.train_yaml,
            placement,
            plan.datasets,
            interpreter,
            findings,
            preflight.say,
        )
        findings += objections
    if plan.forecast is not None:
        findings += forecasts.fit_findings(preset, plan.forecast, only_warn=placement.on_cpu)
    findings += found.data
    plan = replace(plan, interpreter=interpreter, built=model)
    findings += (*found.start, *_start_findings(plan))
    findings += places.disk_findings(preset, plan.checkpoint, plan.forecast, runs)
    if plan.folder.path.exists() and not placement.node_rank:
        findings.append(checks.taken(plan.folder))
    findings += reference_findings(plan.train_yaml)
    return _with_tokens(replace(plan, findings=tuple(findings)), workspace)


def _start_findings(plan: Plan) -> Iterator[Finding]:
    if plan.start is not None:
        adapted = plan.built.adapted if plan.built else None
        yield from start_adapter.findings(plan.start, plan.preset, plan.checkpoint, adapted)


def _with_tokens(plan: Plan, workspace: Workspace) -> Plan:
    """With the rows' tokens where they were made while staging."""
    if plan.checkpoint is None:
        return plan
    datasets = list(plan.datasets)
    tokens = token_cache.find(plan.preset, datasets, plan.model_folder, plan.interpreter, workspace)
    if tokens is None:
        slow = checks.tokenising_findings(
            plan.preset, plan.train_yaml, plan.placement.world_size, datasets
        )
        return replace(plan, findings=(*plan.findings, *slow))
    text = f"the rows are taken as LLaMA-Factory tokenised them while staging ({tokens})"
    return replace(
        plan,
        tokens=tokens,
        train_yaml=plan.train_yaml | {tokenized.ARGUMENT: str(plan.folder.tokenized)},
        findings=(*plan.findings, Finding("tokens-cached", text, severity="info")),
    )


def _fresh_name(preset_name: str, workspace: Workspace) -> str:
    """Of the letters that --name takes, so that a shell takes it as it stands."""
    stem = re.sub(r"[^\w.-]+", "-", preset_name).strip(".-")[:_LONGEST_STEM]
    base = f"{stem or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, number = base, 2
    while (workspace.runs / name).exists():
        name, number = f"{base}-{number}", number + 1
    return name
