"""Whether the disk can hold what a run will write."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from iisft.errors import ExitCode, Finding
from iisft.models.folder.checkpoint import Checkpoint
from iisft.presets.schema import Preset

_NOT_ADAPTED = ("embed_tokens", "lm_head", "wte", "embed_out")
_TOKENIZER_BYTES = 20 * 2**20
_BYTES_PER_PARAMETER = 12  # float32 adapter and AdamW's two moments


def lora_parameters(checkpoint: Checkpoint, rank: int) -> int:
    """Parameters of an adapter of that rank on every linear layer: rank x (in + out) each (Hu et
    al. 2021).
    """
    return sum(
        rank * sum(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) == 2 and not any(part in name for part in _NOT_ADAPTED)
    )


def findings(preset: Preset, checkpoint: Checkpoint | None, runs: Path) -> Iterator[Finding]:
    """A read-only place, and too little space for the checkpoints that are kept at the
    same time.
    """
    place = runs
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Finding(
            "output-read-only",
            "runs can't be written here",
            where=str(place),
            fix="export IISFT_HOME=/a/writable/folder",
            exit_code=ExitCode.ENVIRONMENT,
        )
        return
    if checkpoint is None:
        return
    one = lora_parameters(checkpoint, preset.lora.rank) * _BYTES_PER_PARAMETER + _TOKENIZER_BYTES
    needed = one * (preset.save.keep + 2)  # the one being written and the adapter at the end
    free = shutil.disk_usage(place).free
    if free < needed:
        yield Finding(
            "disk-space",
            f"{preset.save.keep} checkpoints need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} "
            "GiB are free",
            where=str(place),
            fix="free some space, or --set save.keep=1",
            exit_code=ExitCode.ENVIRONMENT,
        )
