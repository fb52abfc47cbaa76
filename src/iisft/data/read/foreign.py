"""Forms of data that are not read: what each is, and the command that converts it."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from iisft.errors import InputError

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
    prompt = next(
        (key for key in ("instruction", "input", "prompt", "question") if key in keys), ""
    )
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
