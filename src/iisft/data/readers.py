"""Streaming readers for JSON lines, a JSON array and CSV: bounded memory, every row with its number and line.

What can't be read becomes Unreadable in the row's place, so that one pass tells everything. The stdlib's decoder reads
the array because it can parse one element at an offset; orjson reads lines.
"""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from shlex import quote
from typing import IO, Any

import orjson

from iisft.data import encodings
from iisft.data.rows import Row, Unreadable

ROW_LIMIT = 16 * 2**20
"""Bytes (lines), or characters (array, CSV), of the longest row that is read; no model trains on a longer one."""
_CHUNK = 2**20
_EXCERPT = 40
_LONGEST_TOKEN = 32  # of JSON outside strings and numbers, an escape included
_BOM = b"\xef\xbb\xbf"
_TOO_LONG = f"longer than {ROW_LIMIT // 2**20} MiB, which no model can be trained on"


def json_lines(stream: IO[bytes], file: Path) -> Iterator[Row]:
    """One row per line that isn't blank."""
    loads = orjson.loads
    number = line = 0
    for text in _lines(stream):
        line += 1
        value: Any
        if text is None:
            value = Unreadable("row-too-long", f"this line is {_TOO_LONG}")
        else:
            try:
                value = loads(text)
            except orjson.JSONDecodeError as error:
                if not text.strip():
                    continue
                value = _why_no_json(text, error, file)
        number += 1
        yield Row(number, line, value, text)


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is longer than ROW_LIMIT, which is skipped without being kept."""
    rest, skipping, first = b"", False, True
    while chunk := stream.read(_CHUNK):
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
        return Unreadable("row-json", "nothing but NUL bytes: the file was torn while it was written")
    reason = error.msg.partition(": line ")[0]
    fix = ""
    if reason == "unexpected content after document":
        reason = "text after the object"
    if reason == "unexpected end of data":
        reason = "the line is cut short"
    if text.rstrip().endswith(b","):
        fix = "JSON lines have no commas between rows"
    elif text.strip() in (b"{", b"["):
        fix = f"one row per line: jq -c . {quote(str(file))} > rows.jsonl"
    return Unreadable("row-json", f"no valid JSON: {reason} at column {error.pos + 1}", _around(shown, error.pos), fix)


def no_utf8(content: bytes, fault: UnicodeDecodeError, file: Path) -> Unreadable:
    """What to say of bytes that are no UTF-8."""
    encoding = encodings.guess(content)
    text = f"no UTF-8 text (byte 0x{content[fault.start]:02x}): looks like {encodings.shown_name(encoding)}"
    excerpt = content[max(0, fault.start - 10) : fault.start + _EXCERPT].decode(encoding or "latin-1", "replace")
    return Unreadable("row-encoding", text, excerpt, encodings.conversion(encoding, file))


def _around(text: str, position: int) -> str:
    return text[max(0, position - _EXCERPT // 2) : position + _EXCERPT // 2].strip()


class _Text:
    """Decoded text of a stream in a window that is moved along; `line` is the line of the window's position."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.window = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def more(self) -> bool:
        """Read on, doubling the window while nothing is consumed; False at the end of the file."""
        wanted = max(_CHUNK, len(self.window) - self.position)
        chunk = self._stream.read(wanted)
        text = self._decoder.decode(chunk, final=not chunk)
        self.window = self.window[self.position :] + text
        self.position = 0
        self.ended = not chunk
        return bool(chunk)

    def advance(self, position: int) -> None:
        self.line += self.window.count("\n", self.position, position)
        self.position = position

    def next_character(self) -> str:
        """The next one that is no white space, '' at the end. Stays before it."""
        while True:
            rest = self.window[self.position : self.position + 1]
            if rest and not rest.isspace():
                return rest
            if rest:
                position = self.position + 1
                while position < len(self.window) and self.window[position] in " \t\r\n":
                    position += 1
                self.advance(position)
            elif self.ended or not self.more():
                return ""


def json_array(stream: IO[bytes], file: Path) -> Iterator[Row]:
    """The elements of one array. After one that is broken nothing can be read: where it ends is unknown."""
    text = _Text(stream)
    number = 0
    try:
        text.next_character()
        text.advance(text.position + 1)
        if text.next_character() == "]":
            text.advance(text.position + 1)
        else:
            for row in _elements(text):
                number = row.number
                yield row
                if isinstance(row.value, Unreadable) and row.value.last:
                    return
        if text.next_character():
            fix = f"jq -c '.[]' {quote(str(file))} > rows.jsonl" if _here(text).startswith("[") else ""
            fault = Unreadable("row-json", "text after the end of the array", _here(text), fix, last=True)
            yield Row(number + 1, text.line, fault)
    except UnicodeDecodeError as fault:
        yield Row(number + 1, text.line, no_utf8(fault.object, fault, file)._replace(last=True))


def _elements(text: _Text) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        start = text.next_character()
        line = text.line
        if start in ("]", ""):
            reason = "a comma after the last row" if start else "the array doesn't end: the file is cut short"
            yield Row(number, line, Unreadable("row-json", reason, last=not start))
            text.advance(text.position + len(start))
            return
        value = _element(text)
        yield Row(number, line, value)
        if isinstance(value, Unreadable):
            return
        after = text.next_character()
        if after in (",", "]"):
            text.advance(text.position + 1)
            if after == "]":
                return
        else:
            reason = (
                f"a comma or ] is expected after row {number}"
                if after
                else "the array doesn't end: the file is cut short"
            )
            yield Row(number + 1, text.line, Unreadable("row-json", reason, _here(text), last=not after))
            if not after:
                return


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _element(text: _Text) -> Any:
    """Parse one element at the window's position, reading on as long as it may be incomplete."""
    while True:
        try:
            value, end = _decoder.raw_decode(text.window, text.position)
        except RecursionError:
            return Unreadable("row-json", "nested too deep", _here(text), last=True)
        except ValueError as error:
            if not _may_be_incomplete(text, error):
                return _broken_element(text, error)
            if len(text.window) - text.position > ROW_LIMIT:
                return Unreadable("row-too-long", f"this row is {_TOO_LONG}", _here(text), last=True)
            if text.ended or not text.more():
                return _broken_element(text, error)
            continue
        if end < len(text.window) or text.ended or not text.more():
            text.advance(end)
            return value


def _may_be_incomplete(text: _Text, error: ValueError) -> bool:
    """Whether the error may be the end of the window only: there, or a string without an end."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated") or error.pos > len(text.window) - _LONGEST_TOKEN


def _broken_element(text: _Text, error: ValueError) -> Unreadable:
    if not isinstance(error, json.JSONDecodeError):
        return Unreadable("row-json", f"no valid JSON: {error}", _here(text), last=True)
    lines = text.window.count("\n", text.position, error.pos)
    place = f" in line {text.line + lines}" if lines else ""
    unterminated = error.msg.startswith("Unterminated")
    cut = ", the file is cut short?" if unterminated or not text.window.rstrip().endswith("]") else ""
    what = error.msg.lower().removesuffix(" at").removesuffix(" starting")
    reason = f"no valid JSON{place}: {what}{cut}; the rows after it were not read"
    return Unreadable("row-json", reason, _around(text.window, error.pos), last=True)


def _here(text: _Text) -> str:
    return text.window[text.position : text.position + _EXCERPT].strip()


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
                header, line = cells, reader.line_num + 1
                continue
            value = dict(zip(header, cells, strict=False))
            if len(cells) != len(header):
                reason = f"{len(cells)} cells where the header has {len(header)}"
                value = Unreadable("row-csv", reason, delimiter.join(cells)[:_EXCERPT])
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
        chunk = stream.read(_CHUNK)
        *lines, rest = (rest + decoder.decode(chunk, final=not chunk)).split("\n")
        for line in lines:
            yield line + "\n"
        if not chunk or len(rest) > ROW_LIMIT:
            if rest:
                yield rest
            rest = ""
        if not chunk:
            return
