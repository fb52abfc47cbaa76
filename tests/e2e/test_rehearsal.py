"""A rehearsal with the real LLaMA-Factory: killed for real, and back to the bit."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_rows

pytestmark = pytest.mark.slow


def test_a_preset_is_rehearsed(
    iisft: Callable[..., Any], train: Callable[..., Any], tiny_models: Path, workspace: Path
) -> None:
    held_out = [{"instruction": f"q {i}", "input": "", "output": f"a {i}"} for i in range(10)]
    file = write_rows(workspace / "held out.jsonl", held_out)
    assert iisft("data", "stage", str(file), "--name", "other").code == 0
    model = str(tiny_models / "qwen2-tied" / "model")
    values = ("train.accumulation=2", "train.cutoff_len=256", "data.eval=other",
              "save.eval_every_steps=5", "train.max_steps=40")  # fmt: skip
    options = [part for value in values for part in ("--set", value)]
    argv = ["rehearse", "-p", "mi50", "--model", model, "--data", "情报", "--gpus", "1", *options]
    result = iisft(*argv, "--json")
    assert result.code == 0, result.err[-3000:]
    document = json.loads(result.out)
    observed = document.pop("observed")
    wanted = {"global_batch": 2, "rows": 14, "layers_kept": 2, "tokens": "those of the account"}
    assert {key: observed[key] for key in wanted} == wanted
    measured = ("step_s", "total_h", "checkpoint_s", "checkpoint_gib", "eval_s", "free_gib")
    for name in measured:
        assert document.pop(name) > 0
    for name in ("name", "ended", "finish", "planned_gib", "card_gib", "disk_gib"):
        assert document.pop(name)
    assert document == {
        "ok": True,
        "preset": "mi50",
        "model": model,
        "machine": platform.node(),
        "peak_gib": None,  # a GPU's
        "steps": 40,
        "accumulation": 2,
        "resume": {"ok": True, "loss_equal": True},
        "prediction": True,
        "findings": [],
    }
