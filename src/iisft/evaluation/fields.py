"""JSON answers: against a schema, and field by field (right, missing, extra; lists as sets, numbers
by their distance).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from iisft import files, json_values, process
from iisft.errors import InputError
from iisft.evaluation import optional
from iisft.evaluation.outcome import NO_JSON

_MOST_FIELDS = 200
_MOST_VALUES = 1000  # a field with more different values has no majority worth naming
_DEEPEST = 4  # deeper objects are compared as one value
_ID_LENGTH = 6  # shorter values occur in prompts by accident
# of the rows whose reference value is in the prompt, and of the values that are there once
_ID_SHARE = 0.9
_LARGEST = 8 * 2**20
_LONGEST_CHECK_S = 5.0
_EXPLAINED = 500  # finding the best match is slow: later faults are only counted


@dataclass
class _Field:
    rows: int = 0
    missing: int = 0
    exact: int = 0
    lists: int = 0
    list_f1: float = 0.0
    numbers: int = 0
    distance: float = 0.0
    in_prompt: int = 0
    values: Counter[bytes] | None = field(default_factory=Counter)
    hashes: set[int] = field(default_factory=set)


@dataclass
class FieldTally:
    """Counts pairs of parsed answers.

    A prediction that is not a JSON object misses every field of its reference. `more`: there were
    fields beyond the 200 that are compared.
    """

    fields: dict[str, _Field] = field(default_factory=dict)
    extra: Counter[str] = field(default_factory=Counter)
    more: bool = False
    rows_with_missing: int = 0
    rows_with_extra: int = 0

    def add(self, reference: Any, prediction: Any, prompt: str | None) -> None:
        expected = dict(leaves(reference))
        found = dict(leaves(prediction)) if isinstance(prediction, dict) else {}
        missing = False
        for pointer, value in expected.items():
            if pointer not in self.fields:
                if len(self.fields) >= _MOST_FIELDS:
                    self.more = True
                    continue
                self.fields[pointer] = _Field()
            answer = found.get(pointer, NO_JSON)
            missing |= answer is NO_JSON
            _compare(self.fields[pointer], value, answer, prompt)
        extra = found.keys() - expected.keys()
        for pointer in found:  # in the answer's order
            if pointer in extra and (pointer in self.extra or len(self.extra) < _MOST_FIELDS):
                self.extra[pointer] += 1
        if isinstance(prediction, dict):
            self.rows_with_missing += missing
            self.rows_with_extra += bool(extra)

    def as_json(self) -> dict[str, Any]:
        """`fields` {pointer: figures}, `ids_echoed` {pointer: rate where present}, extra keys."""
        fields = {pointer: _figures(tally) for pointer, tally in self.fields.items()}
        ids = {
            pointer: figures["exact_when_present"]
            for pointer, figures in fields.items()
            if _is_id(self.fields[pointer]) and figures["exact_when_present"] is not None
        }
        return {
            "fields": fields,
            "ids_echoed": ids,
            "rows_with_missing_keys": self.rows_with_missing,
            "rows_with_extra_keys": self.rows_with_extra,
            "extra_keys": dict(self.extra.most_common(20)),
        }


def leaves(value: Any, pointer: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """JSON pointer and value of everything in an object that is not an object; lists are values."""
    if isinstance(value, dict) and value and depth < _DEEPEST:
        for key, inner in value.items():
            name = key.replace("~", "~0").replace("/", "~1") if "~" in key or "/" in key else key
            yield from leaves(inner, f"{pointer}/{name}", depth + 1)
    elif pointer:
        yield pointer, value


def list_f1(reference: list[Any], prediction: list[Any]) -> float:
    """F1 of two lists as sets of their items; two empty ones agree."""
    one, other = ({_canonical(item) for item in items} for items in (reference, prediction))
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def _compare(tally: _Field, value: Any, answer: Any, prompt: str | None) -> None:
    tally.rows += 1
    tally.missing += answer is NO_JSON
    # 1 equals 1.0, but in Python True equals 1 too
    tally.exact += answer == value and isinstance(answer, bool) == isinstance(value, bool)
    if isinstance(value, list):
        tally.lists += 1
        tally.list_f1 += list_f1(value, answer) if isinstance(answer, list) else 0.0
    elif type(value) in (int, float) and type(answer) in (int, float):
        tally.numbers += 1
        tally.distance += abs(value - answer)
    elif isinstance(value, str) and len(value) >= _ID_LENGTH:
        tally.in_prompt += prompt is not None and value in prompt
        tally.hashes.add(hash(value))
    if tally.values is not None:
        tally.values[_canonical(value)] += 1
        if len(tally.values) > _MOST_VALUES:
            tally.values = None


def _figures(tally: _Field) -> dict[str, Any]:
    present = tally.rows - tally.missing
    found: dict[str, Any] = {
        "rows": tally.rows,
        "missing": tally.missing,
        "exact": tally.exact / tally.rows,
        "exact_when_present": tally.exact / present if present else None,
        "majority": tally.values.most_common(1)[0][1] / tally.rows if tally.values else None,
    }
    if tally.lists:
        found["list_f1"] = tally.list_f1 / tally.lists
    if tally.numbers:
        found |= {"mean_abs_error": tally.distance / tally.numbers, "numbers": tally.numbers}
    return found


def _is_id(tally: _Field) -> bool:
    return (
        tally.in_prompt >= _ID_SHARE * tally.rows
        and len(tally.hashes) >= _ID_SHARE * tally.rows > 1
    )


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


class SchemaCheck:
    """Counts answers that fit the schema, and what the others break most.

    Raises:
        InputError: the file is missing, not JSON, or not a JSON Schema.
        EnvironmentFault: jsonschema is missing.
    """

    def __init__(self, path: Path) -> None:
        jsonschema = optional.load("jsonschema", "--schema")
        try:
            schema = json_values.parse_json(files.read_bytes(path, _LARGEST))
        except OSError as error:
            raise InputError(
                "schema-unreadable", f"can't be read: {error.strerror}", where=str(path)
            ) from error
        except ValueError as error:
            raise InputError(
                "schema-broken", f"the schema is not JSON: {error}", where=str(path)
            ) from error
        if not isinstance(schema, dict | bool):
            raise InputError("schema-broken", "the schema is no JSON object", where=str(path))
        validator = jsonschema.validators.validator_for(
            schema, default=jsonschema.Draft202012Validator
        )
        try:
            validator.check_schema(schema)
        except RecursionError as error:
            message = "the schema refers to itself without end"
            raise InputError("schema-broken", message, where=str(path)) from error
        except jsonschema.SchemaError as error:
            place = "/".join(map(str, error.absolute_path)) or "the top"
            message = f"this is not a valid JSON Schema: {error.message} (at {place})"
            raise InputError(
                "schema-broken", message, where=str(path), fix="fix the schema"
            ) from error
        # without a way to fetch anything: a $ref may name any file or address
        referencing = optional.load("referencing", "--schema")
        self._validator = validator(schema, registry=referencing.Registry())
        self._best = jsonschema.exceptions.best_match
        self._unresolvable = referencing.exceptions.Unresolvable
        self._path = path
        self.fits = 0
        self.faults: Counter[str] = Counter()

    def add(self, value: Any) -> bool:
        """Count one parsed answer; returns whether it fits."""
        try:
            with process.time_limit(_LONGEST_CHECK_S):
                return self._add(value)
        except TimeoutError:
            message = (
                f"checking one answer takes longer than {_LONGEST_CHECK_S:g} s: a pattern that "
                "goes back and forth, as (a+)+ does, or parts that refer to each other"
            )
        except RecursionError:
            message = "the schema refers to itself without end"
        except self._unresolvable as error:
            message = f"the schema refers to what does not stand in it: {error}"
        except re.error as error:
            message = f"a pattern of the schema is not a regular expression: {error}"
        raise InputError("schema-broken", message, where=str(self._path), fix="fix the schema")

    def _add(self, value: Any) -> bool:
        if self._validator.is_valid(value):
            self.fits += 1
            return True
        if self.faults.total() < _EXPLAINED:
            fault = self._best(self._validator.iter_errors(value))
            place = (
                "/" + "/".join(map(str, fault.absolute_path))
                if fault.absolute_path
                else "the whole answer"
            )
            self.faults[f"{place} breaks {fault.validator!r}"] += 1
        return False
