"""Answers checked against a JSON Schema."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from iisft.errors import InputError
from iisft.evaluation import optional

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
            schema = orjson.loads(path.read_bytes())
        except OSError as error:
            raise InputError(
                "schema-unreadable", f"can't be read: {error.strerror}", where=str(path)
            ) from error
        except ValueError as error:
            raise InputError(
                "schema-broken", f"the schema is not JSON: {error}", where=str(path)
            ) from error
        validator = jsonschema.validators.validator_for(
            schema, default=jsonschema.Draft202012Validator
        )
        try:
            validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            place = "/".join(map(str, error.absolute_path)) or "the top"
            message = f"this is not a valid JSON Schema: {error.message} (at {place})"
            raise InputError(
                "schema-broken", message, where=str(path), fix="fix the schema"
            ) from error
        self._validator = validator(schema)
        self._best = jsonschema.exceptions.best_match
        self.fits = 0
        self.faults: Counter[str] = Counter()

    def add(self, value: Any) -> bool:
        """Count one parsed answer; returns whether it fits."""
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
