"""JSON of any origin: parsed within a depth, written so that every reader takes it."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 100
"""Levels of a document. Python's own parsers and writers end at about 1000, with RecursionError."""
SURROGATES = re.compile("[\ud800-\udfff]")


def parse_json(content: bytes | str) -> Any:
    """One JSON document that nests at most DEEPEST levels.

    Raises:
        ValueError: it is not JSON, or nests deeper.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEEPEST} levels") from None
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    opened = raw.count(b"[") + raw.count(b"{")
    if opened > DEEPEST and not nests_within(value, DEEPEST):
        raise ValueError(f"it nests deeper than {DEEPEST} levels")
    return value


def json_text(value: Any, *, indent: int | None = None) -> str:
    """One JSON document that every reader takes: what is not a finite number is null, half of a
    surrogate pair the replacement character, and what nests deeper than DEEPEST levels is cut off.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (ValueError, RecursionError):
        text = json.dumps(_plain(value, DEEPEST), ensure_ascii=False, indent=indent)
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def _plain(value: Any, levels: int) -> Any:
    if isinstance(value, dict | list | tuple):
        if levels == 0:
            return f"(deeper than {DEEPEST} levels)"
        if isinstance(value, dict):
            return {key: _plain(inner, levels - 1) for key, inner in value.items()}
        return [_plain(inner, levels - 1) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_of(document: Mapping[str, Any], key: str) -> str:
    """The text at a key, the first one of a list of them; "" where something else stands."""
    value = document.get(key)
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else ""


def nests_within(value: Any, levels: int) -> bool:
    """Whether lists and mappings of plain values stand at most so deep in one another."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False
