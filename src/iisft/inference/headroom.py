"""How much memory a run's model needs to answer, from the checkpoint's headers, and how much is
free.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iisft.errors import EnvironmentFault
from iisft.machine.facts import sensors
from iisft.machine.facts.gpus import visible_gpus
from iisft.models.folder.checkpoint import Checkpoint
from iisft.quoting import is_count

GIB = 2**30
# nf4: 4 bit and a scale per 64 weights
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "nf4": 0.5625}
_MARGIN_BYTES = GIB  # the runtime's context, and the keys and values of some thousand tokens


Place = Literal["cpu", "gpu", "gpus"]  # gpus: in parts, on all of them


@dataclass(frozen=True, slots=True)
class Need:
    """What loading takes, in bytes, and how much is free at that place (None: unknown)."""

    bytes: int
    place: Place
    free: int | None

    @property
    def sentence(self) -> str:
        kind = "memory" if self.place == "cpu" else "GPU memory"
        free = f"; {self.free / GIB:.1f} GiB are free" if self.free is not None else ""
        return f"needs about {self.bytes / GIB:.1f} GiB of {kind}{free}"

    def require(self) -> None:
        """Raises EnvironmentFault when it is known not to fit."""
        if self.free is not None and self.free < self.bytes:
            fix = "end what uses it (iisft runs shows what trains), or take another machine"
            raise EnvironmentFault("memory-too-small", f"this {self.sentence}", fix=fix)


def need(
    checkpoint: Checkpoint, weights_dtype: str, arithmetic: str, *, adapter_bytes: int, place: Place
) -> Need:
    """What it takes to hold the weights and to answer with them.

    Args:
        checkpoint: the base model.
        weights_dtype: "float32", "float16", "bfloat16" or "nf4", of the weights in memory.
        arithmetic: with "float32" over narrower weights the largest of them is cast at a time.
        adapter_bytes: size of the adapter's file.
        place: where.
    """
    largest = max((tensor.parameters for tensor in checkpoint.tensors.values()), default=0)
    weights = checkpoint.parameters * _BYTES[weights_dtype]
    if weights_dtype == "nf4":  # embeddings and head stay as they are
        weights += largest * 2
    cast = largest * 4 if arithmetic == "float32" else 0
    total = int(weights + cast + adapter_bytes + _MARGIN_BYTES)
    return Need(
        total, place, free_memory() if place == "cpu" else free_gpu_memory(together=place == "gpus")
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the machine can still give to a process, a control group's limit included.

    None when unknown.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    known = [int(found[1]) * 1024] if found else []
    limit, used = (
        _text(root / "sys/fs/cgroup" / name).strip() for name in ("memory.max", "memory.current")
    )
    if is_count(limit) and is_count(used):
        known.append(max(0, int(limit) - int(used)))
    return min(known, default=None)


def free_gpu_memory(*, together: bool) -> int | None:
    """Bytes that are free on the emptiest GPU, or on all.

    None when that, or which GPUs are meant, is unknown.
    """
    free = [
        int((one.memory_total_gib - one.memory_used_gib) * GIB)
        for one in sensors.sample()
        if one.memory_total_gib is not None and one.memory_used_gib is not None
    ]
    if not free or len(free) != len(visible_gpus()):
        return None
    return sum(free) if together else max(free)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
