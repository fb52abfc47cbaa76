"""What was found out about a data set once and costs minutes to find out again: kept in the cache
folder by digests.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from iisft import __version__, files
from iisft.workspace import cache_folder

_KEPT_FILES = 64  # of each kind


def read(kind: str, *key: Any) -> bytes | None:
    """What was written under this key by this version of iisft, None when there is nothing."""
    try:
        return files.read_bytes(_file(kind, key), 2**32)
    except OSError:
        return None


def write(kind: str, content: bytes, *key: Any) -> None:
    """Remember `content`.

    Where the cache folder can't be written it is found out again next time.
    """
    file = _file(kind, key)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes_atomically(file, content)
        by_age = sorted(file.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[_KEPT_FILES:]:
            path.unlink(missing_ok=True)


def _file(kind: str, key: tuple[Any, ...]) -> Path:
    text = json.dumps([__version__, *key], sort_keys=True)
    return cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()
