"""How much memory a run's model needs to answer, and how much is free."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iisft.errors import EnvironmentFault
from iisft.machine.doctor.inspect import visible_gpus
from iisft.machine.facts import sensors
from iisft.models.folder.checkpoint import Checkpoint
from iisft.quoting import is_count

GIB = 2**30
# per weight; nf4: 4 bits, and a scale per 64 weights
BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "nf4": 0.5625}
_MARGIN_BYTES = GIB  # the runtime's context, and keys and values of a few thousand tokens


Place = Literal["cpu", "gpu", "gpus"]  # gpus: split over all of them


@dataclass(frozen=True, slots=True)
class Need:
    """What loading takes in bytes, and how much is free there (None: unknown)."""

    bytes: int
    place: Place
    free: int | None

    @property
    def sentence(self) -> str:
        kind = "memory" if self.place == "cpu" else "GPU memory"
        free = f"; {self.free / GIB:.1f} GiB are free" if self.free is not None else ""
        return f"needs about {self.bytes / GIB:.1f} GiB of {kind}{free}"

    def require(self) -> None:
        """Raises EnvironmentFault if it is known not to fit."""
        if self.free is not None and self.free < self.bytes:
            fix = "end what uses it (iisft runs lists trainings), or use another machine"
            raise EnvironmentFault("memory-too-small", f"this {self.sentence}", fix=fix)


def need(
    checkpoint: Checkpoint, weights_dtype: str, arithmetic: str, *, adapter_bytes: int, place: Place
) -> Need:
    """The memory to hold the weights and answer with them.

    Args:
        checkpoint: the base model.
        weights_dtype: "float32", "float16", "bfloat16" or "nf4", of the weights in memory.
        arithmetic: "float32" over narrower weights casts one of them at a time.
        adapter_bytes: size of the adapter's file.
        place: where the model will be.
    """
    largest = max((tensor.parameters for tensor in checkpoint.tensors.values()), default=0)
    weights = checkpoint.parameters * BYTES[weights_dtype]
    if weights_dtype == "nf4":  # embeddings and head stay as they are
        weights += largest * 2
    cast = largest * 4 if arithmetic == "float32" else 0
    total = int(weights + cast + adapter_bytes + _MARGIN_BYTES)
    return Need(
        total, place, free_memory() if place == "cpu" else free_gpu_memory(together=place == "gpus")
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a process can still get, within its control group; None if unknown."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    known = [int(found[1]) * 1024] if found else []
    limit, used = (
        _text(root / "sys/fs/cgroup" / name).strip() for name in ("memory.max", "memory.current")
    )
    if is_count(limit) and is_count(used):
        known.append(max(0, int(limit) - int(used)))
    return min(known, default=None)


def free_gpu_memory(*, together: bool) -> int | None:
    """Free bytes on the emptiest GPU, or on all; None if unknown, or unclear which GPUs count."""
    free = [
        int((one.memory_total_gib - one.memory_used_gib) * GIB)
        for one in sensors.samples_of([gpu.memory_gib for gpu in visible_gpus()])
        if one.memory_total_gib is not None and one.memory_used_gib is not None
    ]
    if not free:
        return None
    return sum(free) if together else max(free)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
