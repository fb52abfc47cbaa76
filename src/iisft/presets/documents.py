"""Preset files as written: where they are found, what they extend, and what the command line
changes. No checks yet.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iisft.errors import InputError, UsageError
from iisft.presets import yaml12
from iisft.presets.yaml12 import KeyPath
from iisft.secrets import HIDDEN, hide, is_secret
from iisft.workspace import Workspace

FREE_SECTIONS = ("env", "llamafactory")


@dataclass(frozen=True)
class Source:
    """Where one value of a preset was written: a line of a file, or an override on the command
    line.
    """

    text: str
    file: Path | None = None
    line: int = 0


@dataclass
class Document:
    """A preset as written, `extends` and overrides already merged, before it is checked."""

    name: str
    file: Path
    values: dict[str, Any]
    sources: dict[KeyPath, Source] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def source(self, path: KeyPath) -> Source:
        """Where `path` was written, or the nearest section that holds it."""
        while path and path not in self.sources:
            path = path[:-1]
        return self.sources.get(path) or Source(str(self.file), self.file, 1)

    def override(self, path: KeyPath, value: Any, source: str) -> None:
        """Set one value; sections on the way are made."""
        section = self.values
        for depth, key in enumerate(path[:-1], 1):
            if not isinstance(section.get(str(key)), dict):
                section[str(key)] = {}
                self.sources[path[:depth]] = Source(source)
            section = section[str(key)]
        section[str(path[-1])] = value
        self.sources[path] = Source(source)

    def _set(self, path: KeyPath, value: Any, source: str) -> None:
        """One --set: a mapping changes what it names of a section, as `extends` does."""
        if not isinstance(value, dict) or not isinstance(self.value(path), dict):
            self.override(path, value, source)
            return
        for key, inner in value.items():
            self._set((*path, key), inner, source)

    def value(self, path: KeyPath) -> Any:
        """What stands at `path`, None where nothing does."""
        found: Any = self.values
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def change(
        self, overrides: Iterable[str], *, model: str | None = None, data: str | None = None
    ) -> None:
        """What the command line says: each --set, then --model and --data.

        Raises:
            UsageError: an override is not KEY=VALUE.
        """
        for text in overrides:
            self._set(*parse_override(text), describe_override(text))
        if model is not None:
            self.override(("model", "id"), model, "--model")
        if data is not None:
            names = data.split(",")  # a dataset's name has none
            self.override(("data", "name"), names if len(names) > 1 else data, "--data")


def shipped_presets_folder() -> Path:
    """configs/ of the checkout, or its copy inside the installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def available(workspace: Workspace) -> dict[str, Path]:
    """Presets by name: shipped ones, and the workspace's own, which win."""
    folders = (shipped_presets_folder(), workspace.presets)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def find(name_or_file: str, workspace: Workspace) -> Path:
    """The file of a preset.

    Raises:
        InputError: neither a file nor a known name; the message has the nearest names.
    """
    given = Path(name_or_file).expanduser()
    if given.suffix in (".yaml", ".yml") or "/" in name_or_file:
        if given.is_file():
            return given.absolute()
        raise InputError(
            "preset-missing",
            "no such preset file",
            where=str(given),
            fix="iisft preset list shows the known ones",
        )
    known = available(workspace)
    if name_or_file in known:
        return known[name_or_file]
    near = difflib.get_close_matches(name_or_file, known, n=3)
    hint = (
        f"; did you mean {' or '.join(near)}?"
        if near
        else f"; there are: {', '.join(sorted(known))}"
    )
    raise InputError(
        "preset-unknown", f"no preset named {name_or_file!r}{hint}", fix="iisft preset list"
    )


def read_document(name_or_file: str, workspace: Workspace) -> Document:
    """A preset with everything that it extends.

    Raises:
        InputError: a file is missing or broken, or the chain comes back to itself.
    """
    path = find(name_or_file, workspace)
    chain: list[tuple[Path, dict[str, Any], dict[KeyPath, int]]] = []
    while True:
        if any(path == seen for seen, _, _ in chain):
            names = " -> ".join(seen.stem for seen, _, _ in chain)
            raise InputError(
                "preset-extends-cycle",
                f"extends comes back to itself: {names} -> {path.stem}",
                where=f"{chain[-1][0]}:{chain[-1][2].get(('extends',), 1)}",
            )
        values, lines = yaml12.read(path)
        if not isinstance(values, dict):
            raise InputError(
                "preset-empty", "a preset must be a mapping of keys", where=f"{path}:1"
            )
        chain.append((path, values, lines))
        base = values.pop("extends", None)
        if base is None:
            break
        path = _find_base(base, path, lines, workspace)
    document = Document(
        chain[0][0].stem, chain[0][0], {}, files=tuple(file for file, _, _ in chain)
    )
    for file, values, lines in reversed(chain):
        _merge(document, values, (), file, lines)
    return document


def _find_base(
    base: Any, extending: Path, lines: Mapping[KeyPath, int], workspace: Workspace
) -> Path:
    where = f"{extending}:{lines.get(('extends',), 1)}"
    if not isinstance(base, str):
        raise InputError("preset-extends", "extends must be one preset's name or file", where=where)
    try:
        beside = extending.parent / base
        return beside.absolute() if beside.is_file() else find(base, workspace)
    except InputError as error:
        raise InputError.of(
            replace(error.finding, message=f"extends: {error.message}", where=where)
        ) from error


def _merge(
    document: Document,
    values: dict[str, Any],
    path: KeyPath,
    file: Path,
    lines: Mapping[KeyPath, int],
) -> None:
    for key, value in values.items():
        here = (*path, key)
        line = lines.get(here, 1)
        existing = document.value(here)
        if isinstance(value, dict) and (isinstance(existing, dict) or not path):
            if not isinstance(existing, dict):
                document.override(here, {}, "")
            document.sources[here] = Source(f"{file}:{line}", file, line)
            _merge(document, value, here, file, lines)
        else:
            document.override(here, value, "")
            document.sources[here] = Source(f"{file}:{line}", file, line)


def describe_override(text: str) -> str:
    """The override as a place in messages; the value of a secret is hidden."""
    key = text.partition("=")[0].strip()
    return f"--set {key}={HIDDEN}" if is_secret(key) else hide(f"--set {text}")


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """`train.epochs=1` as key path and value.

    Raises:
        UsageError: there is no `=`.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(
            "set-syntax", f"--set needs key=value, got {text!r}", fix="--set train.epochs=1"
        )
    section, _, rest = key.strip().partition(".")
    path = (section, rest) if section in FREE_SECTIONS and rest else tuple(key.strip().split("."))
    return path, value if section == "env" else yaml12.parse_scalar(value)
