"""A streaming reader for one JSON array: bounded memory, every element with its number and line.

The stdlib's decoder can parse one element at an offset; where the end of an element is easy to
guess, orjson parses it.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import IO, Any

import orjson

from iisft.data.read import readers
from iisft.data.read.rows import Row, Unreadable

_LONGEST_TOKEN = 32  # of JSON outside strings and numbers, an escape included
_NUMBER_GOES_ON = 3  # characters of "e+1": with fewer of them in sight, a number may go on
_OPENING = re.compile(r'\{\s*"[^"\\]*"')


class _Text:
    """Decoded text of a stream in a window that is moved along.

    `line` is the line of the window's position.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.window = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def more(self) -> bool:
        """Read on, doubling the window while nothing is consumed; False at the end of the file."""
        wanted = max(readers.CHUNK, len(self.window) - self.position)
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
        """The next one that is not white space, '' at the end. Stays before it."""
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
    """The elements of one array.

    After one that is broken nothing can be read: where it ends is unknown.
    """
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
            fix = (
                f"jq -c '.[]' {quote(str(file))} > rows.jsonl"
                if _here(text).startswith("[")
                else ""
            )
            fault = Unreadable(
                "row-json", "text after the end of the array", _here(text), fix, last=True
            )
            yield Row(number + 1, text.line, fault)
    except UnicodeDecodeError as fault:
        yield Row(
            number + 1, text.line, readers.no_utf8(fault.object, fault, file)._replace(last=True)
        )


def _elements(text: _Text) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        start = text.next_character()
        line = text.line
        if start in ("]", ""):
            reason = (
                "a comma after the last row"
                if start
                else "the array doesn't end: the file is cut short"
            )
            yield Row(number, line, Unreadable("row-json", reason, last=not start))
            text.advance(text.position + len(start))
            return
        value, raw = _element(text)
        yield Row(number, line, value, raw)
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
            yield Row(
                number + 1, text.line, Unreadable("row-json", reason, _here(text), last=not after)
            )
            if not after:
                return


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _element(text: _Text) -> tuple[Any, bytes | None]:
    """The element at the window's position, and its bytes where orjson could parse them."""
    end = _likely_end(text.window, text.position)
    if end:
        raw = text.window[text.position : end].encode()
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
        else:
            text.advance(end)
            return value, raw
    return _element_by_parsing(text)


def _likely_end(window: str, start: int) -> int:
    """Where the element ends if the next one begins with the same key, else 0.

    A guess that costs a search. It is right when what lies between parses: no object is the
    beginning of another.
    """
    opening = _OPENING.match(window, start)
    following = window.find(opening.group(), opening.end()) if opening else -1
    end = window.rfind("}", start, following) + 1 if following > 0 else 0
    return end if window[end:following].strip() == "," else 0


def _element_by_parsing(text: _Text) -> tuple[Any, bytes | None]:
    """Parse one element, reading on as long as it may be incomplete: slower than orjson, but it
    finds the end.
    """
    while True:
        try:
            value, end = _decoder.raw_decode(text.window, text.position)
        except RecursionError:
            return Unreadable("row-json", "nested too deep", _here(text), last=True), None
        except ValueError as error:
            if not _may_be_incomplete(text, error):
                return _broken_element(text, error), None
            if len(text.window) - text.position > readers.ROW_LIMIT:
                reason = f"this row is {readers.TOO_LONG}"
                return Unreadable("row-too-long", reason, _here(text), last=True), None
            if text.ended or not text.more():
                return _broken_element(text, error), None
            continue
        length = end - text.position  # reading on moves the window
        if end + _NUMBER_GOES_ON <= len(text.window) or text.ended or not text.more():
            raw = text.window[text.position : text.position + length].encode()
            text.advance(text.position + length)
            try:
                orjson.loads(raw)
            except orjson.JSONDecodeError:  # half of a surrogate pair, which texts are searched for
                return value, None
            return value, raw


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
    cut = (
        ", the file is cut short?" if unterminated or not text.window.rstrip().endswith("]") else ""
    )
    what = error.msg.lower().removesuffix(" at").removesuffix(" starting")
    reason = f"no valid JSON{place}: {what}{cut}; the rows after it were not read"
    return Unreadable("row-json", reason, readers.around(text.window, error.pos), last=True)


def _here(text: _Text) -> str:
    return text.window[text.position : text.position + readers.EXCERPT].strip()
