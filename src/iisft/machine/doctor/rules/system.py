"""The host around the GPUs: processor, memory, heat, system packages."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import as_root, by_hand
from iisft.rules import rule, seen

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
