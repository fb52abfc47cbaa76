"""What a plan must know about a model: from its folder, or from facts shipped with iisft."""

import contextlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from iisft.errors import Finding, IisftError
from iisft.files import read_json_object
from iisft.models.folder.checkpoint import Checkpoint, inspect_checkpoint
from iisft.models.folder.text_part import text_config
from iisft.workspace import how_to_get

_DTYPES = ("float32", "float16", "bfloat16")
_USUAL_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """config.json's content, the dtype of the stored weights, and where both come from.

    `parameters`: of the files; 0 where they are not there.
    """

    config: dict[str, Any]
    stored_dtype: str
    source: str
    parameters: int = 0


def model_facts(model_id: str, folder: Path) -> tuple[ModelFacts | None, list[Finding]]:
    """The facts of a model, and what is wrong with their source. No weight is needed or read."""
    path = folder / "config.json"
    if not path.is_file():
        config = _known_configs().get(model_id)
        if config is not None:
            return ModelFacts(
                text_config(config) or config,
                str(config.get("dtype") or config["torch_dtype"]),
                "facts shipped with iisft; the model is not here",
            ), []
        text = f"the model {model_id} is not there, and iisft ships no facts about it"
        fix = f"{how_to_get(model_id, folder)} (its config.json alone is enough here)"
        return None, [Finding("model-missing", text, where=str(folder), fix=fix)]
    found = read_json_object(path)
    if found is None:
        text = "config.json is torn or no JSON object"
        return None, [
            Finding(
                "model-config-broken",
                text,
                where=str(path),
                fix=how_to_get(model_id, folder),
            )
        ]
    checkpoint = _inspected(folder)
    dtype = _stored_dtype(checkpoint, found)
    notes = []
    if dtype is None:
        text = (
            f"neither config.json nor the weights say what dtype the model is stored in: "
            f"{_USUAL_DTYPE} is assumed"
        )
        notes.append(Finding("model-dtype-unknown", text, where=str(path), severity="warn"))
    parameters = checkpoint.parameters if checkpoint else 0
    config = text_config(found) or found
    return ModelFacts(config, dtype or _USUAL_DTYPE, str(path), parameters), notes


def _inspected(folder: Path) -> Checkpoint | None:
    if next(folder.glob("*.safetensors"), None) is not None:
        with contextlib.suppress(IisftError):  # half a download: config.json still tells
            return inspect_checkpoint(folder)
    return None


def _stored_dtype(checkpoint: Checkpoint | None, config: dict[str, Any]) -> str | None:
    """What the safetensors headers say, else config.json."""
    candidates: list[Any] = list(checkpoint.dtypes)[:1] if checkpoint else []
    config = text_config(config) or config
    candidates += [config.get("dtype"), config.get("torch_dtype")]
    return next((str(dtype) for dtype in candidates if dtype in _DTYPES), None)


def _known_configs() -> dict[str, dict[str, Any]]:
    text = (
        resources.files("iisft")
        .joinpath("models", "folder", "known_configs.json")
        .read_text(encoding="utf-8")
    )
    models: dict[str, dict[str, Any]] = json.loads(text)["models"]
    return models


def ends_of(folder: Path) -> list[Any]:
    """Tokens at which generation with this model ends, by generation_config.json, else by
    config.json.
    """
    for name in ("generation_config.json", "config.json"):
        known = (read_json_object(folder / name) or {}).get("eos_token_id")
        if known is not None:
            return known if isinstance(known, list) else [known]
    return []
