"""Writing staged rows: a temporary file that gets its name, by its digest, when all rows are
in it.
"""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from iisft import files
from iisft.data.read.rows import Row
from iisft.data.stage.rowshape import Shape, shaped
from iisft.errors import EnvironmentFault, IisftError, TransferError

_BATCH = 512


class RowsFile:
    """A context manager; without publish() nothing is left of it.

    Raises:
        OSError: from every method, when the disk is full or read-only.
    """

    def __init__(self, folder: Path, keys: tuple[str, ...] = ()) -> None:
        """`keys` are those that every row has as it comes, where that is known."""
        self._folder, self._keys = folder, keys
        self._shape = Shape()
        self._out = _Temporary(folder)
        self.rows = 0

    def __enter__(self) -> "RowsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._out.discard()

    def write_all(self, rows: Iterable[Row]) -> None:
        """Write every row that comes."""
        for _ in self.copying(rows):
            pass

    def copying(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Write every row and pass it on."""
        iterator = iter(rows)
        while batch := list(islice(iterator, _BATCH)):
            self._write(batch)
            yield from batch

    def _write(self, batch: list[Row]) -> None:
        lines = []
        for row in batch:
            value = row.value
            line = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
            lines.append(line)
            self._shape.watch(value, len(line))
        self._out.write(b"".join(lines))
        self.rows += len(batch)

    def publish(self, prefix: str) -> dict[str, Any]:
        """Give the file its name (the prefix and its digest) and return its part of the record."""
        keys = self._shape.keys()
        if keys != (self._keys or self._shape.as_they_come):
            self._write_again(keys)
        final, digest = self._out.publish(prefix)
        stat = final.stat()
        return {
            "file": final.name,
            "rows": self.rows,
            "sha256": digest,
            "keys": list(keys),
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
        }

    def _write_again(self, keys: tuple[str, ...]) -> None:
        """All rows once more, each with the keys that only the last row has settled."""
        before, self._out = self._out, _Temporary(self._folder)
        try:
            with before.reopened() as stream:
                while lines := list(islice(stream, _BATCH)):
                    rows = (shaped(orjson.loads(line), keys) for line in lines)
                    self._out.write(
                        b"".join(
                            orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows
                        )
                    )
        finally:
            before.discard()


class _Temporary:
    """A file with a running digest and no name yet."""

    def __init__(self, folder: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix=".rows.", suffix=".tmp", dir=folder)
        self._path = Path(name)
        self._stream = os.fdopen(descriptor, "wb")
        self._sha256 = hashlib.sha256()

    def write(self, content: bytes) -> None:
        self._sha256.update(content)
        self._stream.write(content)

    def reopened(self) -> Any:
        self._stream.flush()
        return self._path.open("rb")

    def publish(self, prefix: str) -> tuple[Path, str]:
        digest = self._sha256.hexdigest()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        final = self._path.parent / f"{prefix}{digest[:12]}.jsonl"
        files.move_into_place(self._path, final)
        return final, digest

    def discard(self) -> None:
        try:
            self._stream.close()
        finally:
            self._path.unlink(missing_ok=True)


def unwritable(code: str, error: OSError, folder: Path, fix: str = "") -> IisftError:
    """What to say when rows can't be written to `folder`: a full disk is the machine's fault."""
    text = f"can't be written: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault("disk-full", text, where=str(folder), fix="free space there: df -h")
    return TransferError(code, text, where=str(folder), fix=fix)
