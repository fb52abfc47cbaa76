"""Print every training argument of the installed LLaMA-Factory with its type, as one JSON object.

Runs in the training interpreter: python llamafactory_arguments.py {"learning_rate": {"types":
["float"], "choices": null}, ...}; "types" are null, bool, int, float, str, list, dict.
"""

import contextlib
import dataclasses
import enum
import json
import sys
import types
import typing
from typing import Any, Literal, Union


def describe(annotation: Any) -> tuple[set[str], list[Any] | None]:
    """The JSON types that an annotation admits, and its choices when they are closed."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds: set[str] = set()
        choices: list[Any] | None = None
        for member in typing.get_args(annotation):
            member_kinds, member_choices = describe(member)
            kinds |= member_kinds
            choices = (choices or []) + member_choices if member_choices else choices
        return kinds, None if "str" in kinds and choices is None else choices
    if origin is Literal:
        values = list(typing.get_args(annotation))
        return {type(value).__name__ for value in values}, values
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {"str"}, [member.value for member in annotation]
    if annotation is type(None):
        return {"null"}, None
    name = (origin or annotation).__name__ if isinstance(origin or annotation, type) else "str"
    return {name if name in {"bool", "int", "float", "str", "list", "dict"} else "str"}, None


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from llamafactory.hparams.parser import _TRAIN_ARGS

    arguments: dict[str, Any] = {}
    for group in _TRAIN_ARGS:
        hints = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            if field.init:
                kinds, choices = describe(hints[field.name])
                arguments[field.name] = {"types": sorted(kinds), "choices": choices}
    print(json.dumps(arguments))


if __name__ == "__main__":
    main()
