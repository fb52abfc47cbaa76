"""Whether the preset's hardware is here, and the host around it: processor, memory, heat, system
packages.
"""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.gpu_table import MEMORY_TOLERANCE, is_of
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import as_root, by_hand
from iisft.rules import Fix, change_preset, rule, seen

_NEAR_C = 10.0


@rule(
    "R42",
    "avx2-missing",
    applies="processors before Haswell",
    source="deepspeed 0.18.3 builder; DeepSpeed#6363",
)
def no_avx2(case: Case) -> Iterator[Finding]:
    """Xeon E5 v1 and v2 have no AVX2: DeepSpeed's CPU Adam is built without vectors, some wheels
    die at once.
    """
    host = case.machine.host
    offloads = case.preset is None or case.preset.sharding in ("zero2", "zero3")
    if offloads and "sse2" in host.cpu_flags and "avx2" not in host.cpu_flags:
        yield seen(
            f"{host.cpu or 'this processor'} has no AVX2: optimizer offload (ZeRO) is very slow, "
            "and some wheels die "
            "with 'Illegal instruction'",
            "flags in /proc/cpuinfo",
            by_hand("no offload to the CPU; take lts or compat builds (polars-lts-cpu)"),
            "warn",
        )


@rule(
    "R45",
    "heat",
    applies="passively cooled GPUs (MI50, MI60, P40, P100)",
    source="amdgpu hwmon; nvidia-smi; v2ex 1102193 (MI50 with 190 W and 250 W firmware)",
    basis="reported",
)
def heat(case: Case) -> Iterator[Finding]:
    """A card near its limit throttles: slower than any estimate, and the first to fall off
    the bus.
    """
    for gpu in case.gpus:
        card = case.machine.card(gpu)
        if card is None:
            continue
        if (
            card.temperature_c
            and card.critical_c
            and card.temperature_c >= card.critical_c - _NEAR_C
        ):
            yield seen(
                f"the GPU at {card.bus} is at {card.temperature_c:.0f} degrees, its limit is "
                f"{card.critical_c:.0f}",
                "hwmon junction temperature",
                by_hand("a passive card needs forced air through it"),
                "warn",
            )
        if card.power_cap_w and card.power_default_w and card.power_cap_w < card.power_default_w:
            yield seen(
                f"the GPU at {card.bus} is held to {card.power_cap_w:.0f} of "
                f"{card.power_default_w:.0f} W",
                "power cap",
                by_hand("fine if you meant it; time estimates are for the full power"),
                "info",
            )


@rule(
    "host-memory",
    applies="GPU presets",
    source="each rank loads the weights through the host's memory",
)
def little_memory(case: Case) -> Iterator[Finding]:
    """A container's limit, or a machine with less memory than its GPUs: loading is where it gets
    killed.
    """
    host = case.machine.host
    known = [size for size in (host.memory_gib, host.memory_limit_gib) if size]
    largest = max((gpu.memory_gib for gpu in case.gpus), default=0.0)
    if known and largest and min(known) < largest / 2:
        limit = " (the container's limit)" if host.memory_limit_gib == min(known) else ""
        yield seen(
            f"{min(known):.0f} GiB of host memory{limit} beside a GPU of {largest:.0f} GiB: "
            "loading a model that fills "
            "the GPU may be killed",
            "/proc/meminfo, memory.max",
            by_hand("add swap, raise the container's memory limit, or load smaller models"),
            "warn",
        )


@rule(
    "system-packages",
    applies="any machine",
    source="the first user's list; Triton and DeepSpeed call a C compiler",
)
def system_packages(case: Case) -> Iterator[Finding]:
    """git fetches LLaMA-Factory or iisft; Triton and DeepSpeed compile with gcc.

    MPI is needed by neither.
    """
    programs = case.machine.answers.programs
    if programs is None:
        return
    sharded = case.preset is not None and case.preset.sharding in ("zero2", "zero3")
    missing = [name for name in ("git", "gcc") if name not in programs]
    missing += ["g++"] if sharded and "g++" not in programs else []
    if missing:
        debian = {"git": "git", "gcc": "build-essential", "g++": "build-essential"}
        wanted = " ".join(dict.fromkeys(debian[name] for name in missing))
        yield seen(
            f"{' and '.join(missing)} not found",
            "PATH",
            as_root(f"sudo apt install -y {wanted}"),
            "warn" if sharded else "info",
        )


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
