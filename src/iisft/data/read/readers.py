"""Streaming readers for JSON lines, CSV and Parquet: bounded memory, every row with its number.

What can't be read becomes Unreadable in the row's place, so that one pass tells everything.
"""

import codecs
import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shlex import quote
from typing import IO, Any

import orjson

from iisft.data.read import encodings
from iisft.data.read.rows import Row, Unreadable

ROW_LIMIT = 16 * 2**20
"""Bytes (lines), or characters (array, CSV), of the longest row that is read; no model trains
on a longer one.
"""
CHUNK = 2**20
EXCERPT = 40
_BOM = b"\xef\xbb\xbf"
INDEX = "Unnamed: 0"
"""What pandas and datasets call the index, whose column to_csv gives no name."""
TOO_LONG = f"longer than {ROW_LIMIT // 2**20} MiB, which no model can be trained on"
_BATCH_ROWS = 512


def json_lines(stream: IO[bytes], file: Path) -> Iterator[Row]:
    """One row per line that isn't blank."""
    loads = orjson.loads
    mixed: bool | None = None
    number = line = 0
    for text in _lines(stream):
        line += 1
        value: Any
        if text is None:
            value = Unreadable("row-too-long", f"this line is {TOO_LONG}")
        else:
            try:
                value = loads(text)
            except orjson.JSONDecodeError as error:
                if not text.strip():
                    continue
                value = _why_no_json(text, error, file)
                if value.code == "row-encoding":
                    mixed = encodings.has_utf8_lines(file) if mixed is None else mixed
                    if mixed:
                        value = value._replace(fix=encodings.conversion_of_lines(text, file))
        number += 1
        yield Row(number, line, value, text)


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends.

    None for one that is longer than ROW_LIMIT, which is skipped without being kept.
    """
    rest, skipping, first = b"", False, True
    while chunk := stream.read(CHUNK):
        if first:
            chunk, first = chunk.removeprefix(_BOM), False
        *lines, rest = (rest + chunk).split(b"\n")
        if lines and skipping:
            skipping = False
            lines[0:1] = [None]  # type: ignore[list-item]
        yield from lines
        if skipping or len(rest) > ROW_LIMIT:
            rest, skipping = b"", True
    if skipping:
        yield None
    elif rest:
        yield rest


def _why_no_json(text: bytes, error: orjson.JSONDecodeError, file: Path) -> Unreadable:
    try:
        shown = text.decode("utf-8")
    except UnicodeDecodeError as fault:
        return no_utf8(text, fault, file)
    if not text.strip(b"\x00\r\t "):
        return Unreadable(
            "row-json", "nothing but NUL bytes: the file was torn while it was written"
        )
    reason = error.msg.partition(": line ")[0]
    fix = ""
    if reason == "unexpected content after document":
        reason = "text after the object"
    if reason == "unexpected end of data":
        reason = "the line is cut short"
    if text.rstrip().endswith(b","):
        fix = f"sed 's/,[[:space:]]*$//' {quote(str(file))} > rows.jsonl"
    elif text.strip() in (b"{", b"["):
        fix = f"jq -c . {quote(str(file))} > rows.jsonl"
    return Unreadable(
        "row-json",
        f"no valid JSON: {reason} at column {error.pos + 1}",
        around(shown, error.pos),
        fix,
    )


def no_utf8(content: bytes, fault: UnicodeDecodeError, file: Path) -> Unreadable:
    """What to say about bytes that are not UTF-8."""
    encoding = encodings.guess(content)
    text = (
        f"no UTF-8 text (byte 0x{content[fault.start]:02x}): looks like "
        f"{encodings.shown_name(encoding)}"
    )
    before = content[max(0, fault.start - 10) : fault.start].rpartition(b"\n")[2]
    after = content[fault.start : fault.start + EXCERPT].partition(b"\n")[0]
    excerpt = (before + after).decode(encoding or "latin-1", "replace")
    command = encodings.conversion(encoding, file)
    return Unreadable("row-encoding", text, excerpt.rstrip("\r"), command)


def around(text: str, position: int) -> str:
    return text[max(0, position - EXCERPT // 2) : position + EXCERPT // 2].strip()


def csv_rows(stream: IO[bytes], file: Path, delimiter: str) -> Iterator[Row]:
    """Rows as objects with the header's names as keys; every value is text."""
    csv.field_size_limit(ROW_LIMIT)
    reader = csv.reader(_text_lines(stream), delimiter=delimiter, strict=True)
    number, line = 0, 1
    header: list[str] | None = None
    while True:
        value: Any
        try:
            cells = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError as fault:
            line = reader.line_num + 1
            yield Row(number + 1, line, no_utf8(fault.object, fault, file)._replace(last=True))
            return
        except csv.Error as error:
            at_end = "end of data" in str(error)
            reason = "a quote is opened and never closed" if at_end else f"no valid CSV: {error}"
            value = Unreadable("row-csv", reason, last=at_end or "limit" in str(error))
        else:
            if not cells:
                line = reader.line_num + 1
                continue
            if header is None:
                header, line = [cells[0] or INDEX, *cells[1:]], reader.line_num + 1
                continue
            value = dict(zip(header, cells, strict=False))
            if len(cells) != len(header):
                reason = f"{len(cells)} cells where the header has {len(header)}"
                value = Unreadable("row-csv", reason, delimiter.join(cells)[:EXCERPT])
        number += 1
        yield Row(number, line, value)
        if isinstance(value, Unreadable) and value.last:
            return
        line = reader.line_num + 1


def _text_lines(stream: IO[bytes]) -> Iterable[str]:
    """Decoded lines with their ends, cut at ROW_LIMIT so that no line fills the memory."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    while True:
        chunk = stream.read(CHUNK)
        fault = None
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:  # the lines before it are sound
            fault = error
            text = error.object[: error.start].decode("utf-8-sig")
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line + "\n"
        if fault is not None:
            raise fault
        if not chunk or len(rest) > ROW_LIMIT:
            if rest:
                yield rest
            rest = ""
        if not chunk:
            return


def _without_filling(value: Any, kind: Any) -> Any:
    """The value without null members of its objects.

    All rows of a Parquet column have the members of all: what another row, call or tool has, and
    this one hasn't, `datasets` fills with null. A member that is null everywhere has the type null:
    nobody filled it.
    """
    from pyarrow import types

    if isinstance(value, dict):
        members = ((field, value[field.name]) for field in kind)
        return {
            field.name: _without_filling(member, field.type)
            for field, member in members
            if member is not None or types.is_null(field.type)
        }
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_without_filling(one, kind.value_type) for one in value]
    return value


def parquet_rows(file: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[Row]:
    """Every row as an object; there are no lines.

    A file that is cut short or damaged ends in an Unreadable.
    """
    import pyarrow
    from pyarrow import parquet

    # gives memory back; the others keep what was freed
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    number = 0
    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                if progress:
                    size = file.stat().st_size
                    progress(size * number // max(1, opened.metadata.num_rows), size)
                nested = [
                    (field.name, field.type)
                    for field in batch.schema
                    if pyarrow.types.is_nested(field.type)
                ]
                for value in batch.to_pylist():
                    for name, kind in nested:
                        value[name] = _without_filling(value[name], kind)
                    number += 1
                    yield Row(number, 0, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Row(
            number + 1, 0, Unreadable("row-parquet", f"no whole Parquet file: {reason}", last=True)
        )
