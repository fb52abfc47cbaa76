"""JSON inside a row: keys that an object has twice, long integers, and tool calls as LLaMA-Factory
reads them.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from iisft.data.check.findings import RowFinding, excerpt, flaw, type_name
from iisft.data.read.rows import Row
from iisft.llamafactory import tools as tool_forms


def may_repeat_a_key(row: Row) -> bool:
    """Whether keys_twice() has to look at the row: hardly ever where it finds nothing.

    A parser that drops a key drops its colon. orjson writes every other one of the row again, as
    colons are never escaped but by hand.
    """
    raw = row.raw
    if raw is None:
        return False
    try:
        return raw.count(b":") != orjson.dumps(row.value).count(b":")
    except TypeError:  # an integer beyond 64 bits
        return True


def keys_twice(row: Row) -> Iterator[RowFinding]:
    """A key that an object of a row has more than once, at any depth: which value is meant?

    A parser takes the last one without a word; pyarrow, which LLaMA-Factory reads rows with, stops.
    """
    if row.raw is not None and may_repeat_a_key(row):
        yield from _finding("", row.raw)


def names_twice(field: str, text: str) -> Iterator[RowFinding]:
    """The same in a text of a row that is read as JSON later."""
    yield from _finding(field, text)


def _finding(field: str, text: str | bytes) -> Iterator[RowFinding]:
    twice = _repeated(text)
    if twice:
        where = f"{field}: {twice[0]}" if field else twice[0]
        yield flaw(where, "key-twice", "the key is there more than once in one object")


def _repeated(text: str | bytes) -> list[str]:
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(name for name in found if names.count(name) > 1)
        return found

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text, object_pairs_hook=look)
    return twice


_LONG_NUMBER = re.compile(rb"[0-9]{19}").search


def to_the_digit(row: Row) -> Any:
    """The row's value; orjson makes floats of integers beyond 64 bits."""
    if row.raw is None or not _LONG_NUMBER(row.raw) or not isinstance(row.value, dict):
        return row.value
    try:
        return json.loads(row.raw)
    except (ValueError, RecursionError):
        return row.value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def calls_as_text(calls: Any) -> tuple[str, str]:
    """Tool calls as the JSON that LLaMA-Factory reads, and what is wrong with them."""
    listed = calls if isinstance(calls, list) else [calls]
    plain = []
    for call in listed:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return "", "a tool call without a name"
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            if twice := _repeated(arguments):
                return "", f"arguments with the key {twice[0]} more than once"
            try:
                arguments = json.loads(arguments, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                return "", "arguments that are no JSON"
        if not isinstance(arguments, dict):
            return "", f"arguments are an object, not {type_name(arguments)}"
        plain.append({"name": function["name"], "arguments": arguments})
    return json.dumps(plain, ensure_ascii=False), ""


def call_problems(field: str, content: str) -> Iterator[RowFinding]:
    """What FunctionFormatter would end a training with, and keys that a call has twice."""
    yield from names_twice(field, content)
    try:
        tool_forms.call("qwen", content, tool_forms.THOUGHT_WORDS, tool_forms.CALL_WORDS)
    except tool_forms.Unrenderable:
        text = (
            "LLaMA-Factory can't read this call: it is JSON with name and arguments, alone, after "
            f"a thought ({'...'.join(tool_forms.THOUGHT_WORDS)!r}), or between "
            f"{' and '.join(tool_forms.CALL_WORDS)}"
        )
        yield flaw(field, "tool-call-shape", text, excerpt(content))
