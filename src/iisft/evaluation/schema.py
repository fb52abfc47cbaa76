"""Answers checked against a JSON Schema."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from iisft import files, json_values
from iisft.errors import InputError
from iisft.evaluation import optional

_LARGEST = 8 * 2**20
_EXPLAINED = 500  # finding the best match is slow: later faults are only counted


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
            return self._add(value)
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
