"""One prediction: did it fail, is it empty, cut off, looping, JSON, equal to the reference?"""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from iisft.evaluation.reading import Row
from iisft.json_values import DEEPEST, nests_within

DEFAULT_ERROR_MARKER = "ERROR_GENERATION"
NO_JSON = object()
"""What parse() gives for text that is not JSON (None is JSON's null)."""

# A loop: the answer ends in at least so many repetitions of a passage, together at least so long.
_LOOP_REPETITIONS = 4
_LOOP_CHARACTERS = 80
_LOOP_PROBE = 12  # characters at the end that must occur again one period earlier
_LOOP_LONGEST = 1500  # characters of the longest passage that is recognised
_DEEP = re.compile(rf'(?:[\[{{]\s*(?:"[^"\\]*"\s*:\s*)?){{{DEEPEST + 1}}}')


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one prediction is. `value`: the parsed answer, or NO_JSON."""

    error: bool
    empty: bool = False
    cut_off: bool = False
    loop: bool = False
    fenced: bool = False
    exact: bool = False
    deep: bool = False
    value: Any = NO_JSON

    @property
    def valid_json(self) -> bool:
        return self.value is not NO_JSON


def judge(row: Row, error_marker: str = DEFAULT_ERROR_MARKER) -> Outcome:
    """Judge one prediction. Surrounding white space is ignored, in the exact match too."""
    answer = row.prediction.strip()
    if row.error is not None or (error_marker and answer == error_marker):
        return Outcome(error=True)
    value = parse(answer)
    return Outcome(
        error=False,
        empty=not answer,
        cut_off=row.stop == "length",
        loop=ends_in_a_loop(answer),
        fenced=value is NO_JSON and _is_fenced_json(answer),
        exact=row.reference is not None and answer == row.reference.strip(),
        deep=value is NO_JSON and _DEEP.match(answer) is not None,
        value=value,
    )


def parse(text: str) -> Any:
    """The JSON value that the whole text is, strictly (RFC 8259: no NaN, no trailing text, at most
    DEEPEST levels), or NO_JSON.
    """
    try:
        value = orjson.loads(text)
    except ValueError:
        return NO_JSON
    shallow = text.count("[") + text.count("{") <= DEEPEST or nests_within(value, DEEPEST)
    return value if shallow else NO_JSON


def ends_in_a_loop(answer: str) -> bool:
    """Whether the answer ends in a passage repeated over and over, perhaps cut off in the last."""
    if len(answer) < _LOOP_CHARACTERS:
        return False
    tail = answer[-_LOOP_LONGEST * (_LOOP_REPETITIONS + 1) :]
    before = tail.rfind(tail[-_LOOP_PROBE:], 0, len(tail) - 1)
    period = len(tail) - _LOOP_PROBE - before
    needed = max(_LOOP_REPETITIONS * period, _LOOP_CHARACTERS)
    if before < 0 or needed > len(tail):
        return False
    passage = tail[-period:]
    return tail.endswith((passage * (needed // period + 1))[-needed:])


def _is_fenced_json(answer: str) -> bool:
    if not answer.startswith("```") or not answer.endswith("```"):
        return False
    inside = answer[3:-3].removeprefix("json")
    return parse(inside.strip()) is not NO_JSON
