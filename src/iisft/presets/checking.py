"""From a preset as written to a checked one: types and rules, every error at once and with its
place; pydantic's in the words of somebody who writes YAML.
"""

import difflib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from iisft import rules
from iisft.errors import CheckFailed, Finding
from iisft.presets import rules as preset_rules
from iisft.presets.case import Case
from iisft.presets.documents import Document
from iisft.presets.schema import Preset
from iisft.presets.yaml12 import KeyPath
from iisft.rules import Rule
from iisft.secrets import HIDDEN, is_secret


@dataclass(frozen=True)
class LoadedPreset:
    """A checked preset, its document, and the warnings about it."""

    preset: Preset
    document: Document
    warnings: tuple[Finding, ...]


def check(
    document: Document, *, nodes: int = 1, ranks: int | None = None, judge: bool = True
) -> LoadedPreset:
    """Validate types and rules.

    Args:
        document: what was read.
        nodes: machines that take part.
        ranks: ranks per machine; None = the preset's GPUs, at least one.
        judge: raise for a rule's error too; without it that is one of the `warnings`.

    Raises:
        CheckFailed: every error at once, each with file:line, the bad value and what is allowed.
    """
    try:
        preset = Preset.model_validate(document.values)
    except ValidationError as error:
        raise CheckFailed(_explained(document, error.errors())) from error
    findings = judge_preset(Case(preset, ranks or 0, nodes=nodes, document=document))
    if judge and any(finding.severity == "error" for finding in findings):
        raise CheckFailed(findings)
    return LoadedPreset(preset, document, tuple(findings))


def _explained(document: Document, errors: list[ErrorDetails]) -> list[Finding]:
    """One finding for each value, whatever else it could have been."""
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for details in errors:
        grouped.setdefault(path_of(details), []).append(details)
    return [_explain(document, path, group) for path, group in grouped.items()]


def _explain(document: Document, path: KeyPath, errors: list[ErrorDetails]) -> Finding:
    """A sentence with place, bad value and fix."""
    details = errors[0]
    key = ".".join(map(str, path))
    where = document.source(path).text
    value = HIDDEN if path and is_secret(str(path[-1])) else details["input"]
    match details["type"]:
        case "string_pattern_mismatch" if details["loc"][-1] == "[key]":
            return Finding(
                "preset-env-name",
                f"{value!r} can't be the name of a variable: letters, digits and _, no digit first",
                where=where,
                fix="correct the name, or take it out of env:",
            )
        case "extra_forbidden":
            near = _nearest_key(path)
            hint = f"did you mean {near}?" if near else "iisft preset schema lists every key"
            return Finding(
                "preset-unknown-key",
                f"unknown key {key}: {hint}",
                where=where,
                fix=near and _as_written(where, near, ""),
            )
        case "missing":
            return Finding("preset-missing-key", f"{key} is missing", where=where, fix=f"add {key}")
    meant = difflib.get_close_matches(str(value), allowed(errors), n=1)
    return Finding(
        "preset-value",
        sentence(key, path, value, errors),
        where=where,
        fix=_as_written(where, key, meant[0]) if meant else "",
    )


def _as_written(where: str, key: str, value: str) -> str:
    """A key, and a value where another one is meant, as the person gave them: on the command line,
    or as a line of a file.
    """
    if not where.startswith("--set "):
        return f"{key}: {value}".strip()
    given = where.partition("=")[2]
    return f"--set {shlex.quote(f'{key}={value or given}')}"


@cache
def _rules() -> tuple[Rule, ...]:
    return rules.collect(preset_rules)


def judge_preset(case: Case) -> list[Finding]:
    """What the preset's rules say before a machine is looked at, errors first."""
    return rules.judge(_rules(), case)


def is_refused(preset: Preset, world_size: int) -> bool:
    """Whether a rule objects to the preset on so many ranks."""
    found = judge_preset(Case(preset, world_size))
    return any(finding.severity == "error" for finding in found)


def known_keys() -> list[str]:
    """Every key of the schema, dotted; the free sections as themselves."""
    return list(_keys_of(Preset, ""))


def _keys_of(model: Any, prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        if hasattr(info.annotation, "model_fields"):
            yield from _keys_of(info.annotation, f"{prefix}{name}.")


def _nearest_key(path: KeyPath) -> str:
    """The known key that was probably meant: the same word elsewhere, or the nearest spelling.

    Words are compared without their sections, whose letters would make any two keys alike: a fix
    that names another key is worse than none.
    """
    section, word = path[:-1], str(path[-1])
    words: dict[str, list[str]] = {}
    inside: dict[str, str] = {}
    for key in known_keys():
        if word == key.replace(".", "_"):  # lora_rank, save_best
            return key
        *before, last = key.split(".")
        words.setdefault(last, []).append(key)
        if tuple(before) == section:
            inside[last] = key
    if near := difflib.get_close_matches(word, inside, n=1, cutoff=0.7):
        return inside[near[0]]
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.8)
    return words[near[0]][0] if near else ""


_KINDS = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of names and values",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "too_short": "a list with an entry",
    "string_too_short": "text that is not empty",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


def path_of(details: ErrorDetails) -> KeyPath:
    """The key that an error is about, without the branches of a union."""
    branches = ("str", "list[", "[key]", "bool", "literal[", "constrained-")
    return tuple(part for part in details["loc"] if not str(part).startswith(branches))


def sentence(key: str, path: KeyPath, value: Any, errors: Sequence[ErrorDetails]) -> str:
    """Everything that one value could have been and is not."""
    if all(details["type"] == "literal_error" for details in errors):
        return f"{key} is {_shown(value)}; allowed: {_allowed(errors[0])}"
    wanted = " or ".join(dict.fromkeys(_wanted(path, details) for details in errors))
    return f"{key} is {_shown(value)}, but should be {wanted}"


def allowed(errors: Sequence[ErrorDetails]) -> list[str]:
    """The words that a value could have been."""
    choices = (_allowed(details) for details in errors if details["type"] == "literal_error")
    return [word for text in choices for word in text.replace(" or ", ", ").split(", ")]


def _wanted(path: KeyPath, details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "literal_error":
        return _allowed(details)
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return (
            f"{words} {context[limit]:g}" if context[limit] < 1e6 else f"{words} {context[limit]}"
        )
    if kind == "model_type":
        return f"a section with {', '.join(_keys_at(path)) or 'keys of its own'}"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    if kind == "string_too_long":
        return f"a text of at most {context['max_length']} letters"
    if kind == "string_pattern_mismatch":
        return "a name of letters, digits, _, . and - that begins with a letter or digit"
    return _KINDS.get(kind) or details["msg"].removeprefix("Input should be ")


def _allowed(details: ErrorDetails) -> str:
    return str(details["ctx"]["expected"]).replace("'", "")


def _keys_at(path: KeyPath) -> list[str]:
    model: Any = Preset
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    found = isinstance(model, type) and issubclass(model, BaseModel)
    return list(model.model_fields) if found else []


def _shown(value: Any) -> str:
    """As YAML has it."""
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else repr(value)
