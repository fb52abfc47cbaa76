"""What a data file is, by its first bytes: JSON, JSON lines, CSV or Parquet, gzipped or not; and
forms that are not read, each with the command that converts it.
"""

import contextlib
import csv
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from iisft import files
from iisft.data.read import encodings
from iisft.errors import InputError

Container = Literal["json", "jsonl", "csv", "parquet"]


CONTAINER_NAMES = {"json": "JSON array", "jsonl": "JSON lines", "csv": "CSV", "parquet": "Parquet"}


_HEAD = 2**16
_TABLE = "this is a table by columns or by index, as pandas writes it"
_OVER_LINES = "this is an object over several lines; JSON lines have one row in each line"
_KEY = rb'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*'
_COLUMN_FORMS = (
    # pandas' to_json: split, index, columns; and a dict of lists, whose first column is a prompt
    (
        re.compile(rb'\{\s*"columns"\s*:\s*\[[^\]]*\]\s*,\s*"index"\s*:\s*\['),
        ".columns as $k | .data[] | [$k, .] | transpose | map({(.[0]): .[1]}) | add",
    ),
    (re.compile(rb'\{\s*"0"\s*:\s*\{'), ".[]"),
    (
        re.compile(
            _KEY + rb'\{\s*"0"\s*:|\{\s*"(?:instruction|input|question|prompt|system)"\s*:\s*\[\s*"'
        ),
        ". as $c | ($c | to_entries[0].value | keys_unsorted[]) as $i | $c | map_values(.[$i])",
    ),
)


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
        refuse_columns(text, file)
        refuse_one_object(text, file)
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


def refuse_wrapper(objects: list[dict[str, Any]], where: str) -> None:
    """One object that has the rows in a list is not a row."""
    if len(objects) == 1 and not {"instruction", "input", "output"} & objects[0].keys():
        for key, value in objects[0].items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                fix = f"jq -c {quote(f'.{json.dumps(key)}[]')} {quote(where)} > rows.jsonl"
                raise InputError(
                    "data-kind",
                    f"this is one object with its rows in {key!r}",
                    where=where,
                    fix=fix,
                )


def refuse_preferences(
    objects: list[dict[str, Any]], keys: Counter[str], columns: Mapping[str, str], where: str
) -> None:
    """Two answers to choose from, and none that is the answer."""
    rejected = next((key for key in keys if key.startswith("rejected")), None)
    if "chosen" not in keys or rejected is None or columns.get("output", "output") in keys:
        return
    fix, chosen = "", objects[0].get("chosen")
    prompts = ("instruction", "input", "prompt", "question")
    prompt = next((key for key in prompts if key in keys), "")
    if prompt and isinstance(chosen, str):
        told = "" if prompt in ("instruction", "input") else f"instruction={prompt},"
        fix = f"--columns {told}answer=chosen --ignore {quote(rejected)} trains on the chosen ones"
    elif isinstance(chosen, list):
        rows = "{messages: (((.prompt | arrays) // []) + .chosen)}"
        fix = f"jq -c {quote(rows)} {quote(where)} > rows.jsonl"
    raise InputError(
        "preference-data",
        "preference data (DPO): each row has a chosen and a rejected answer, and supervised "
        "training reads one answer",
        where=where,
        fix=fix or "write the chosen answers as rows of their own, with instruction and output",
    )


def refuse_gemini(objects: list[dict[str, Any]], where: str) -> None:
    contents = objects[0].get("contents") if objects else None
    first = contents[0] if isinstance(contents, list) and contents else None
    if isinstance(first, dict) and isinstance(first.get("parts"), list):
        rows = (
            'def text: [.parts[].text] | join(""); {system: (.systemInstruction // {parts: '
            '[{text: ""}]} | text), messages: [.contents[] | {role: (if .role == "model" then '
            '"assistant" else "user" end), content: text}]}'
        )
        fix = f"jq -c {quote(rows)} {quote(where)} > rows.jsonl"
        text = "these are Gemini's rows (contents, parts)"
        raise InputError("data-kind", text, where=where, fix=fix)


def refuse_columns(text: bytes, file: Path) -> None:
    """A table that was written column by column is one object, and no row."""
    for form, rows in _COLUMN_FORMS:
        if form.match(text):
            fix = f"jq -c {quote(rows)} {quote(str(file))} > rows.jsonl"
            raise InputError("data-kind", _TABLE, where=str(file), fix=fix)


def refuse_one_object(text: bytes, file: Path) -> None:
    """One object over many lines is not JSON lines: a row of its own, or a wrapper around the list
    of rows.
    """
    first, newline, _ = text.partition(b"\n")
    if newline and first.strip() == b"{":
        fix = f"jq -c . {quote(str(file))} > rows.jsonl"
        raise InputError("data-kind", _OVER_LINES, where=str(file), fix=fix)
