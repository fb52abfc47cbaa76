"""What a run has become unlike since it began, and what two runs differ in."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from iisft import files
from iisft.errors import EnvironmentFault, IisftError, RunStateError
from iisft.files import sha256_of
from iisft.llamafactory import interpreter
from iisft.llamafactory.environment import of_record, steering
from iisft.machine.doctor.inspect import visible_gpus
from iisft.models.folder import adapter, identity
from iisft.models.view.build import strange_code
from iisft.presets import yaml12
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import DatasetRecord, RunRecord

_COMPARED = (
    "preset",
    "gpus",
    "ranks",
    "nodes",
    "model",
    "start",
    "data",
    "packages",
    "iisft",
    "observed",
)

_FIRST_BATCH = "observed.first_batch"
# the first that a trainer saw, and what it began with
_OF_ONE_START = ("observed.logit_positions", "observed.adapter")


def differences(folder: RunFolder, record: RunRecord) -> list[str]:
    """One sentence for each thing that a resumed trainer would meet otherwise than the run so far.

    Raises:
        RunStateError: the folder was moved or copied, so that its own files name another place.
        EnvironmentFault: GPUs that the run needs are not there.
    """
    arguments = _yaml(folder.train_yaml)
    if (place := str(arguments.get("output_dir", ""))) != str(folder.output):
        raise RunStateError(
            "moved",
            f"{folder.id} was made at {Path(place).parent}: its files name that place",
            where=str(folder.path),
            fix=f"move it back, or start again: iisft train --preset '{folder.preset}'",
        )
    return [
        *_changed("train.yaml", record.train_yaml, arguments),
        *_changed("preset.yaml (read by nothing any more)", record.preset, _yaml(folder.preset)),
        *_changed_digests("model/", record.view, folder.model),
        *_view_code(folder, record),
        *identity.changes(record.model.as_json(), record.model.folder, copies=False),
        *_data(folder, record.data),
        *_start(folder, record),
        *_packages(record),
        *_code(folder, record),
        *_shell(record),
        *_gpus(record),
    ]


def compare(one: RunFolder, other: RunFolder) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> the two values, for everything that two run.json say differently about how they
    trained.

    Raises:
        RunStateError: a run.json can't be read.
    """
    first, second = (
        dict(_flat({k: v for k, v in run.whole_record().as_json().items() if k in _COMPARED}))
        for run in (one, other)
    )
    # after a resume it is the batch of that step, and no difference between the runs
    left_out = (
        *_OF_ONE_START,
        *([_FIRST_BATCH] if _was_resumed(one) or _was_resumed(other) else []),
    )
    keys = [*first, *(key for key in second if key not in first)]
    return {
        key: (first.get(key), second.get(key))
        for key in keys
        if first.get(key) != second.get(key) and not key.startswith(left_out)
    }


def _was_resumed(run: RunFolder) -> bool:
    return any(
        event.get("state") == "running" and event.get("from_step") for event in run.read_events()
    )


def view_digests(view: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of the files that iisft wrote into a view."""
    return {name: sha256_of(view / name) for name in sorted(names)}


def _data(folder: RunFolder, recorded: Iterable[DatasetRecord]) -> Iterator[str]:
    for dataset in recorded:
        file = folder.dataset / f"{dataset.name}.jsonl"
        if sha256_of(file) != dataset.sha256:
            yield (
                f"the rows of {dataset.name} have "
                f"{'changed' if file.exists() else 'vanished'} ({file.resolve()})"
            )


def _start(folder: RunFolder, record: RunRecord) -> Iterator[str]:
    weights = folder.start / adapter.WEIGHTS
    if record.start and sha256_of(weights) != record.start.get("sha256"):
        yield f"the adapter that the run started from has changed ({weights})"


def _packages(record: RunRecord) -> Iterator[str]:
    before, now = str(record.interpreter), interpreter.training_interpreter()
    if before != str(now):
        yield f"interpreter {before} -> {now} (IISFT_PYTHON={before} takes the one of before)"
    yield from _changed("package", record.packages, interpreter.inspect(now).packages)


def _view_code(folder: RunFolder, record: RunRecord) -> Iterator[str]:
    """The trainer runs what lies there; the record that has its digests lies beside it."""
    trusted = record.setting("model.trust_remote_code") is True
    for name in strange_code(folder.model, record.model.folder, trusted=trusted):
        yield f"model/{name} is not the code of this iisft: its own is put there"


def _code(folder: RunFolder, record: RunRecord) -> Iterator[str]:
    """Variables of the record that would let the run's folder decide what is executed."""
    for values in (record.env, record.shell):
        for name in of_record(values, folder.path)[1]:
            yield f"variable {name} of the record would bring code of its own: it is left out"


def _shell(record: RunRecord) -> Iterator[str]:
    """A variable that this shell has not is taken from the record.

    One that it has otherwise is a decision.
    """
    recorded, now = record.shell, steering(os.environ)
    for name in sorted(now):
        if name not in record.env and now[name] != recorded.get(name):
            yield f"variable {name} {recorded.get(name, 'unset')} -> {now[name]}"


def _gpus(record: RunRecord) -> Iterator[str]:
    recorded = record.gpus
    if not recorded:
        return
    gpus = visible_gpus()
    present = [gpu.arch for gpu in gpus]
    if len(present) < record.ranks:
        raise EnvironmentFault(
            "gpus-missing",
            f"the run has {record.ranks} GPUs, {len(present)} are visible now",
            fix="look at HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES",
        )
    before, now = list(recorded[: record.ranks]), present[: record.ranks]
    if before != now:
        yield f"GPUs {', '.join(before)} -> {', '.join(now)}"
    kept, needed = record.proof.layers_kept, (record.forecast or {}).get("needed_gib")
    smallest = min((gpu.memory_gib for gpu in gpus[: record.ranks]), default=0.0)
    if kept and isinstance(needed, int | float) and 0 < smallest < needed:
        yield (
            f"GPU memory {smallest:.1f} GiB: with the products of {kept} layers kept "
            f"{needed:.1f} GiB are needed"
        )


def _changed(what: str, before: Any, now: Any) -> Iterator[str]:
    first, second = dict(_flat(before or {})), dict(_flat(now or {}))
    for key in [*first, *(key for key in second if key not in first)]:
        if first.get(key) != second.get(key):
            yield f"{what} {key} {first.get(key)} -> {second.get(key)}"


def _changed_digests(what: str, before: Mapping[str, str] | None, place: Path) -> Iterator[str]:
    for name, digest in (before or {}).items():
        if not name.endswith(".py") and sha256_of(place / name) != digest:
            yield f"{what}{name} was changed"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{number}")
    else:
        yield prefix, value


def _yaml(path: Path) -> dict[str, Any]:
    try:
        text = files.read_text(path, yaml12.LARGEST)
        yaml12.check_depth(text, str(path))
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, IisftError) as error:
        raise RunStateError(
            "run-torn", f"{path.name} can't be read: {error}", where=str(path)
        ) from error
    return content if isinstance(content, dict) else {}
