"""A row's label: what strata, target mixes and weights go by.

`FIELD` is a key of the row; `FIELD.KEY` a key inside it (an object, a text that is a JSON object,
or a line of a text, `KEY: value` or `- KEY: value`); `answer.KEY` the same of the answer;
`answer-shape` the keys of an answer that is a JSON object.
"""

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from iisft.data.check.repeats import answer_of

MISSING = "(none)"
ANSWER_SHAPE = "answer-shape"
WORTHLESS = "worthless"
"""The name by which a mix may call answers that are an object with one key, such as
{"UUID": ...}.
"""
_LONGEST = 80

Label = Callable[[Any, dict[str, Any]], str]
"""From a row as it stands in the file and its staged form to its label."""


def label_of(path: str) -> Label:
    """The function that labels rows by this path.

    A label that is a URL is its host: a domain is what repeats.
    """
    if path == ANSWER_SHAPE:
        return lambda _, staged: answer_shape(answer_of(staged))
    field, _, key = path.partition(".")
    if field == "answer" and key:
        return lambda _, staged: _shown(_inside(answer_of(staged), key))

    def by_field(row: Any, _: dict[str, Any]) -> str:
        if path in row:
            return _shown(row[path])
        return _shown(_inside(row.get(field), key)) if key else MISSING

    return by_field


def answer_shape(answer: str) -> str:
    """`{A, B}` for a JSON object with these keys, else array, number, text..."""
    parsed = _parsed(answer)
    if isinstance(parsed, dict):
        return "{" + ", ".join(sorted(parsed)) + "}"
    names = {list: "array", int: "number", float: "number", bool: "true/false", str: "string"}
    return names.get(type(parsed), "text")


def is_worthless(label: str) -> bool:
    """Whether an answer's shape is an object with one key."""
    return label.startswith("{") and len(label) > 2 and "," not in label


def _parsed(text: str) -> Any:
    if text[:1] not in '{["-0123456789tf':
        return None
    try:
        return orjson.loads(text)
    except ValueError:
        return None


def _inside(value: Any, key: str) -> Any:
    parsed = _parsed(value) if isinstance(value, str) else value
    if isinstance(parsed, dict):
        return parsed.get(key)
    if isinstance(value, str):
        found = re.search(rf"^[-*\s]*{re.escape(key)}\s*[:：]\s*(.+)$", value, re.MULTILINE)
        return found.group(1).strip() if found else None
    return None


def _shown(value: Any) -> str:
    if value is None or value == "":
        return MISSING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode()
    if text.startswith(("http://", "https://")):
        with contextlib.suppress(ValueError):
            text = urlsplit(text).hostname or text
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
