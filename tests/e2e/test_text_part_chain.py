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

from helpers import TEXT_PARTS

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
    "language_model" in name or "text_model" in name
    for (name, one), other in zip(whole.named_parameters(), before.parameters(), strict=True)
    if not torch.equal(one, other)
}
print(json.dumps([type(whole).__name__, *map(len, found.values()), sorted(moved)]))
"""


# a minute each: one of every kind of layer is enough for each change
OFTEN = ("gemma3-vision",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in OFTEN else pytest.mark.matrix) for one in TEXT_PARTS],
)
def test_trained_asked_and_written_back(
    name: str,
    iisft: Callable[..., Any],
    train: Callable[..., Any],
    tiny_model: Callable[[str], Path],
    workspace: Path,
    tmp_path: Path,
) -> None:
    model = tiny_model(name)
    options = ("lora.rank=8", "train.learning_rate=0.05", "train.max_steps=2")
    trained = train(
        "--model", str(model), *(part for value in options for part in ("--set", value))
    )
    assert trained.code == 0, trained.err[-3000:]
    record = json.loads((workspace / "runs" / "run" / "run.json").read_text(encoding="utf-8"))
    text_class, whole_class = TEXT_PARTS[name]
    assert record["observed"]["class"] == text_class
    assert record["observed"]["weights_dtype"] == "bfloat16"
    assert record["model"]["architecture"] == text_class
    answers = iisft("predict", "run", "--data", "情报", "--limit", "2", "--max-tokens", "3")
    assert answers.code == 0, answers.err[-3000:]
    target = tmp_path / "whole 模型"
    exported = iisft("export", "run", "-o", str(target))
    assert exported.code == 0, exported.err[-3000:]
    done = subprocess.run(
        [PYTHON, "-c", LOADED, str(target), str(model)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [whole_class, 0, 0, 0, 0, [True]]
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [whole_class]
    published = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert published.keys() <= config.keys() and "vision_config" in config
