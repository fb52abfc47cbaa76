"""The small files of an exported folder."""

from pathlib import Path
from typing import Any

import pytest
from tests.models.models_on_disk import CONFIG, write_json, write_safetensors

from iisft.models import exported
from iisft.models.folder.checkpoint import inspect_checkpoint

_LLAMA = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
_GEMMA = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    ("published", "older"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        (
            {"rope_parameters": _LLAMA | {"rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": _LLAMA},
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            {"rope_parameters": _GEMMA},
            {
                "rope_theta": 1e6,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_local_base_freq": 1e4,
            },
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            {},
        ),
        ({"rope_theta": 1e6, "rope_scaling": None}, {}),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6}}, {}),
    ],
)
def test_the_rotary_embedding_stands_under_the_names_of_transformers_4_too(
    tmp_path: Path, published: dict[str, Any], older: dict[str, Any]
) -> None:
    """transformers 4.57 passes over rope_parameters, and would take a base of 10,000."""
    rest = {name: value for name, value in CONFIG.items() if name != "rope_parameters"}
    write_json(tmp_path / "config.json", rest | published)
    write_safetensors(tmp_path / "model.safetensors", {"x": ("BF16", [2, 2])})
    made = exported.config(inspect_checkpoint(tmp_path), "float32")
    assert made == rest | published | older | {"dtype": "float32", "torch_dtype": "float32"}
