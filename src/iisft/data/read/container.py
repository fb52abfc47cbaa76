"""What a data file is, by its first bytes: JSON, JSON lines, CSV or Parquet, gzipped or not."""

import contextlib
import csv
import zlib
from pathlib import Path
from shlex import quote
from typing import Literal

from iisft import files
from iisft.data.read import encodings, foreign
from iisft.errors import InputError

Container = Literal["json", "jsonl", "csv", "parquet"]


CONTAINER_NAMES = {"json": "JSON array", "jsonl": "JSON lines", "csv": "CSV", "parquet": "Parquet"}


_HEAD = 2**16


def first_bytes(file: Path) -> bytes:
    try:
        with files.open_regular(file) as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise InputError(
            "data-unreadable", f"can't be read: {error.strerror}", where=str(file)
        ) from error


def decompressed_head(file: Path) -> bytes:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    head, packed = b"", first_bytes(file)
    with contextlib.suppress(zlib.error):  # what is damaged later is told when its row is reached
        for start in range(0, len(packed), 256):
            head += stream.decompress(packed[start : start + 256], _HEAD)
    if not head and not stream.eof:
        fix = f"gzip -t {quote(str(file))}; copy it again"
        raise unreadable(file, "gzip data that are damaged or cut short", fix=fix)
    return head[:_HEAD]


def container_of(head: bytes, file: Path, compressed: bool) -> Container:
    if head.startswith(b"PAR1"):
        return "parquet"
    if other := encodings.foreign_format(head, file):
        raise unreadable(file, other[0], fix=other[1])
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise InputError("data-empty", "there is no row in it", where=str(file))
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        foreign.refuse_columns(text, file)
        foreign.refuse_one_object(text, file)
        return "jsonl"
    if delimiter_of(head):
        return "csv"
    raise unreadable(
        file,
        "neither JSON, JSON lines, CSV with a header, nor Parquet",
        fix="--format says what it is",
    )


def delimiter_of(head: bytes) -> str:
    """The delimiter of a CSV header, '' when the first line doesn't look like one."""
    first = (
        head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].decode("utf-8", "replace")
    )
    best = max(",;\t|", key=first.count)
    try:
        names = next(csv.reader([first], delimiter=best), [])
    except csv.Error:
        return ""
    if len(names) > 2 and not names[0]:
        names = names[1:]  # pandas' index has no name
    return best if len(names) > 1 and all(0 < len(name.strip()) <= 60 for name in names) else ""


def unreadable(file: Path, what: str, fix: str = "") -> InputError:
    return InputError("data-kind", f"this is {what}", where=str(file), fix=fix)
