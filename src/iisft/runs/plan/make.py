"""From a request to a plan: everything that a run is and needs, and every finding that speaks
against it.

Planning writes nothing. `plan`, `env-check --preset` and `train --dry-run` show the plan, and
`iisft.runs.plan.create` executes the same object.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from iisft.errors import CheckFailed, ExitCode, Finding
from iisft.estimate.forecast import Accelerator, Forecast
from iisft.estimate.suggestions import Suggestion
from iisft.gpu_table import Device
from iisft.llamafactory import tokenized
from iisft.llamafactory.arguments import compile_arguments, reference_findings
from iisft.llamafactory.environment import Placement, compile_environment, env_findings
from iisft.llamafactory.interpreter import Interpreter, training_interpreter
from iisft.machine.doctor import inspect
from iisft.machine.doctor.engine import training_gpus
from iisft.machine.facts.gpus import Gpu, visible_gpus
from iisft.machine.facts.machine import Machine
from iisft.models.folder.checkpoint import Checkpoint
from iisft.models.folder.known import ModelFacts
from iisft.models.view.build import ViewPlan, with_step
from iisft.models.view.built import Built
from iisft.models.view.support import DTYPES
from iisft.presets.checking import LoadedPreset
from iisft.presets.documents import Document
from iisft.presets.schema import Preset
from iisft.runs.plan import building, token_cache
from iisft.runs.plan import forecast as forecasts
from iisft.runs.plan import preflight as checks
from iisft.runs.plan.datasets import Progress, RunDataset
from iisft.runs.plan.request import Request, check_nodes, resolve
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.proof import Expected
from iisft.workspace import Workspace

_LONGEST_STEM = 40  # characters of the preset's name in a run's
_ATTENTION_NAMES = {"eager": "eager", "sdpa": "sdpa", "flash2": "flash_attention_2"}
# Arguments by which the trainer itself decides how many rows there are.
_ROW_CHANGING = (
    "packing",
    "neat_packing",
    "streaming",
    "max_samples",
    "val_size",
    "mix_strategy",
    "interleave_probs",
)


@dataclass(frozen=True)
class Preflight:
    """What a plan is checked against before it runs: this machine, its packages, the model's files,
    and every row with the model's tokenizer.

    `progress` is called while rows are counted that were never counted before; `say` is told before
    the first look at new packages, which takes some seconds.
    """

    machine: Machine
    progress: Progress | None = None
    say: Callable[[str], None] = lambda _: None

    @classmethod
    def here(
        cls,
        workspace: Workspace,
        progress: Progress | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> "Preflight":
        return cls(inspect.this_machine(workspace.root), progress, say)


@dataclass(frozen=True)
class Plan:
    """A run, whole: what it is, what it needs, and every finding that speaks against it.

    What could not be found out for lack of model or data is None, with a finding that says so.
    `checkpoint`, `view`, `built` and `tokens` are looked for by a preflight alone.
    """

    loaded: LoadedPreset
    placement: Placement
    folder: RunFolder
    model_folder: Path
    gpus: tuple[Gpu, ...]
    accelerator: Accelerator
    facts: ModelFacts | None
    datasets: tuple[RunDataset, ...]
    forecast: Forecast | None
    interpreter: Interpreter
    train_yaml: dict[str, Any]
    checkpoint: Checkpoint | None = None
    view: ViewPlan | None = None
    built: Built | None = None
    tokens: Path | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def preset(self) -> Preset:
        return self.loaded.preset

    @property
    def document(self) -> Document:
        return self.loaded.document

    @property
    def fits(self) -> str | None:
        """yes, tight, no; None when it is not known."""
        return self.forecast.fits if self.forecast else None

    @cached_property
    def suggestions(self) -> list[Suggestion]:
        """Changes after which a run that does not fit would."""
        return forecasts.suggestions(self.preset, self.forecast) if self.forecast else []

    @property
    def env(self) -> dict[str, str]:
        return compile_environment(
            self.preset, self.interpreter, self.placement, self.folder.modules_cache
        )

    @property
    def argv(self) -> list[str]:
        """The configuration by its bare name: LLaMA-Factory splits its command line at spaces."""
        return [str(self.interpreter.cli), "train", self.folder.train_yaml.name]

    @property
    def global_batch(self) -> int:
        return self.preset.global_batch(self.placement.world_size)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def exit_code(self) -> ExitCode:
        """What `train` would exit with before it starts anything."""
        return CheckFailed(self.findings).exit_code if self.errors else ExitCode.OK

    def for_elsewhere(self) -> "Plan":
        """The same plan for another machine: what only this one lacks is a warning."""
        return replace(
            self,
            findings=tuple(
                replace(finding, severity="warn")
                if finding.severity == "error" and finding.exit_code is ExitCode.ENVIRONMENT
                else finding
                for finding in self.findings
            ),
        )

    def require_sound(self) -> None:
        """Raises CheckFailed with all findings when one of them is an error."""
        if self.errors:
            raise CheckFailed(self.findings)

    @property
    def expected(self) -> Expected:
        """What the trainer must report. Needs the view."""
        assert self.view is not None
        precision = self.preset.precision
        rows = sum(dataset.rows for dataset in self.datasets[:1])
        return Expected(
            weights_dtype=self.view.expected_weights_dtype,
            compute_dtype=self.view.expected_compute_dtype,
            autocast=DTYPES[precision] if precision in ("fp16", "bf16") else None,
            attention=_ATTENTION_NAMES[self.preset.attention],
            arithmetic=self.view.arithmetic,
            world_size=self.placement.world_size,
            global_batch=self.global_batch,
            rows=rows if _rows_are_known(self.preset) else None,
            layers_kept=self.forecast.shape.layers_kept if self.forecast else 0,
            adapted=self.built.adapted if self.built else None,
        )


def make_plan(
    request: Request,
    workspace: Workspace,
    preflight: Preflight | None = None,
    *,
    gpus: Sequence[Gpu] | None = None,
    device: Device | None = None,
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
        gpus = preflight.machine.visible
    elif gpus is None:
        gpus = visible_gpus()
    loaded, placement, notes = resolve(
        request, workspace, cpu_ranks=preflight is not None and not gpus
    )
    preset, model_folder = loaded.preset, workspace.model_folder(loaded.preset.model.id)
    model = checks.model_for(preset, model_folder) if preflight else checks.UNCHECKED
    counting = model_folder if model.checkpoint is not None else None
    datasets, of_data = checks.datasets_for(
        preset, workspace, counting, preflight.progress if preflight else None
    )
    accelerator = forecasts.accelerator_for(
        preset, training_gpus(gpus, preset.hardware.vendor), placement.ranks, device
    )
    facts, forecast, of_forecast = forecasts.forecast_run(
        preset, model_folder, accelerator, placement.world_size, datasets, workspace.runs
    )
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
    )
    if preflight is None:
        warned = [replace(finding, severity="warn") for finding in of_data]
        of_step = forecasts.step_findings(preset, forecast)
        return replace(plan, findings=(*loaded.warnings, *notes, *of_forecast, *of_step, *warned))
    notes = [*notes, *forecasts.step_findings(preset, forecast)]
    return _checked(plan, preflight, workspace, notes, model.findings, of_data)


def _rows_are_known(preset: Preset) -> bool:
    return not any(preset.llamafactory.get(name) for name in _ROW_CHANGING)


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
    of_model: Sequence[Finding],
    of_data: list[Finding],
) -> Plan:
    """With everything that speaks against it here, and the rows' tokens where they were made while
    staging.
    """
    preset, placement, runs = plan.preset, plan.placement, workspace.runs
    interpreter, doctored = checks.doctor_findings(
        plan.loaded, placement, preflight.machine, plan.checkpoint, plan.fits, preflight.say
    )
    findings = [*notes, *doctored, *env_findings(plan.loaded)]
    findings += checks.extra_argument_findings(plan.loaded, interpreter, on_cpu=placement.on_cpu)
    if _rows_are_known(preset) and not preset.llamafactory.get("dataloader_drop_last"):
        findings += checks.repeated_rows(preset, placement.world_size, plan.datasets)
    findings += of_model
    model: Built | None = None
    if not any(finding.severity == "error" for finding in of_model):
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
    findings += of_data
    findings += checks.disk_findings(preset, plan.checkpoint, plan.forecast, runs)
    if plan.folder.path.exists() and not placement.node_rank:
        findings.append(checks.taken(plan.folder))
    findings += reference_findings(plan.train_yaml)
    tokens, train_yaml = None, plan.train_yaml
    if plan.checkpoint is not None:
        tokens = token_cache.find(
            preset, list(plan.datasets), plan.model_folder, interpreter, workspace
        )
    if tokens is not None:
        train_yaml = train_yaml | {tokenized.ARGUMENT: str(plan.folder.tokenized)}
        text = f"the rows are taken as LLaMA-Factory tokenised them while staging ({tokens})"
        findings.append(Finding("tokens-cached", text, severity="info"))
    return replace(
        plan,
        interpreter=interpreter,
        built=model,
        tokens=tokens,
        train_yaml=train_yaml,
        findings=tuple(findings),
    )


def _fresh_name(preset_name: str, workspace: Workspace) -> str:
    """Of the letters that --name takes, so that a shell takes it as it stands."""
    stem = re.sub(r"[^\w.-]+", "-", preset_name).strip(".-")[:_LONGEST_STEM]
    base = f"{stem or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, number = base, 2
    while (workspace.runs / name).exists():
        name, number = f"{base}-{number}", number + 1
    return name
