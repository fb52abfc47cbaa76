import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models_on_disk import CONFIG, write_json, write_safetensors


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A complete one-file model in a folder with a space and Chinese letters."""
    folder = tmp_path / "模型 a" / "tiny"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer.json", {"version": "1.0"})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 64})
    write_safetensors(
        folder / "model.safetensors",
        {"model.embed_tokens.weight": ("BF16", [4, 8]), "model.norm.weight": ("BF16", [8])},
    )
    return folder


@pytest.fixture
def sharded_folder(model_folder: Path) -> Path:
    (model_folder / "model.safetensors").unlink()
    shards = {"model-1.safetensors": "a.weight", "model-2.safetensors": "b.weight"}
    for file, tensor in shards.items():
        write_safetensors(model_folder / file, {tensor: ("BF16", [2, 3])})
    index = {"metadata": {}, "weight_map": {tensor: file for file, tensor in shards.items()}}
    write_json(model_folder / "model.safetensors.index.json", index)
    return model_folder


@pytest.fixture
def change_config(model_folder: Path) -> Callable[..., None]:
    """Change keys of the model's config.json; None removes one."""

    def change(**keys: Any) -> None:
        merged = {**json.loads((model_folder / "config.json").read_text()), **keys}
        write_json(model_folder / "config.json", {k: v for k, v in merged.items() if v is not None})

    return change
