"""A machine in a few lines for people, and as values for scripts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from iisft.machine.facts.machine import Machine

_PACKAGES = ("torch", "torchvision", "torchaudio", "transformers", "peft", "accelerate",
             "llamafactory", "deepspeed", "bitsandbytes")  # fmt: skip


def facts(machine: Machine) -> dict[str, Any]:
    """What `env-check --json` says about the machine beside its findings."""
    host, found = machine.host, machine.interpreter
    return {
        "gpus": [
            {
                "vendor": gpu.vendor,
                "arch": gpu.arch,
                "name": machine.describe_gpu(gpu).partition(" (")[0],
                "memory_gib": round(gpu.memory_gib, 2),
                "bus": gpu.bus,
                "numa_node": card.numa_node if (card := machine.card(gpu)) else None,
                "iommu": card.iommu if card else "",
            }
            for gpu in machine.everything
        ],
        "os": host.os_name,
        "kernel": host.kernel,
        "cpu": host.cpu,
        "memory_gib": round(host.memory_gib, 1) if host.memory_gib else None,
        "container": host.container,
        "rocm": host.rocm,
        "nvidia_driver": host.nvidia_driver,
        "interpreter": {"path": str(found.path), "python": found.python, "packages": found.packages}
        if found
        else None,
    }


def lines(machine: Machine) -> Iterator[tuple[str, str]]:
    """What `env-check` prints above its findings: name, text."""
    yield "GPUs", _gpus(machine)
    yield "driver", _driver(machine)
    host = machine.host
    size = f"{host.memory_gib:.0f} GiB" if host.memory_gib else "memory unknown"
    sockets = f"{host.sockets} x " if host.sockets > 1 else ""
    place = f", in {host.container}" if host.container else ""
    yield (
        "host",
        f"{sockets}{host.cpu or 'processor unknown'}, {size}, "
        f"{host.os_name or 'system unknown'}{place}",
    )
    if spaces := machine.answers.spaces:
        shown = [
            f"{name} {_size(space.free)} free"
            for name, space in spaces.items()
            if name != "temporary"
        ]
        yield "space", ", ".join(shown)
    yield "trainer", _trainer(machine)


def _size(size: int) -> str:
    return f"{size / 2**30:.0f} GiB" if size >= 2**30 else f"{size // 2**20} MiB"


def _gpus(machine: Machine) -> str:
    found = machine.everything
    if not found:
        return "none"
    kinds = Counter((machine.describe_gpu(gpu), round(gpu.memory_gib)) for gpu in found)
    text = ", ".join(
        f"{count} x {name}" + (f" {gib} GiB" if gib else "") for (name, gib), count in kinds.items()
    )
    hidden = len(found) - len(machine.visible)
    return f"{text}; {hidden} hidden by *_VISIBLE_DEVICES" if hidden else text


def _driver(machine: Machine) -> str:
    host = machine.host
    found = []
    if host.amdgpu is not None:
        found.append(f"amdgpu {host.amdgpu} (dkms)" if host.amdgpu else "amdgpu (the kernel's own)")
    if host.rocm:
        found.append(f"ROCm {host.rocm}")
    if host.nvidia_driver:
        found.append(f"NVIDIA {host.nvidia_driver}")
    return ", ".join(found) or "none for GPUs"


def _trainer(machine: Machine) -> str:
    found = machine.interpreter
    if found is None:
        return "unknown"
    versions = ", ".join(
        f"{name} {found.packages[name]}" for name in _PACKAGES if name in found.packages
    )
    return f"{found.path} (Python {found.python}): {versions or 'nothing that trains'}"


def measured(results: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Rows of a table: check, where, result."""
    for one in results:
        where = str(one.get("device") or f"{one.get('world')} ranks, {one.get('backend')}")
        check = str(one.get("check"))
        if check == "matmul":
            check = f"product {one.get('dtype')}"
        if check == "copy":
            where = f"{one.get('source')} -> {where}"
        yield check, where, _result(one)


def _result(one: Mapping[str, Any]) -> str:
    if trouble := one.get("died") or one.get("error"):
        return f"failed: {trouble}"
    if "tflops" in one:
        rate = float(one["tflops"])
        return f"{rate:.3g} TFLOP/s" if rate >= 0.1 else f"{rate * 1000:.3g} GFLOP/s"
    if "gib" in one:
        return f"{one['gib']:.1f} GiB"
    if "gbps" in one:
        via = f" via {', '.join(one['transports'])}" if one.get("transports") else ""
        return f"{one['gbps']:.3g} GB/s{via}"
    if "finite" in one:
        eager = "finite" if one.get("eager_finite") else "NaN"
        return f"{'finite' if one['finite'] else 'NaN'} (eager: {eager})"
    return ""
