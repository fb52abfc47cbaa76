"""Families: the runs of one sweep, and the values by which they differ."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord
from iisft.workspace import Workspace


def family_of(record: RunRecord | None) -> str:
    """The name of the sweep that a run belongs to, "" without one."""
    name = ((record and record.queue) or {}).get("family")
    return name if isinstance(name, str) else ""


def families(workspace: Workspace) -> dict[str, list[RunFolder]]:
    """The runs of every family by their names, the family that was queued last first."""
    found: dict[str, list[RunFolder]] = {}
    created: dict[str, float] = {}
    for path in workspace.runs.glob("*"):
        folder = RunFolder(path)
        record = None if path.name.startswith(".") else folder.read_record()
        if record is not None and (name := family_of(record)):
            found.setdefault(name, []).append(folder)
            created[name] = max(created.get(name, 0.0), record.created or 0.0)
    names = sorted(found, key=lambda name: (-created[name], name))
    return {name: sorted(found[name], key=lambda folder: folder.id) for name in names}


def members_of(workspace: Workspace, family: str) -> list[RunFolder]:
    """The runs of one family by their names; none where there is no such family."""
    return families(workspace).get(family, [])


def varied(records: Iterable[RunRecord]) -> dict[str, list[Any]]:
    """Dotted key of the preset -> its value in each run, for every key that is not alike."""
    flat = [dict(_flat(record.preset, "")) for record in records]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: [one.get(key) for one in flat] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if any(value != values[0] for value in values[1:])
    }


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
