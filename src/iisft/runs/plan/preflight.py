"""What speaks against a run before it starts: packages, GPUs, model, data, name.

Each check adds its findings.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iisft.data.stage import staging
from iisft.errors import ExitCode, Finding, IisftError, RunStateError
from iisft.estimate.memory import GIB
from iisft.llamafactory import fitting_template
from iisft.llamafactory import interpreter as llamafactory_interpreter
from iisft.llamafactory.environment import Placement
from iisft.llamafactory.extra import check_extra
from iisft.llamafactory.interpreter import Interpreter
from iisft.llamafactory.torch_sets import install
from iisft.machine.doctor import engine
from iisft.machine.facts.machine import Machine
from iisft.models.folder.checkpoint import Checkpoint, checkpoint_findings, inspect_checkpoint
from iisft.models.view.build import ViewPlan, plan_view
from iisft.models.view.built_findings import corrected_target
from iisft.presets.checking import LoadedPreset
from iisft.presets.schema import Preset
from iisft.presets.sections import joined
from iisft.runs.plan import datasets, mixes
from iisft.runs.plan.datasets import RunDataset
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace, how_to_get

# Bytes of staged rows that one process of LLaMA-Factory 0.9.5 tokenises; 1.3 million measured on
# one core of a Xeon, with rows of 565 bytes.
_TOKENISED_PER_S = 1_000_000


def doctor_findings(
    loaded: LoadedPreset,
    placement: Placement,
    machine: Machine,
    checkpoint: Checkpoint | None,
    fits: str | None,
) -> tuple[Interpreter, list[Finding]]:
    """The interpreter that trains, and what the rules say against this run on this machine.

    `fits` is the plan's verdict for these GPUs; None when it has none. Mere notes are env-check's.
    """
    config = checkpoint.config if checkpoint else {}
    case = engine.Case(
        loaded.preset,
        placement.ranks,
        placement.on_cpu,
        config,
        placement.nodes,
        loaded.document,
        machine,
        fits,
    )
    found = [one for one in engine.diagnose(case) if one.severity != "info"]
    interpreter = machine.interpreter or Interpreter(
        llamafactory_interpreter.training_interpreter(), "", {}, None
    )
    return interpreter, found


def extra_argument_findings(
    loaded: LoadedPreset, interpreter: Interpreter | None = None, *, on_cpu: bool = False
) -> list[Finding]:
    """Objections to the preset's `llamafactory:` section and its trackers, asked of the installed
    version.
    """
    extra = loaded.preset.llamafactory
    if not extra and not loaded.preset.track:
        return []
    try:
        interpreter = interpreter or llamafactory_interpreter.inspect(
            llamafactory_interpreter.training_interpreter()
        )
        if "llamafactory" not in interpreter.packages:
            text = "LLaMA-Factory is not installed: the llamafactory section was not checked"
            return [Finding("llamafactory-unchecked", text, fix=install(), severity="warn")]
        known = llamafactory_interpreter.arguments(interpreter) if extra else {}
    except IisftError as error:
        return [error.finding]
    return [
        replace(finding, where=loaded.document.source(tuple(finding.where.split(".", 1))).text)
        for finding in check_extra(
            extra, loaded.preset, known, on_cpu=on_cpu, optional=interpreter.optional
        )
    ]


def repeated_rows(
    preset: Preset, world_size: int, prepared: Sequence[RunDataset]
) -> Iterator[Finding]:
    """accelerate gives every rank as many full batches: the first rows come again in each epoch.

    (accelerate/data_loader.py, BatchSamplerShard with even_batches)
    """
    at_once = preset.train.batch_size * world_size
    for dataset in prepared[:1]:
        repeated = -dataset.rows % at_once
        if world_size > 1 and repeated:
            yield Finding(
                "rows-repeated",
                f"{world_size} ranks with batch_size {preset.train.batch_size} take {at_once} rows "
                f"at once: of {dataset.rows} rows {repeated} are trained twice in each epoch",
                where="data.name",
                fix=f"a number of rows that {at_once} divides, where that matters",
                severity="info",
            )


def tokenising_findings(
    preset: Preset,
    arguments: Mapping[str, Any],
    ranks: int,
    prepared: Sequence[RunDataset],
) -> Iterator[Finding]:
    """The first rank tokenises while the others wait at a barrier, for ddp_timeout at most."""
    limit = int(arguments.get("ddp_timeout") or 0)
    workers = int(arguments.get("preprocessing_num_workers") or 1)
    size = sum(dataset.file.stat().st_size for dataset in prepared if dataset.file.is_file())
    seconds = size / _TOKENISED_PER_S / workers
    if ranks > 1 and seconds > limit > 0:
        yield Finding(
            "tokenising-too-long",
            f"tokenising {size / GIB:.1f} GiB of rows takes about {seconds / 60:.0f} minutes, the "
            f"other ranks wait for {limit / 60:.0f}",
            where="llamafactory.ddp_timeout",
            fix=(
                ""
                if prepared[0].parts
                else f"iisft data stage ... --name {preset.data.name} "
                "--tokenize does it once before the run; or "
            )
            + f"--set llamafactory.ddp_timeout={int(seconds * 3)}",
            severity="warn",
        )


@dataclass(frozen=True)
class CheckedModel:
    """A model folder as far as it is sound."""

    checkpoint: Checkpoint | None = None
    view: ViewPlan | None = None
    findings: tuple[Finding, ...] = ()


UNCHECKED = CheckedModel()


def model_for(preset: Preset, folder: Path) -> CheckedModel:
    """Inspect the folder, and plan the view through which the run loads it."""
    if not folder.is_dir():
        missing = Finding(
            "model-missing",
            f"the model {preset.model.id} is not there",
            where=str(folder),
            fix=how_to_get(preset.model.id, folder),
        )
        return CheckedModel(findings=(missing,))
    faults = checkpoint_findings(folder)
    if any(finding.severity == "error" for finding in faults):
        return CheckedModel(findings=tuple(faults))
    try:
        checkpoint = inspect_checkpoint(folder)
        view = plan_view(
            checkpoint,
            precision=preset.precision,
            weights=preset.weights,
            trust_remote_code=preset.model.trust_remote_code,
        )
    except IisftError as error:
        return CheckedModel(findings=(*faults, error.finding))
    findings = [*faults, *_target_findings(preset, checkpoint), *_template_findings(preset, folder)]
    return CheckedModel(checkpoint, view, tuple(findings))


def _template_findings(preset: Preset, folder: Path) -> Iterator[Finding]:
    """Another template than the model's own trains on prompts that nobody will write, and may end
    answers with a token that the model has never seen. Confirmed, it is a note.
    """
    name = preset.model.template
    objection = fitting_template.objection(folder, name, preset.llamafactory)
    if objection is None or objection.id == fitting_template.NEEDS_PROCESSOR:
        return  # the latter is told with the rows
    if preset.model.template_confirmed == name:
        yield replace(objection, fix="", severity="info")
        return
    meant = f"or, if {name} is meant: --set model.template_confirmed={name}"
    yield replace(objection, fix=f"{objection.fix}; {meant}")


def _target_findings(preset: Preset, checkpoint: Checkpoint) -> Iterator[Finding]:
    """peft objects only when no target at all is found.

    One misspelled name of two trains half an adapter.
    """
    target = preset.lora.target
    names = target.split(",") if isinstance(target, str) else target
    modules = {
        name.removesuffix(".weight").rpartition(".")[2]
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) == 2
    }
    for name in (name.strip() for name in names if target != "all"):
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1)
            hint = (
                f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(modules))}"
            )
            text = f"{checkpoint.architecture} has no module {name} for lora.target{hint}"
            yield Finding(
                "lora-target",
                text,
                where="lora.target",
                fix=corrected_target(names, name, near[0] if near else ""),
            )


def datasets_for(
    preset: Preset,
    workspace: Workspace,
    model: Path | None,
    progress: datasets.Progress | None = None,
) -> tuple[list[RunDataset], list[Finding]]:
    """What the run trains on and evaluates, and what is wrong with it; `model` is the sound model
    folder, without one no row is counted.
    """
    found: list[RunDataset] = []
    findings: list[Finding] = []
    wanted = {joined(preset.data.evaluated): preset.data.evaluated} if preset.data.eval else {}
    for name, names in ({preset.data.trained: preset.data.names} | wanted).items():
        parts = []
        for one in names:
            try:
                staged = staging.load(one, workspace)
            except IisftError as error:
                findings.append(error.finding)
                continue
            prepared = datasets.prepare(findings, preset, staged, model, progress)
            parts.append((prepared, staged.sha256))
        if len(parts) == len(names):
            found += mixes.of_parts(findings, preset, name, parts)
    return found, findings


def taken(folder: RunFolder) -> Finding:
    return Finding(
        "run-name-taken",
        f"a run named {folder.id} exists",
        where=str(folder.path),
        fix="another --name, or leave it out",
        exit_code=ExitCode.RUN_STATE,
    )


def taken_error(folder: RunFolder) -> RunStateError:
    """The same for a name that was taken between planning and starting."""
    return RunStateError.of(taken(folder))
