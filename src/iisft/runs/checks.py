"""What speaks against a run before it starts: packages, GPUs, model, data, name. Each check adds its findings."""

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from iisft.data import staging
from iisft.errors import ExitCode, Finding, IisftError, RunStateError
from iisft.hardware.gpus import Gpu
from iisft.llamafactory import arguments as llamafactory_arguments
from iisft.llamafactory import interpreter as llamafactory_interpreter
from iisft.llamafactory.environment import Placement
from iisft.llamafactory.interpreter import Interpreter
from iisft.models.checkpoint import Checkpoint, checkpoint_findings, inspect_checkpoint
from iisft.models.view import ViewPlan, plan_view
from iisft.presets.checking import LoadedPreset
from iisft.presets.schema import Preset
from iisft.runs import rundata
from iisft.runs.folder import RunFolder
from iisft.runs.rundata import RunDataset
from iisft.workspace import Workspace

_MEMORY_TOLERANCE = 0.95  # a "32 GB" MI50 has 31.98 GiB


def interpreter_for(findings: list[Finding], preset: Preset, placement: Placement) -> Interpreter:
    path = llamafactory_interpreter.training_interpreter()
    try:
        interpreter = llamafactory_interpreter.inspect(path)
    except IisftError as error:
        findings.append(as_finding(error))
        return Interpreter(path, "", {}, None)
    vendor = "cpu" if placement.on_cpu else preset.hardware.vendor
    findings += llamafactory_interpreter.findings(
        interpreter, vendor, placement.world_size, llamafactory_arguments.needed_packages(preset)
    )
    return interpreter


def extra_argument_findings(loaded: LoadedPreset, interpreter: Interpreter | None = None) -> list[Finding]:
    """Objections to the preset's `llamafactory:` section, asked of the installed version."""
    extra = loaded.preset.llamafactory
    if not extra:
        return []
    try:
        interpreter = interpreter or llamafactory_interpreter.inspect(llamafactory_interpreter.training_interpreter())
        if "llamafactory" not in interpreter.packages:
            text = "LLaMA-Factory is not installed: the llamafactory section was not checked"
            return [Finding("llamafactory-unchecked", text, fix=llamafactory_interpreter.INSTALL, severity="warn")]
        known = llamafactory_interpreter.arguments(interpreter)
    except IisftError as error:
        return [as_finding(error)]
    return [
        replace(finding, where=loaded.document.source(("llamafactory", name)).text)
        for name, finding in llamafactory_arguments.check_extra(extra, loaded.preset, known)
    ]


def gpu_findings(preset: Preset, placement: Placement, gpus: list[Gpu]) -> Iterator[Finding]:
    wanted = preset.hardware
    if placement.on_cpu:
        if wanted.vendor != "cpu":
            text = f"no GPU here: {placement.ranks} CPU ranks instead of {wanted.vendor} {wanted.arch}"
            yield Finding("on-cpu", text, severity="warn", exit_code=ExitCode.ENVIRONMENT)
        if preset.precision == "fp16":
            yield Finding(
                "fp16-on-cpu",
                "the trainer ignores fp16 on the CPU: it would compute in the stored dtype, without a word",
                fix="--set precision=fp32 or bf16",
                exit_code=ExitCode.ENVIRONMENT,
            )
        return
    if len(gpus) < placement.ranks:
        yield Finding(
            "too-few-gpus",
            f"{placement.ranks} GPUs are needed ({wanted.vendor} {wanted.arch}), {len(gpus)} can be seen",
            where="/sys/class/kfd, nvidia-smi, *_VISIBLE_DEVICES",
            fix=f"--gpus {len(gpus)}" if gpus else "--gpus 1 tries it on the CPU; or check the driver and permissions",
            exit_code=ExitCode.ENVIRONMENT,
        )
    for gpu in gpus[: placement.ranks]:
        if gpu.arch and not gpu.arch.startswith(wanted.arch):
            text = f"this GPU is {gpu.name or gpu.vendor} ({gpu.arch}), the preset is made for {wanted.arch}"
            yield Finding("other-gpu", text, severity="warn", exit_code=ExitCode.ENVIRONMENT)
        if 0 < gpu.memory_gib < wanted.memory_gib * _MEMORY_TOLERANCE:
            yield Finding(
                "gpu-memory",
                f"a GPU has {gpu.memory_gib:.1f} GiB, the preset is made for {wanted.memory_gib:g} GiB",
                fix=f"a smaller model or cutoff_len; --set hardware.memory_gib={int(gpu.memory_gib)} tries it anyway",
                exit_code=ExitCode.ENVIRONMENT,
            )


def model_for(findings: list[Finding], preset: Preset, folder: Path) -> tuple[Checkpoint | None, ViewPlan | None]:
    if not folder.is_dir():
        findings.append(
            Finding(
                "model-missing",
                f"the model {preset.model.id} is not there",
                where=str(folder),
                fix=_how_to_get(preset.model.id, folder),
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
        findings.append(as_finding(error))
        return None, None
    findings += _target_findings(preset, checkpoint)
    if preset.precision == "fp16" and preset.attention == "eager" and checkpoint.model_type.startswith("qwen2"):
        text = f"{checkpoint.model_type} overflows in fp16 with eager attention: loss 0.0, grad_norm NaN"
        findings.append(Finding("fp16-eager-nan", text, where="attention", fix="--set attention=sdpa"))
    return checkpoint, view


def _how_to_get(model: str, folder: Path) -> str:
    """The download's exact command; its default place is the folder that is missing, unless a path was given."""
    if model.count("/") == 1 and not model.startswith((".", "~", "/")):
        return f"iisft download {shlex.quote(model)}, or --model DIR"
    return f"iisft download OWNER/NAME --to {shlex.quote(str(folder))}, or --model DIR"


def _target_findings(preset: Preset, checkpoint: Checkpoint) -> Iterator[Finding]:
    """peft objects only when no target at all is found; one misspelled name of two trains half an adapter."""
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
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(modules))}"
            text = f"{checkpoint.architecture} has no module {name} for lora.target{hint}"
            yield Finding("lora-target", text, where="lora.target", fix=near[0] if near else "lora.target: all")


def datasets_for(
    findings: list[Finding],
    preset: Preset,
    workspace: Workspace,
    model: Path | None,
    progress: rundata.Progress | None = None,
) -> list[RunDataset]:
    """What the run trains on and evaluates; `model` is the sound model folder, None without one."""
    found = []
    for name in dict.fromkeys(filter(None, (preset.data.name, preset.data.eval))):
        try:
            staged = staging.load(name, workspace)
        except IisftError as error:
            findings.append(as_finding(error))
            continue
        found.append(rundata.prepare(findings, preset, staged, model, progress))
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
    finding = taken(folder)
    return RunStateError(finding.id, finding.message, where=finding.where, fix=finding.fix)


def as_finding(error: IisftError) -> Finding:
    return Finding(error.code, error.message, where=error.where, fix=error.fix, exit_code=error.exit_code)
