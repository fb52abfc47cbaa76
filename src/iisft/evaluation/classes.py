"""Answers as classes: by a key, by a JSON pointer, by the whole answer, or by its shape."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iisft.errors import InputError, UsageError
from iisft.evaluation.outcome import NO_JSON
from iisft.quoting import is_count

SHAPE = "answer-shape"
WHOLE = "answer"
NO_LABEL = "(none)"
"""The class of a prediction without a label: not JSON, or without the key."""
REST = "*"
_MOST_CLASSES = 50
_SHOWN_KEYS = 3


@dataclass(frozen=True, slots=True)
class Labels:
    """How a class is read from an answer.

    Args:
        by: a top-level key, a JSON pointer (RFC 6901, begins with /), "answer-shape" (the sorted
            top-level keys, joined by +) or "answer" (the text itself).
        names: what is read -> the class's name; "*" takes the rest.
    """

    by: str
    names: Mapping[str, str] = field(default_factory=dict)

    def of(self, answer: str, value: Any) -> str | None:
        """The class of an answer, given as text and as parsed value; None when it has none."""
        read = self._read(answer, value)
        return None if read is None else self.names.get(read, self.names.get(REST, read))

    def _read(self, answer: str, value: Any) -> str | None:
        if self.by == WHOLE:
            return answer.strip() or None
        if value is NO_JSON:
            return None
        if self.by == SHAPE:
            return "+".join(sorted(value)) if isinstance(value, dict) else f"({_kind(value)})"
        if not self.by.startswith("/"):
            value = value.get(self.by, NO_JSON) if isinstance(value, dict) else NO_JSON
        else:
            value = at_pointer(value, self.by)
        return None if value is NO_JSON or isinstance(value, dict | list) else as_text(value)


def at_pointer(value: Any, pointer: str) -> Any:
    """The value at a JSON pointer, or NO_JSON."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and is_count(key) and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return NO_JSON
    return value


def as_text(value: Any) -> str:
    """The class name of a JSON scalar."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_classes(text: str | None) -> dict[str, str]:
    """`drop=UUID,keep=*` as {"UUID": "drop", "*": "keep"}.

    The keys of a shape are joined by +, in any order.

    Raises:
        UsageError: a part without `=`, or the same value for two classes.
    """
    found: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, read = (piece.strip() for piece in part.partition("="))
        read = "+".join(sorted(read.split("+"))) if read != REST else read
        if not name or not equals or not read or read in found:
            raise UsageError(
                "classes",
                f"--classes can't take {part!r}",
                fix="NAME=VALUE,... for example drop=UUID,keep=*",
            )
        found[read] = name
    return found


def chosen(by: str, names: Mapping[str, str], references: Counter[str]) -> Labels:
    """The labels that a person asked for, checked against the references.

    Raises:
        InputError: the references have no class, or too many.
    """
    if not references:
        raise InputError(
            "label-missing",
            f"no reference has a class by --label {by}",
            fix="--label KEY, /a/pointer or answer-shape",
        )
    if len(references) > _MOST_CLASSES:
        raise InputError(
            "label-not-classes",
            f"--label {by} has {len(references)} different values in the references: these are "
            "not classes",
            fix="name another key, or group values: --classes NAME=VALUE,rest=*",
        )
    return Labels(by, names)


def shown(name: str) -> str:
    """A class's name for people: a long shape becomes its first keys and their count."""
    keys = name.split("+")
    if len(keys) <= _SHOWN_KEYS:
        return name
    return f"{'+'.join(keys[:2])}+... ({len(keys)} keys)"


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "true or false"}.get(
        type(value), "null" if value is None else "number"
    )
