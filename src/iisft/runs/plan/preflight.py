"""What speaks against a run before it starts: packages, GPUs, model, data, name.

Each check adds its findings.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft.data.stage import staging
from iisft.errors import ExitCode, Finding, IisftError, RunStateError
from iisft.llamafactory import arguments as llamafactory_arguments
from iisft.llamafactory import interpreter as llamafactory_interpreter
from iisft.llamafactory.environment import Placement
from iisft.llamafactory.interpreter import Interpreter
from iisft.llamafactory.torch_sets import INSTALL
from iisft.machine.doctor import engine, inspect
from iisft.machine.facts.machine import Machine
from iisft.models.folder.checkpoint import Checkpoint, checkpoint_findings, inspect_checkpoint
from iisft.models.view import built, built_findings
from iisft.models.view.build import ViewPlan, plan_view
from iisft.models.view.built import Built
from iisft.presets.checking import LoadedPreset
from iisft.presets.schema import Preset
from iisft.runs.plan import datasets
from iisft.runs.plan.datasets import RunDataset
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace, how_to_get

# the doctor's findings after which asking the trainer's code would only fail again
_UNIMPORTABLE = ("import-died", "import-failed", "torchaudio-mismatch")


def doctor_findings(
    loaded: LoadedPreset,
    placement: Placement,
    machine: Machine,
    checkpoint: Checkpoint | None,
    fits: str | None,
    say: Callable[[str], None],
) -> tuple[Interpreter, list[Finding]]:
    """The interpreter that trains, and what the rules say against this run on this machine.

    `fits` is the plan's verdict for these GPUs; None when it has none. Mere notes are env-check's.
    """
    machine, wrong = inspect.inspected(machine, say)
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
    return interpreter, [*wrong, *found]


def extra_argument_findings(
    loaded: LoadedPreset, interpreter: Interpreter | None = None
) -> list[Finding]:
    """Objections to the preset's `llamafactory:` section, asked of the installed version."""
    extra = loaded.preset.llamafactory
    if not extra:
        return []
    try:
        interpreter = interpreter or llamafactory_interpreter.inspect(
            llamafactory_interpreter.training_interpreter()
        )
        if "llamafactory" not in interpreter.packages:
            text = "LLaMA-Factory is not installed: the llamafactory section was not checked"
            return [Finding("llamafactory-unchecked", text, fix=INSTALL, severity="warn")]
        known = llamafactory_interpreter.arguments(interpreter)
    except IisftError as error:
        return [error.finding]
    return [
        replace(finding, where=loaded.document.source(tuple(finding.where.split(".", 1))).text)
        for finding in llamafactory_arguments.check_extra(extra, loaded.preset, known)
    ]


def model_for(
    findings: list[Finding], preset: Preset, folder: Path
) -> tuple[Checkpoint | None, ViewPlan | None]:
    if not folder.is_dir():
        findings.append(
            Finding(
                "model-missing",
                f"the model {preset.model.id} is not there",
                where=str(folder),
                fix=how_to_get(preset.model.id, folder),
            )
        )
        return None, None
    faults = checkpoint_findings(folder)
    findings += faults
    if any(finding.severity == "error" for finding in faults):
        return None, None
    try:
        checkpoint = inspect_checkpoint(folder)
        view = plan_view(
            checkpoint,
            precision=preset.precision,
            weights=preset.weights,
            trust_remote_code=preset.model.trust_remote_code,
        )
    except IisftError as error:
        findings.append(error.finding)
        return None, None
    findings += _target_findings(preset, checkpoint)
    return checkpoint, view


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
                fix=near[0] if near else "lora.target: all",
            )


def built_for(
    findings: list[Finding],
    preset: Preset,
    checkpoint: Checkpoint,
    view: ViewPlan,
    train_yaml: Mapping[str, Any],
    interpreter: Interpreter,
    placement: Placement,
    prepared: Sequence[RunDataset],
    say: Callable[[str], None],
) -> Built | None:
    """What the trainer would make of the run before its first step; None where it can't be
    asked, which the doctor says.
    """
    if (
        any(one.id in _UNIMPORTABLE for one in findings)
        or not {"llamafactory", "torch"} <= interpreter.packages.keys()
    ):
        return None
    answer = built.ask(
        view,
        checkpoint,
        train_yaml,
        interpreter,
        on_cpu=placement.on_cpu,
        distributed=placement.world_size > 1,
        say=say,
    )
    if isinstance(answer, str):
        text = f"the model was not built before the start: {answer}"
        findings.append(Finding("model-unbuilt", text, str(interpreter.path), severity="warn"))
        return None
    longest = [dataset.longest for dataset in prepared]
    known = None if not longest or None in longest else max(filter(None, longest))
    findings += built_findings.findings(answer, preset, checkpoint, known)
    return answer


def datasets_for(
    findings: list[Finding],
    preset: Preset,
    workspace: Workspace,
    model: Path | None,
    progress: datasets.Progress | None = None,
) -> list[RunDataset]:
    """What the run trains on and evaluates; `model` is the sound model folder, None without one."""
    found = []
    for name in dict.fromkeys(filter(None, (preset.data.name, preset.data.eval))):
        try:
            staged = staging.load(name, workspace)
        except IisftError as error:
            findings.append(error.finding)
            continue
        found.append(datasets.prepare(findings, preset, staged, model, progress))
    return found


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
