"""A data file: what it is (found in its content), and its rows, read as a stream.

JSON array, JSON lines, CSV and Parquet, the first three also gzipped. Not covered: other encodings
than UTF-8 and other packings; they are named, with the command that converts.
"""

import errno
import gzip
import hashlib
import io
import itertools
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import IO, Any, cast

from iisft import files
from iisft.data.read import encodings, layouts, readers
from iisft.data.read.container import (
    CONTAINER_NAMES,
    Container,
    container_of,
    decompressed_head,
    delimiter_of,
    first_bytes,
    unreadable,
)
from iisft.data.read.jsonarray import json_array
from iisft.data.read.layouts import Layout
from iisft.data.read.message_keys import LayoutName
from iisft.data.read.readers import parquet_rows
from iisft.data.read.rows import Row, Unreadable
from iisft.errors import InputError, UsageError

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of the file."""

_SAMPLE_ROWS = 200
_SAMPLE_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Source:
    """A file whose kind is known. `identity` is size, mtime and inode when it was opened first."""

    file: Path
    container: Container
    compressed: bool
    delimiter: str
    layout: Layout
    identity: tuple[int, int, int]

    @property
    def size(self) -> int:
        return self.identity[0]

    def describe(self) -> str:
        """For people, such as `JSON lines (gzip), Alpaca (instruction, input, output)`."""
        return (
            f"{CONTAINER_NAMES[self.container]}{' (gzip)' if self.compressed else ''}, "
            f"{self.layout.describe()}"
        )


def open_source(
    file: Path,
    formats: str | None = None,
    columns: Sequence[str] = (),
    *,
    ignore: Sequence[str] = (),
    roles: Sequence[str] = (),
) -> Source:
    """Find out what `file` is.

    `formats` are the words of `--format`: a layout, a container, or both with a comma; `columns`
    those of `--columns`, `ignore` those of `--ignore`, `roles` those of `--roles`.

    Raises:
        UsageError: an unknown word in either.
        InputError: it can't be read, is of a kind that isn't read here, is empty, or has no known
        columns.
    """
    container, layout_name = _parse_formats(formats)
    told, told_roles = layouts.parse_columns(columns), layouts.parse_roles(roles)
    ignored = tuple(key.strip() for text in ignore for key in text.split(",") if key.strip())
    identity = _identity(file)
    compressed = first_bytes(file)[:2] == b"\x1f\x8b"
    head = decompressed_head(file) if compressed else first_bytes(file)
    delimiter = ""
    container = container or container_of(head, file, compressed)
    if container == "csv":
        delimiter = delimiter_of(head) or ","
    elif container == "parquet" and compressed:
        raise unreadable(file, "a gzipped Parquet file", fix=encodings.unpacking(file))
    untyped = Source(file, container, compressed, delimiter, Layout("alpaca", {}, {}), identity)
    layout = layouts.detect(_sample(untyped), layout_name, told, str(file), told_roles)
    return replace(untyped, layout=replace(layout, ignored=ignored))


def read_rows(source: Source, progress: Progress | None = None) -> Iterator[Row]:
    """Every row in order.

    What can't be read is a row whose value is Unreadable, with its reason; nothing is raised.
    """
    number = 0
    for row in _guarded(source, progress):
        number = row.number
        yield row
        if isinstance(row.value, Unreadable) and row.value.last:
            return
    if _identity_or_none(source.file) != source.identity:
        reason = "the file was changed while it was read"
        yield Row(
            number + 1,
            0,
            Unreadable(
                "data-changed", reason, fix="wait until it is written, then again", last=True
            ),
        )


def _guarded(source: Source, progress: Progress | None) -> Iterator[Row]:
    number = 0
    try:
        if source.container == "parquet":
            yield from parquet_rows(source.file, progress)
            return
        with files.open_regular(source.file) as raw:
            stream: Any = _Counted(raw, source.size, progress) if progress else raw
            if source.compressed:
                stream = _AsFarAsItGoes(fileobj=stream)
            for row in _reader(source, stream):
                number = row.number
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"the gzip data end too early or are damaged: {error}"
        yield Row(
            number + 1,
            0,
            Unreadable(
                "data-gzip",
                reason,
                fix=f"gzip -t {quote(str(source.file))}; copy it again",
                last=True,
            ),
        )
    except OSError as error:
        yield Row(
            number + 1,
            0,
            Unreadable(
                "data-unreadable", f"can't be read on: {error.strerror or error}", last=True
            ),
        )


def _reader(source: Source, stream: IO[bytes]) -> Iterator[Row]:
    if source.container == "jsonl":
        return readers.json_lines(stream, source.file)
    if source.container == "json":
        return json_array(stream, source.file)
    return readers.csv_rows(stream, source.file, source.delimiter)


class _AsFarAsItGoes(gzip.GzipFile):
    """Gives what could be decompressed before it fails at data that are cut short."""

    def read(self, size: int | None = -1) -> bytes:
        return self.read1(-1 if size is None else size)


class _Counted(io.RawIOBase):
    """A stream that tells how far it was read."""

    def __init__(self, stream: IO[bytes], size: int, progress: Progress) -> None:
        self._stream, self._size, self._progress = stream, size, progress

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._progress(self._stream.tell(), self._size)
        return content


def _parse_formats(formats: str | None) -> tuple[Container | None, LayoutName | None]:
    container: Container | None = None
    layout: LayoutName | None = None
    for word in filter(None, (word.strip().lower() for word in (formats or "").split(","))):
        if word in layouts.NAMES:
            layout = word
        elif word in CONTAINER_NAMES:
            container = cast(Container, word)
        else:
            known = ", ".join((*layouts.NAMES, *CONTAINER_NAMES))
            raise UsageError("data-format", f"--format knows {known}, not {word!r}")
    return container, layout


def _identity(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            raise unreadable(
                file, "a folder, not a file", fix=f"name one file of it: ls {quote(str(file))}"
            )
        if not stat.S_ISREG(found.st_mode):
            raise unreadable(
                file, "no regular file (a pipe or device)", fix="write it to a file first"
            )
        with files.open_regular(file):
            return found.st_size, found.st_mtime_ns, found.st_ino
    except OSError as error:
        reason = (
            "it links to itself"
            if error.errno == errno.ELOOP
            else (error.strerror or str(error)).lower()
        )
        raise InputError("data-unreadable", f"can't be read: {reason}", where=str(file)) from error


def _identity_or_none(file: Path) -> tuple[int, int, int] | None:
    try:
        return _identity(file)
    except InputError:
        return None


def _sample(source: Source) -> list[Any]:
    """The first rows.

    A file whose first rows are all broken has none: it is taken for Alpaca, and each is told.
    """
    taken: list[Any] = []
    room = _SAMPLE_BYTES
    for row in itertools.islice(_guarded(source, None), _SAMPLE_ROWS):
        taken.append(row.value)
        room -= len(row.raw or b"")
        if room < 0:
            break
    return taken


def digest_of(file: Path, progress: Progress | None = None) -> str:
    """sha256 of a file's bytes.

    Raises:
        InputError: it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with files.open_regular(file) as raw:
            stream: Any = _Counted(raw, file.stat().st_size, progress) if progress else raw
            while chunk := stream.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(
            "data-unreadable", f"can't be read: {error.strerror}", where=str(file)
        ) from error
    return digest.hexdigest()


def halves(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """One bar for two passes over a file."""
    if progress is None:
        return None, None
    return (lambda done, total: progress(done, 2 * total)), (
        lambda done, total: progress(total + done, 2 * total)
    )
