"""Loads the text model out of a folder that holds more, and writes it back into a copy of it.

For merge_adapter.py; models/folder/text_part.py says what such a folder is. The specification's
"part" is {"class": the text model's, "config": its config.json, "names": how tensors' names in the
files become those of the class, "files": the safetensors files}.

Every tensor that is not the text model's keeps its bytes, and every file its name.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"


def load(spec: dict[str, Any], dtype: torch.dtype) -> Any:
    part = spec["part"]
    stock = getattr(transformers, part["class"])
    return stock.from_pretrained(
        spec["model"],
        config=stock.config_class.from_dict(part["config"]),
        key_mapping=part["names"],
        dtype=dtype,
        local_files_only=True,
    )


def save(spec: dict[str, Any], model: Any) -> None:
    """Write the folder's files with the tensors of `model` in place of their own."""
    source, target = Path(spec["model"]), Path(spec["target"])
    ours, total, places = model.state_dict(), 0, {}
    unwritten = set(ours)
    for name in spec["part"]["files"]:
        tensors = {}
        with safe_open(source / name, framework="pt") as file:
            metadata = file.metadata()
            for key in file.keys():  # noqa: SIM118 - not a mapping
                name_here = text_name(key, spec["part"]["names"])
                changed = ours.get(name_here)
                unwritten.discard(name_here)
                tensors[key] = file.get_tensor(key)
                if changed is not None and not _only_rounded(tensors[key], changed, spec["stored"]):
                    tensors[key] = changed.contiguous().clone()
                total += tensors[key].numel() * tensors[key].element_size()
                places[key] = name
        save_file(tensors, target / name, metadata=metadata or {"format": "pt"})
    head = model.get_output_embeddings()
    tied = head is not None and torch.equal(head.weight, model.get_input_embeddings().weight)
    if left := unwritten - ({"lm_head.weight"} if tied else set()):
        raise RuntimeError(f"the base model's files have no place for {', '.join(sorted(left))}")
    if spec["part"]["files"] != ["model.safetensors"]:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _only_rounded(published: torch.Tensor, ours: torch.Tensor, stored: str) -> bool:
    """Whether one of another dtype than the rest differs by loading alone (Qwen3.5's decay)."""
    other = str(published.dtype) != f"torch.{stored}"
    return other and torch.equal(published.to(ours.dtype), ours)


def text_name(name: str, names: dict[str, str]) -> str:
    for pattern, prefix in names.items():
        if re.match(pattern, name):
            return re.sub(pattern, prefix, name)
    return name
