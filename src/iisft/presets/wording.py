"""pydantic's errors about a preset, in the words of somebody who writes YAML."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from iisft.presets.schema import Preset
from iisft.presets.yaml12 import KeyPath

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
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


def path_of(details: ErrorDetails) -> KeyPath:
    """The key that an error is about, without the branches of a union."""
    branches = ("str", "list[", "[key]", "bool", "literal[")
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
        return f"a section with {', '.join(_keys_of(path)) or 'keys of its own'}"
    if kind == "string_pattern_mismatch":
        return "a name of letters, digits, _, . and - that begins with a letter or digit"
    return _KINDS.get(kind) or details["msg"].removeprefix("Input should be ")


def _allowed(details: ErrorDetails) -> str:
    return str(details["ctx"]["expected"]).replace("'", "")


def _keys_of(path: KeyPath) -> list[str]:
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
