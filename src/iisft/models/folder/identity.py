"""Whether a model folder still holds the weights that a run was trained on, in milliseconds."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iisft import files
from iisft.files import sha256_of

_SAMPLES = 16
_SAMPLE_BYTES = 4096


def stamp(weights: Path) -> dict[str, Any]:
    """Size, time and a digest of samples of one file: enough to notice other weights.

    The samples are the first and last bytes and 15 places in between: fine-tuning changes every
    weight. A digest of the whole file would take longer than all other checks before a run.

    Raises:
        OSError: it can't be read.
    """
    stat = weights.stat()
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sample_sha256": _sample_digest(weights, stat.st_size),
    }


def changes(recorded: Mapping[str, Any], folder: Path, *, copies: bool) -> Iterator[str]:
    """One sentence for each file in `folder` that differs from run.json's `model`.

    Args:
        recorded: that object.
        folder: where the model is now.
        copies: accept a file with another time and the same samples, as a copy has. Training
            continues only with the very files that it began with.
    """
    if sha256_of(folder / "config.json") != recorded["config_sha256"]:
        yield f"the model's config.json has changed ({folder})"
    for name, before in recorded["files"].items():
        path = folder / name
        try:
            stat = path.stat()
            same = stat.st_size == before["size"] and (
                stat.st_mtime_ns == before["mtime_ns"]
                or (copies and _sample_digest(path, stat.st_size) == before.get("sample_sha256"))
            )
        except OSError:
            yield f"the model's {name} is missing ({folder})"
            continue
        if not same:
            yield f"the model's {name} was replaced ({folder})"


def _sample_digest(path: Path, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with files.open_regular(path) as stream:
        for number in range(_SAMPLES + 1):
            stream.seek(max(0, size - _SAMPLE_BYTES) * number // _SAMPLES, os.SEEK_SET)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
