"""Each value of a preset with its reason, where it was written, and what it becomes in
LLaMA-Factory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from iisft import files
from iisft.llamafactory.arguments import MAPPING
from iisft.presets.checking import LoadedPreset
from iisft.presets.documents import FREE_SECTIONS, Source
from iisft.presets.schema import Preset
from iisft.secrets import redact_all

_COMMENT = re.compile(r"""^(?:[^"'#]|"[^"]*"|'[^']*')*?\s#\s*(.*)$""")


@dataclass(frozen=True, slots=True)
class Explanation:
    """`reason` is the preset's own, from the comment beside the value; `meaning` the schema's."""

    key: str
    value: Any
    source: str
    reason: str
    meaning: str
    arguments: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def explain(loaded: LoadedPreset) -> list[Explanation]:
    """Every value of the preset, defaults included, in the order of the schema."""
    return list(_section(loaded, loaded.preset, ()))


def _section(
    loaded: LoadedPreset, section: BaseModel, path: tuple[str, ...]
) -> Iterator[Explanation]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        here = (*path, name)
        if isinstance(value, BaseModel):
            yield from _section(loaded, value, here)
            continue
        key = ".".join(here)
        source = loaded.document.sources.get(here)
        arguments = MAPPING[key](loaded.preset) if key in MAPPING else {}
        yield Explanation(
            key,
            redact_all({name: value})[name] if name in FREE_SECTIONS else value,
            source.text if source else "default",
            _comment(source),
            info.description or "",
            arguments if key != "llamafactory" else redact_all(loaded.preset.llamafactory),
        )


def _comment(source: Source | None) -> str:
    """The comment at the end of the value's line, or the comment lines right above it."""
    if source is None or source.file is None:
        return ""
    lines = _lines(source.file)
    if not 0 < source.line <= len(lines):
        return ""
    if match := _COMMENT.match(lines[source.line - 1]):
        return match[1].strip()
    above: list[str] = []
    for line in reversed(lines[: source.line - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)


@cache
def _lines(file: Path) -> list[str]:
    return files.read_text(file).splitlines()


def schema() -> dict[str, Any]:
    """JSON Schema of a preset file, for editors: what `extends` supplies need not stand in it."""
    document = Preset.model_json_schema()
    document["properties"]["extends"] = {
        "type": "string",
        "description": "Another preset; this file then holds only what differs.",
    }
    document["required"] = []
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return document
