"""What ran: preset with reasons, expected and observed values, hardware, versions, model, data."""

from collections.abc import Mapping
from typing import Any

from iisft.errors import IisftError
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.measurements import cost
from iisft.runs.record.run_record import RunRecord
from iisft.runs.record.state import status_of
from iisft.workspace import Workspace


def facts_of(folder: RunFolder, workspace: Workspace) -> dict[str, Any]:
    """Everything in the run's record that a reader asks for; a broken record leaves gaps."""
    status = status_of(folder)
    record = folder.read_record() or RunRecord.from_json({})
    model = record.model.as_json()
    return status.as_full_json() | {
        "model": {
            key: model[key] or None
            for key in ("id", "folder", "architecture", "parameters", "dtypes")
        },
        "data": [dataset.as_json() for dataset in record.data],
        "proof": _proof(record.expected, record.observed or {}),
        "preset": _preset(record, workspace),
        "preset_name": status.preset,
        "versions": {"iisft": record.iisft or None, "python": record.python or None}
        | dict(record.packages),
        "gpus": list(record.gpus),
        "nodes": record.nodes,
        "git_commit": record.git_commit,
        "energy_cost": cost((status.measured or {}).get("energy_kwh", 0.0)),
    }


def _proof(expected: Mapping[str, Any], observed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the preset promises beside what the trainer reported."""
    names = [*expected, *(name for name in observed if name not in expected)]
    return [
        {
            "name": name,
            "expected": expected.get(name),
            "observed": observed.get(name),
            "differs": name in expected
            and name in observed
            and expected[name] is not None
            and expected[name] != observed[name],
        }
        for name in names
    ]


def _preset(record: RunRecord, workspace: Workspace) -> list[dict[str, Any]]:
    """Every value of the run's preset, with the named preset's reason where it still agrees."""
    reasons = _explanations(record.preset_name, workspace)
    values = []
    for key, value in _flat(record.preset):
        about = reasons.get(key, {})
        same = "value" in about and about["value"] == value
        values.append(
            {
                "key": key,
                "value": value,
                "reason": (about.get("reason") if same else "") or "",
                "meaning": about.get("meaning") or "",
                "source": about.get("source", "") if same else "--set",
                "changed": bool(about) and not same,
            }
        )
    return values


def _explanations(name: str, workspace: Workspace) -> dict[str, dict[str, Any]]:
    from iisft.llamafactory.explain import explain
    from iisft.presets.checking import check
    from iisft.presets.documents import read_document

    try:
        loaded = check(read_document(name, workspace))
    except (IisftError, OSError):
        return {}
    dumped = dict(_flat(loaded.preset.model_dump(mode="json")))
    return {each.key: each.as_json() | {"value": dumped.get(each.key)} for each in explain(loaded)}


def _flat(values: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values; a mapping with free keys (env, llamafactory) is one value."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        here = f"{path}{key}"
        if isinstance(value, dict) and here not in ("env", "llamafactory"):
            found += _flat(value, f"{here}.")
        else:
            found.append((here, value))
    return found
