"""From a request to a whole plan: everything that a run is and needs, and every finding that speaks against it.

Planning writes nothing. `--dry-run` prints the plan, `iisft.runs.launch` executes the same object.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft.errors import CheckFailed, ExitCode, Finding, InputError, UsageError
from iisft.hardware import examination
from iisft.hardware.gpus import Gpu
from iisft.llamafactory import arguments as llamafactory_arguments
from iisft.llamafactory import tokenized
from iisft.llamafactory.environment import Placement, compile_environment
from iisft.llamafactory.interpreter import Interpreter
from iisft.models.checkpoint import Checkpoint
from iisft.models.view import ViewPlan
from iisft.models.view_rules import DTYPES
from iisft.presets import checking, documents
from iisft.presets.checking import LoadedPreset
from iisft.presets.documents import Document
from iisft.presets.schema import Preset
from iisft.runs import checks, room, tokencache
from iisft.runs.folder import RunFolder
from iisft.runs.proof import Expected
from iisft.runs.rundata import Progress, RunDataset
from iisft.workspace import Workspace

_NAME = re.compile(r"\w[\w.-]{0,99}")
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


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the command line asked for."""

    preset: str
    overrides: tuple[str, ...] = ()
    model: str | None = None
    data: str | None = None
    name: str | None = None
    gpus: int | None = None
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None


@dataclass(frozen=True)
class Plan:
    """A run, whole. What could not be found out for lack of model or data is None, with a finding that says so."""

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
            rows=None if any(self.preset.llamafactory.get(name) for name in _ROW_CHANGING) else rows,
        )


def make_plan(
    request: TrainRequest,
    workspace: Workspace,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Resolve a request; what is wrong with model, data, machine or packages becomes findings.

    `progress` is called while rows are counted that were never counted before; `say` is told before the first look at
    new packages, which takes some seconds.

    Raises:
        IisftError: the request itself or its preset can't be read, so that there is nothing to plan.
    """
    _check_request(request)
    document = documents.read_document(request.preset, workspace)
    _apply(request, document)
    notes: list[Finding] = []
    machine = examination.this_machine(workspace.root)
    gpus = machine.visible
    loaded, placement = _place(request, document, gpus, notes)
    preset = loaded.preset
    model_findings: list[Finding] = []
    model_folder = workspace.model_folder(preset.model.id)
    checkpoint, view = checks.model_for(model_findings, preset, model_folder)
    interpreter, doctored = checks.doctor_findings(loaded, placement, machine, checkpoint, say)
    findings = [*notes, *doctored]
    findings += checks.extra_argument_findings(loaded, interpreter)
    findings += model_findings
    counting_model = model_folder if checkpoint is not None else None
    datasets = checks.datasets_for(findings, preset, workspace, counting_model, progress)
    folder = RunFolder(workspace.runs / (request.name or _fresh_name(document.name, workspace)), request.node_rank)
    findings += room.findings(preset, checkpoint, workspace.runs)
    if folder.path.exists() and not request.node_rank:
        findings.append(checks.taken(folder))
    train_yaml = llamafactory_arguments.compile_arguments(
        preset,
        model=folder.model,
        dataset_dir=folder.dataset,
        output_dir=folder.output,
        on_cpu=placement.on_cpu,
    )
    tokens = tokencache.find(preset, datasets, model_folder, interpreter, workspace) if checkpoint else None
    if tokens is not None:
        train_yaml[tokenized.ARGUMENT] = str(folder.tokenized)
        text = f"the rows are taken as LLaMA-Factory tokenised them while staging ({tokens})"
        findings.append(Finding("tokens-cached", text, severity="info"))
    env = compile_environment(preset, interpreter, placement, folder.modules_cache)
    return Plan(
        preset, document, placement, interpreter, folder, model_folder, train_yaml, env, checkpoint, view,
        tuple(datasets), tokens, tuple(gpus), tuple(findings),
    )  # fmt: skip


def _check_request(request: TrainRequest) -> None:
    if request.name is not None and not _NAME.fullmatch(request.name):
        raise UsageError("run-name", f"a run's name has letters, digits, '.', '_' and '-', not {request.name!r}")
    if request.gpus is not None and request.gpus < 1:
        raise UsageError("gpus", f"--gpus must be at least 1, not {request.gpus}")
    if request.nodes < 1 or not 0 <= request.node_rank < request.nodes:
        raise UsageError("nodes", f"--node-rank {request.node_rank} is not one of {request.nodes} nodes (from 0)")
    if request.nodes > 1:
        if request.rendezvous is None or not re.fullmatch(r"\S+:\d+", request.rendezvous):
            raise UsageError("rendezvous", "several nodes need --rendezvous HOST:PORT of node 0")
        if request.name is None:
            raise UsageError("nodes-name", "several nodes need the same --name on each, it is the folder they share")


def _apply(request: TrainRequest, document: Document) -> None:
    """Put the command line's values into the document."""
    for text in request.overrides:
        document.override(*documents.parse_override(text), documents.describe_override(text))
    if request.model is not None:
        document.override(("model", "id"), request.model, "--model")
    if request.data is not None:
        document.override(("data", "name"), request.data, "--data")


def _place(
    request: TrainRequest, document: Document, gpus: list[Gpu], notes: list[Finding]
) -> tuple[LoadedPreset, Placement]:
    """Where the ranks run; the accumulation is rescaled so that the global batch stays."""
    asked = document.values.get("hardware")
    asked = asked if isinstance(asked, dict) else {}
    preset_ranks = asked.get("gpus") if isinstance(asked.get("gpus"), int) else 1
    preset_ranks = max(preset_ranks or 0, 1)
    ranks = request.gpus or preset_ranks
    on_cpu = asked.get("vendor") == "cpu" or (request.gpus is not None and not gpus)
    placement = Placement(ranks, request.nodes, request.node_rank, request.rendezvous, on_cpu)
    literal = [text for text in request.overrides if re.match(r"\s*train\.(accumulation|batch_size)\s*=", text)]
    train = document.values.get("train")
    accumulation = train.get("accumulation") if isinstance(train, dict) else None
    if placement.world_size != preset_ranks and isinstance(accumulation, int):
        if literal:
            notes.append(Finding("global-batch-literal", f"{' '.join(literal)} is taken as it is", severity="info"))
        else:
            scaled = _rescale(accumulation, preset_ranks, placement.world_size)
            document.override(("train", "accumulation"), scaled, document.source(("train", "accumulation")).text)
            notes.append(
                Finding(
                    "accumulation-rescaled",
                    f"{placement.world_size} ranks instead of {preset_ranks}: accumulation {accumulation} -> {scaled}, "
                    "the global batch stays",
                    severity="info",
                )
            )
    return checking.check(document, nodes=request.nodes, ranks=ranks), placement


def _rescale(accumulation: int, before: int, after: int) -> int:
    total = accumulation * before
    if total % after == 0:
        return total // after
    counts = [count for count in range(1, total + 1) if total % count == 0]
    near = sorted(counts, key=lambda count: (abs(count - after), count))[:2]
    raise InputError(
        "accumulation-indivisible",
        f"{after} ranks can't keep the global batch: accumulation x ranks = {total} is not divisible by {after}",
        where="--gpus/--nodes",
        fix=f"take {' or '.join(map(str, sorted(near)))} ranks, or say the batch yourself: --set train.accumulation=N",
    )


def _fresh_name(preset_name: str, workspace: Workspace) -> str:
    base = f"{preset_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, number = base, 2
    while (workspace.runs / name).exists():
        name, number = f"{base}-{number}", number + 1
    return name
