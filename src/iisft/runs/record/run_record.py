"""run.json: what was asked of a run, what it was made of, and what was observed.

Standard library only: the supervisor reads it. Every record that an earlier iisft wrote is read;
what it did not know yet has its default here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft import files
from iisft.process import ProcessIdentity
from iisft.runs.record.proof import Expected

FORMAT = 1
"""Goes up when a reader of an earlier format would misunderstand what is written now."""

_SECTIONS = ("preset", "env", "interpreter", "packages", "model", "expected", "watch")
_LISTS = ("argv", "data")
_MOST_COUNTED = 10**15  # a whole number in every reader's JSON (RFC 8259, section 6)
_YEAR_10000 = 253_402_300_800


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The model that a run starts from; `files` has a stamp of each weights file."""

    id: str
    folder: Path
    architecture: str
    parameters: int
    dtypes: Mapping[str, int]
    config_sha256: str
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelRecord":
        stamps = _mapping(values.get("files"))
        return cls(
            id=_text(values.get("id")),
            folder=Path(_text(values.get("folder"))),
            architecture=_text(values.get("architecture")),
            parameters=count(values.get("parameters")) or 0,
            dtypes=_mapping(values.get("dtypes")),
            config_sha256=_text(values.get("config_sha256")),
            # the first records had the size of a file where its stamp is now
            files={
                name: stamp if isinstance(stamp, dict) else {"size": stamp}
                for name, stamp in stamps.items()
            },
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "folder": str(self.folder),
            "architecture": self.architecture,
            "parameters": self.parameters,
            "dtypes": dict(self.dtypes),
            "config_sha256": self.config_sha256,
            "files": {name: dict(stamp) for name, stamp in self.files.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """Rows that a run trains on or evaluates.

    `fitted` says what they were fitted to for this run, None when they are as staged. `parts` are
    the datasets that they were mixed of.
    """

    name: str
    rows: int
    sha256: str
    source: str
    fitted: Mapping[str, Any] | None = None
    parts: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DatasetRecord":
        return cls(
            name=_text(values.get("name")),
            rows=count(values.get("rows")) or 0,
            sha256=_text(values.get("sha256")),
            source=_text(values.get("source")),
            fitted=_mapping(values.get("fitted")) or None,
            parts=tuple(part for part in _list(values.get("parts")) if isinstance(part, dict)),
        )

    def as_json(self) -> dict[str, Any]:
        about = {"name": self.name, "rows": self.rows, "sha256": self.sha256, "source": self.source}
        more = {
            "fitted": self.fitted and dict(self.fitted),
            "parts": [dict(part) for part in self.parts],
        }
        return about | {name: value for name, value in more.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The watchdogs of a run; the defaults are those of a preset's `watch` section."""

    nan: str = "stop"
    hang_factor: float = 10.0
    hang_min_s: float = 300.0
    restarts: int = 3
    node_silence_s: float = 40.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Watch":
        """Values of another type than they should have are as if they were not there."""
        known = {}
        for name in cls.__slots__:
            default, value = getattr(cls(), name), values.get(name)
            if isinstance(value, int | float | str) and isinstance(value, str) == (name == "nan"):
                known[name] = type(default)(value)
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run.json, field by field in the order of the file.

    What stands in `status` and reports as it is (preset, forecast, expected, observed) stays a JSON
    object, as do `start`, the adapter that lora.start named, and `queue`, what a run waits for
    (None where it was started at once). A broken file's missing sections are empty here, and named
    in `missing`.
    """

    id: str
    created: float | None
    iisft: str
    preset_name: str
    preset: Mapping[str, Any]
    argv: tuple[str, ...]
    env: Mapping[str, str]
    shell: Mapping[str, str]
    train_yaml: Mapping[str, Any]
    view: Mapping[str, str]
    gpus: tuple[str, ...]
    ranks: int
    nodes: int
    interpreter: Path
    python: str
    packages: Mapping[str, str]
    git_commit: str | None
    model: ModelRecord
    data: tuple[DatasetRecord, ...]
    tokens: str | None
    forecast: Mapping[str, Any] | None
    expected: Mapping[str, Any]
    observed: Mapping[str, Any] | None
    watch: Watch
    launcher: ProcessIdentity | None
    start: Mapping[str, Any] | None = None
    queue: Mapping[str, Any] | None = None
    missing: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunRecord":
        interpreter = _mapping(values.get("interpreter"))
        data = (entry for entry in _list(values.get("data")) if isinstance(entry, dict))
        return cls(
            id=_text(values.get("id")),
            created=moment(values.get("created")),
            iisft=_text(values.get("iisft")),
            preset_name=_text(values.get("preset_name")),
            preset=_mapping(values.get("preset")),
            argv=tuple(map(str, _list(values.get("argv")))),
            env=_texts(values.get("env")),
            shell=_texts(values.get("shell")),
            train_yaml=_mapping(values.get("train_yaml")),
            view=_texts(values.get("view")),
            gpus=tuple(map(str, _list(values.get("gpus")))),
            ranks=count(values.get("ranks")) or 1,
            nodes=count(values.get("nodes")) or 1,
            interpreter=Path(_text(interpreter.get("path"))),
            python=_text(interpreter.get("python")),
            packages=_texts(values.get("packages")),
            git_commit=_text(values.get("git_commit")) or None,
            model=ModelRecord.from_json(_mapping(values.get("model"))),
            data=tuple(map(DatasetRecord.from_json, data)),
            tokens=_text(values.get("tokens")) or None,
            forecast=_mapping(values.get("forecast")) or None,
            expected=_mapping(values.get("expected")),
            observed=_mapping(values.get("observed")) or None,
            watch=Watch.from_json(_mapping(values.get("watch"))),
            launcher=ProcessIdentity.from_json(values.get("launcher")),
            start=_mapping(values.get("start")) or None,
            queue=_mapping(values.get("queue")) or None,
            missing=_missing(values),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "id": self.id,
            "created": self.created,
            "iisft": self.iisft,
            "preset_name": self.preset_name,
            "preset": dict(self.preset),
            "argv": list(self.argv),
            "env": dict(self.env),
            "shell": dict(self.shell),
            "train_yaml": dict(self.train_yaml),
            "view": dict(self.view),
            "gpus": list(self.gpus),
            "ranks": self.ranks,
            "nodes": self.nodes,
            "interpreter": {"path": str(self.interpreter), "python": self.python},
            "packages": dict(self.packages),
            "git_commit": self.git_commit,
            "model": self.model.as_json(),
            "data": [dataset.as_json() for dataset in self.data],
            "tokens": self.tokens,
            "forecast": self.forecast and dict(self.forecast),
            "expected": dict(self.expected),
            "observed": self.observed and dict(self.observed),
            "watch": self.watch.as_json(),
            "launcher": self.launcher.as_json() if self.launcher else None,
            **({"start": dict(self.start)} if self.start else {}),
            **({"queue": dict(self.queue)} if self.queue else {}),
        }

    @property
    def world_size(self) -> int | None:
        """Ranks of all nodes together; None where a broken record doesn't say."""
        return count(self.expected.get("world_size"))

    @property
    def proof(self) -> Expected:
        """What every rank must report. Needs a whole record."""
        return Expected.from_json(self.expected)

    def setting(self, key: str) -> Any:
        """A value of the run's preset by its dotted key, None when it has no such key."""
        value: Any = self.preset
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def read(path: Path) -> RunRecord | None:
    """None when it can't be read, is broken, or is of a format that is not known: see
    why_unusable.
    """
    values = files.read_json_object(path)
    if values is None or not _is_known(values.get("format", FORMAT)):
        return None
    return RunRecord.from_json(values)


def why_unusable(path: Path) -> str:
    """What is wrong with a run.json that can't be used."""
    try:
        files.read_bytes(path)
    except FileNotFoundError:
        return "run.json is missing"
    except OSError as error:
        return f"run.json can't be read: {error.strerror}"
    written = (files.read_json_object(path) or {}).get("format", FORMAT)
    if not _is_known(written):
        return f"run.json is of format {written!r}, and this iisft knows up to {FORMAT}"
    return "run.json is broken"


def _is_known(written: object) -> bool:
    return type(written) is int and 1 <= written <= FORMAT


def _missing(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run can't be supervised, resumed or loaded without."""
    found = [name for name in _SECTIONS if not isinstance(values.get(name), dict)]
    found += [name for name in _LISTS if not isinstance(values.get(name), list)]
    if "expected" not in found and not Expected.is_whole(values["expected"]):
        found.append("expected")
    return tuple(found)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> dict[str, str]:
    return {name: text for name, text in _mapping(value).items() if isinstance(text, str)}


def count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_COUNTED else None


def moment(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < _YEAR_10000 else None
