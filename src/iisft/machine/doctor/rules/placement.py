"""Whether the preset's hardware is here."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.gpu_table import MEMORY_TOLERANCE, is_of
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import by_hand
from iisft.rules import Fix, change_preset, rule, seen


def _wanted(case: Case) -> int:
    assert case.preset is not None
    return case.ranks or max(case.preset.hardware.gpus, 1)


def _on_gpus(case: Case) -> bool:
    return case.preset is not None and not case.on_cpu and case.preset.hardware.vendor != "cpu"


@rule(
    "too-few-gpus",
    applies="presets for GPUs",
    source="KFD, /proc/driver/nvidia and *_VISIBLE_DEVICES",
)
def too_few(case: Case) -> Iterator[Finding]:
    """One rank needs one GPU."""
    if not _on_gpus(case) or case.preset is None:
        return
    wanted, gpus, hardware = _wanted(case), case.gpus, case.preset.hardware
    if len(gpus) < wanted:
        yield seen(
            f"{wanted} GPUs are needed ({hardware.vendor} {hardware.arch}), {len(gpus)} can be "
            "seen",
            "torch, /sys/class/kfd, nvidia-smi, *_VISIBLE_DEVICES",
            Fix(
                f"iisft train --gpus {len(gpus)}"
                if gpus
                else "check the driver and permissions; iisft train --gpus 1 tries it on the CPU",
                stage="preset",
            ),
        )


@rule("other-gpu", applies="presets for GPUs", source="the preset's hardware.arch")
def other_gpu(case: Case) -> Iterator[Finding]:
    """The preset was made for another GPU."""
    if not _on_gpus(case) or case.preset is None:
        return
    for gpu in case.gpus[: _wanted(case)]:
        if gpu.arch and not is_of(gpu.arch, case.preset.hardware.arch):
            yield seen(
                f"this GPU is {gpu.name or gpu.vendor} ({gpu.arch}), "
                f"the preset is made for {case.preset.hardware.arch}",
                "hardware.arch",
                severity="warn",
            )


@rule("gpu-memory", applies="presets for GPUs", source="the preset's hardware.memory_gib")
def small_memory(case: Case) -> Iterator[Finding]:
    """A smaller card than the preset was made for: better refused now than out of memory at step 2.

    Only a warning where the plan says that the run fits all the same.
    """
    if not _on_gpus(case) or case.preset is None:
        return
    wanted = case.preset.hardware.memory_gib
    for gpu in case.gpus[: _wanted(case)]:
        if 0 < gpu.memory_gib < wanted * MEMORY_TOLERANCE:
            yield seen(
                f"a GPU has {gpu.memory_gib:.1f} GiB, the preset is made for {wanted:g} GiB",
                "hardware.memory_gib",
                change_preset(
                    f"hardware.memory_gib={int(gpu.memory_gib)}",
                    "a smaller model or cutoff_len; --set "
                    f"hardware.memory_gib={int(gpu.memory_gib)} tries it anyway",
                ),
                "warn" if case.fits in ("yes", "tight") else "error",
            )


@rule("on-cpu", applies="GPU presets with --gpus on a machine without one", source="--gpus")
def on_cpu(case: Case) -> Iterator[Finding]:
    """An explicit --gpus N without GPUs means N ranks on the CPU."""
    if case.preset and case.on_cpu and case.preset.hardware.vendor != "cpu":
        hardware = case.preset.hardware
        yield seen(
            f"no GPU here: {case.ranks} CPU ranks instead of {hardware.vendor} {hardware.arch}",
            "",
            severity="warn",
        )


@rule(
    "fp16-on-cpu",
    applies="fp16 presets on the CPU",
    source="transformers TrainingArguments; seen with 0.9.5",
)
def fp16_on_cpu(case: Case) -> Iterator[Finding]:
    """On the CPU the trainer drops fp16 without a word and computes in the stored dtype."""
    cpu = case.preset is not None and (case.on_cpu or case.preset.hardware.vendor == "cpu")
    if case.preset and cpu and case.preset.precision == "fp16":
        yield seen(
            "the trainer ignores fp16 on the CPU: it would compute in the stored dtype, without a "
            "word",
            "",
            change_preset("precision=fp32", "--set precision=fp32 or bf16"),
        )


@rule("workspace-full", applies="any machine", source="statvfs of the workspace")
def workspace_full(case: Case) -> Iterator[Finding]:
    """A 7B model takes 15 GiB, a run's checkpoints a few more."""
    space = case.machine.answers.spaces.get("workspace")
    if case.preset is None and space is not None and space.free < 20 * 2**30:
        yield seen(
            f"{space.free / 2**30:.1f} GiB free in the workspace: a 7B model takes 15 GiB, each "
            "checkpoint about 2",
            "statvfs",
            by_hand("free space, or set IISFT_HOME to a folder on another disk"),
            "info",
        )
