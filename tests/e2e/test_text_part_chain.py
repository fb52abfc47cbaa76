"""A model that is published with a vision tower, through the command line: trained, asked, and
written back for transformers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("IISFT_PYTHON") or sys.executable
LOADED = """
import json, sys
import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import logging
logging.set_verbosity_error()
whole, found = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
before = AutoModelForImageTextToText.from_pretrained(sys.argv[2])
moved = {
    "vision_tower" in name
    for (name, one), other in zip(whole.named_parameters(), before.parameters(), strict=True)
    if not torch.equal(one, other)
}
print(json.dumps([type(whole).__name__, *map(len, found.values()), sorted(moved)]))
"""


def test_trained_asked_and_written_back(
    iisft: Callable[..., Any],
    train: Callable[..., Any],
    tiny_models: Path,
    workspace: Path,
    tmp_path: Path,
) -> None:
    model = tiny_models / "gemma3-vision" / "model"
    options = ("lora.rank=8", "train.learning_rate=0.05", "train.max_steps=2")
    trained = train(
        "--model", str(model), *(part for value in options for part in ("--set", value))
    )
    assert trained.code == 0, trained.err[-3000:]
    record = json.loads((workspace / "runs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["observed"]["class"] == "Gemma3ForCausalLM"
    assert record["observed"]["weights_dtype"] == "bfloat16"
    assert record["model"]["architecture"] == "Gemma3ForCausalLM"
    answers = iisft("predict", "run", "--data", "情报", "--limit", "2", "--max-tokens", "3")
    assert answers.code == 0, answers.err[-3000:]
    target = tmp_path / "whole 模型"
    exported = iisft("export", "run", "-o", str(target))
    assert exported.code == 0, exported.err[-3000:]
    done = subprocess.run(
        [PYTHON, "-c", LOADED, str(target), str(model)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == ["Gemma3ForConditionalGeneration", 0, 0, 0, 0, [False]]
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert {"text_config", "vision_config"} <= config.keys()
