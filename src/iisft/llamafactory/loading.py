"""From a run's train.yaml to the arguments by which LLaMA-Factory loads its model again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iisft.llamafactory.environment import CLEARED

# Where and on what the trainer worked; the model of now lies elsewhere, and an adapter is not
# merged into it.
_OF_THE_TRAINER = (
    "model_name_or_path",
    "adapter_name_or_path",
    "dataset",
    "eval_dataset",
    "dataset_dir",
    "tokenized_path",
    "output_dir",
)


def loading_arguments(
    train_yaml: Mapping[str, Any], model: Path, max_new_tokens: int
) -> dict[str, Any]:
    """Everything that the run said about its model and template, for the view at `model`.

    Answers are greedy unless a request has a temperature of its own: with 0 LLaMA-Factory does not
    sample.
    """
    kept = {name: value for name, value in train_yaml.items() if name not in _OF_THE_TRAINER}
    generation = {
        "do_sample": True,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_new_tokens": max_new_tokens,
    }
    return kept | generation | {"model_name_or_path": str(model)}


def merged_arguments(arguments: Mapping[str, Any], model: Path) -> dict[str, Any]:
    """The same for a model with the adapter in its weights, which are never quantised while
    loading.
    """
    kept = {
        name: value
        for name, value in arguments.items()
        if not name.startswith(("quantization", "double_quant"))
    }
    return kept | {"model_name_or_path": str(model)}


def without_trainer_variables(env: Mapping[str, str]) -> dict[str, str]:
    """A run's variables without those that place ranks: one process loads the model."""
    return {name: value for name, value in env.items() if name not in CLEARED}
