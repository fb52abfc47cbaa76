"""Files of predictions, ours or anyone's: JSON lines or a JSON array, possibly torn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from iisft import files, json_values
from iisft.data.read.jsonarray import json_array
from iisft.data.read.rows import Unreadable
from iisft.errors import CheckFailed, Finding, InputError, UsageError
from iisft.llamafactory.tools import THOUGHT_WORDS

ROLES = ("prediction", "reference", "prompt")
# Names that other tools use; the first one in the file is taken. LLaMA-Factory writes prompt,
# predict, label (train/sft/trainer.py, save_predictions).
_KNOWN_NAMES = {
    "prediction": (
        "prediction",
        "predict",
        "model_output",
        "predicted",
        "response",
        "generated_text",
        "completion",
    ),
    "reference": (
        "reference",
        "label",
        "ground_truth",
        "target",
        "expected",
        "gold",
        "answer",
        "output",
    ),
    "prompt": ("prompt", "input", "question", "instruction", "query"),
}
_SHOWN_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One prediction.

    `reference` and `prompt` are None where the file has none; `prediction` is "" for null. Both
    answers stand without the thought before them; `thought` is the prediction's, None without one.
    `source` is the dataset that the row comes from, where the file says so.
    """

    row: int
    prediction: str
    reference: str | None
    prompt: str | None
    error: str | None
    stop: str | None
    thought: str | None = None
    source: str | None = None


@dataclass
class PredictionFile:
    """Reads a file of predictions.

    Args:
        path: JSON lines, or one JSON array of objects.
        columns: role -> column for the roles that a person named; the others are found by name.

    Attributes:
        findings: what reading has found so far: a torn last line, duplicate rows.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = next(self._objects(), None)
        if first is None:
            raise InputError("no-predictions", "the file has no rows", where=str(self.path))
        self.columns = self._found_columns(first)
        self.findings.clear()

    def __iter__(self) -> Iterator[Row]:
        """Every row once; of duplicate row numbers only the first.

        Raises:
            CheckFailed: lines that are not JSON objects, except a torn last one.
        """
        self.findings.clear()
        # numbers and hashes, so that memory grows by bytes per row and not by texts
        seen: set[int] = set()
        questions: set[int] = set()
        repeated = 0
        twice: list[int] = []
        for number, value in enumerate(self._objects(), 1):
            own = value.get("row")
            row = own if type(own) is int else number  # bool is an int too: not isinstance
            if row in seen:
                twice.append(row)
                continue
            seen.add(row)
            made = self._row(row, value)
            if made.prompt is not None:
                question = hash((made.prompt, made.reference))
                repeated += question in questions
                questions.add(question)
            yield made
        if repeated:
            message = f"{repeated} rows repeat prompt and reference of an earlier row; each counts"
            self.findings.append(
                Finding("repeated-rows", message, where=str(self.path), severity="warn")
            )
        if twice:
            shown = ", ".join(map(str, twice[:5])) + (" ..." if len(twice) > 5 else "")
            message = f"{len(twice)} rows occur twice (row {shown}): the first of each counts"
            self.findings.append(
                Finding("duplicate-rows", message, where=str(self.path), severity="warn")
            )

    def _row(self, row: int, value: Mapping[str, Any]) -> Row:
        thought, prediction = after_thought(_text(value.get(self.columns["prediction"])) or "")
        reference = _text(value.get(self.columns.get("reference", "")))
        return Row(
            row=row,
            prediction=prediction,
            reference=None if reference is None else after_thought(reference)[1],
            thought=thought,
            prompt=_text(value.get(self.columns.get("prompt", ""))),
            error=_failure(value.get("error")),
            stop=_text(value.get("stop")),
            source=source if isinstance(source := value.get("source"), str) else None,
        )

    def _found_columns(self, first: Mapping[str, Any]) -> dict[str, str]:
        found = dict(self.columns)
        missing = [f"{role}={name}" for role, name in found.items() if name not in first]
        if missing:
            raise InputError(
                "no-such-column",
                f"the file has no column for {', '.join(missing)}; it has "
                f"{', '.join(map(repr, first))}",
                where=f"{self.path}:1",
                fix="--columns " + ",".join(f"{role}=NAME" for role in found),
            )
        for role in ROLES:
            name = next(
                (
                    name
                    for name in _KNOWN_NAMES[role]
                    if name in first and name not in found.values()
                ),
                None,
            )
            if role not in found and name is not None:
                found[role] = name
        if "prediction" not in found:
            raise InputError(
                "no-predictions",
                f"no column looks like predictions; the file has {', '.join(map(repr, first))}",
                where=f"{self.path}:1",
                fix="--columns prediction=NAME,reference=NAME",
            )
        return found

    def _objects(self) -> Iterator[dict[str, Any]]:
        try:
            with files.open_regular(self.path) as stream:
                start = stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
                stream.seek(0)
                yield from self._array(stream) if start == b"[" else self._lines(stream)
        except OSError as error:
            message = f"the predictions can't be read: {error.strerror}"
            raise InputError("predictions-unreadable", message, where=str(self.path)) from error

    def _lines(self, stream: Any) -> Iterator[dict[str, Any]]:
        faults: list[tuple[int, str, str]] = []
        for number, line in enumerate(files.lines_of(stream), 1):
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            try:
                value = _parsed(line)
            except ValueError as error:
                if line.endswith(b"\n"):
                    faults.append((number, "not-json", f"not JSON: {error}"))
                    continue
                message = (
                    "the last line is half-written and left out (the writer was stopped, or "
                    "is still writing)"
                )
                where = f"{self.path}:{number}"
                self.findings.append(
                    Finding("half-written-line", message, where=where, severity="warn")
                )
                continue
            if isinstance(value, dict):
                yield value
            else:
                faults.append((number, "not-an-object", "the line is not a JSON object"))
        if faults:
            raise CheckFailed(self._shown(faults))

    def _shown(self, faults: list[tuple[int, str, str]]) -> list[Finding]:
        fix = "predictions are JSON lines, one object each, or one JSON array"
        found = [
            Finding(code, text, f"{self.path}:{number}", fix)
            for number, code, text in faults[:_SHOWN_FAULTS]
        ]
        if left := len(faults) - len(found):
            found.append(
                Finding(
                    faults[-1][1], f"and {left} more lines", f"{self.path}:{faults[-1][0]}", fix
                )
            )
        return found

    def _array(self, stream: Any) -> Iterator[dict[str, Any]]:
        for element in json_array(stream, self.path):
            value = element.value
            if isinstance(value, Unreadable):
                message = (
                    "the JSON array breaks off or is broken after element "
                    f"{element.number - 1}: {value.message}"
                )
                raise InputError("not-json", message, where=str(self.path), fix=value.fix)
            if not isinstance(value, dict):
                message = f"element {element.number} is not a JSON object"
                raise InputError("not-an-object", message, where=str(self.path))
            # orjson, which gave the raw bytes, lets no half of a surrogate pair through
            yield value if element.raw is not None else _without_surrogates(value)


def parse_columns(text: str | None) -> dict[str, str]:
    """`reference=ground_truth,prediction=model_output` as a mapping.

    Raises:
        UsageError: an unknown role, or no `=`.
    """
    found = {}
    for part in (text or "").split(","):
        role, equals, name = part.partition("=")
        if part and (role.strip() not in ROLES or not equals or not name.strip()):
            raise UsageError(
                "columns",
                f"--columns can't take {part!r}",
                fix=f"ROLE=NAME,... with the roles {', '.join(ROLES)}",
            )
        if part:
            found[role.strip()] = name.strip()
    return found


def _parsed(line: bytes) -> Any:
    """One line, with what only Python's json writes: NaN, and half a surrogate pair (as `?`).

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        value = json_values.parse_json(line.decode("utf-8-sig", "replace"))
    return _without_surrogates(value)


def _without_surrogates(value: Any) -> Any:
    """The object with strings that can be written as UTF-8."""
    if not isinstance(value, dict):
        return value
    return {
        key: item.encode("utf-8", "replace").decode() if isinstance(item, str) else item
        for key, item in value.items()
    }


def _failure(value: Any) -> str | None:
    """What went wrong, or None. A number in a column `error` is a measure, not a failure."""
    return (
        _text(value) if value and (value is True or isinstance(value, str | dict | list)) else None
    )


def _text(value: Any) -> str | None:
    """Text as it is; parsed values become JSON again."""
    if value is None or isinstance(value, str):
        return value
    return json_values.json_text(value)


def after_thought(text: str) -> tuple[str | None, str]:
    """A thought at the beginning (None where there is none), and the answer after it.

    A thought that never ends is no thought: the answer was cut off in it.
    """
    opening, closing = (word.strip() for word in THOUGHT_WORDS)
    begun = text.lstrip()
    if not begun.startswith(opening) or closing not in begun:
        return None, text
    thought, _, answer = begun.removeprefix(opening).partition(closing)
    return thought.strip(), answer.lstrip()
