"""From a request to a whole plan: everything that a run is and needs, and every finding that speaks
against it.

Planning writes nothing. `--dry-run` prints the plan, `iisft.runs.plan.create` executes the same
object.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iisft.errors import CheckFailed, ExitCode, Finding
from iisft.llamafactory import arguments as llamafactory_arguments
from iisft.llamafactory import tokenized
from iisft.llamafactory.environment import Placement, compile_environment, env_findings
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.doctor import inspect
from iisft.machine.facts.gpus import Gpu
from iisft.models.folder.checkpoint import Checkpoint
from iisft.models.view.build import ViewPlan
from iisft.models.view.support import DTYPES
from iisft.presets.documents import Document
from iisft.presets.schema import Preset
from iisft.runs.plan import disk, preflight, token_cache
from iisft.runs.plan import fit as outlooks
from iisft.runs.plan.datasets import Progress, RunDataset
from iisft.runs.plan.fit import Outlook
from iisft.runs.plan.request import TrainRequest, check_nodes, resolve
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
class Plan:
    """A run, whole.

    What could not be found out for lack of model or data is None, with a finding that says so.
    """

    preset: Preset
    document: Document
    placement: Placement
    interpreter: Interpreter
    folder: RunFolder
    model_folder: Path
    train_yaml: dict[str, Any]
    env: dict[str, str]
    checkpoint: Checkpoint | None
    view: ViewPlan | None
    datasets: tuple[RunDataset, ...]
    tokens: Path | None
    outlook: Outlook
    gpus: tuple[Gpu, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

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
            rows=None
            if any(self.preset.llamafactory.get(name) for name in _ROW_CHANGING)
            else rows,
        )


def make_plan(
    request: TrainRequest,
    workspace: Workspace,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Resolve a request; what is wrong with model, data, machine or packages becomes findings.

    `progress` is called while rows are counted that were never counted before; `say` is told before
    the first look at new packages, which takes some seconds.

    Raises:
        IisftError: the request itself or its preset can't be read, so that there is nothing to
        plan.
    """
    check_nodes(request)
    machine = inspect.this_machine(workspace.root)
    gpus = machine.visible
    resolved = resolve(request, workspace, gpus, judge=False)
    document, preset, placement = resolved.document, resolved.preset, resolved.placement
    model_findings: list[Finding] = []
    data_findings: list[Finding] = []
    model_folder = workspace.model_folder(preset.model.id)
    checkpoint, view = preflight.model_for(model_findings, preset, model_folder)
    counting_model = model_folder if checkpoint is not None else None
    datasets = preflight.datasets_for(data_findings, preset, workspace, counting_model, progress)
    place = outlooks.place_for(preset, gpus, placement.ranks)
    outlook = outlooks.look(
        preset, model_folder, place, placement.world_size, datasets, workspace.runs
    )
    interpreter, doctored = preflight.doctor_findings(
        resolved.loaded, placement, machine, checkpoint, outlook.fits, say
    )
    findings = [*resolved.notes, *doctored, *env_findings(resolved.loaded)]
    findings += preflight.extra_argument_findings(resolved.loaded, interpreter)
    findings += model_findings
    findings += outlooks.fit_findings(outlook, preset, only_warn=placement.on_cpu)
    findings += data_findings
    folder = RunFolder(
        workspace.runs / (request.name or _fresh_name(document.name, workspace)), request.node_rank
    )
    findings += disk.findings(preset, checkpoint, workspace.runs)
    if folder.path.exists() and not request.node_rank:
        findings.append(preflight.taken(folder))
    train_yaml = llamafactory_arguments.compile_arguments(
        preset,
        model=folder.model,
        dataset_dir=folder.dataset,
        output_dir=folder.output,
        on_cpu=placement.on_cpu,
    )
    built = None
    if checkpoint and view and not any(one.severity == "error" for one in model_findings):
        built = preflight.built_for(
            findings, preset, checkpoint, view, train_yaml, interpreter, placement, datasets, say
        )
    tokens = (
        token_cache.find(preset, datasets, model_folder, interpreter, workspace)
        if checkpoint
        else None
    )
    if tokens is not None:
        train_yaml[tokenized.ARGUMENT] = str(folder.tokenized)
        text = f"the rows are taken as LLaMA-Factory tokenised them while staging ({tokens})"
        findings.append(Finding("tokens-cached", text, severity="info"))
    env = compile_environment(preset, interpreter, placement, folder.modules_cache)
    return Plan(
        preset, document, placement, interpreter, folder, model_folder, train_yaml, env, checkpoint,
        view,
        tuple(datasets), tokens, outlook, tuple(gpus), tuple(findings),
    )  # fmt: skip


def _fresh_name(preset_name: str, workspace: Workspace) -> str:
    """Of the letters that --name takes, so that a shell takes it as it stands."""
    stem = re.sub(r"[^\w.-]+", "-", preset_name).strip(".-")[:_LONGEST_STEM]
    base = f"{stem or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, number = base, 2
    while (workspace.runs / name).exists():
        name, number = f"{base}-{number}", number + 1
    return name
