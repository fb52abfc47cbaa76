"""The newcomer's first command, for real: build the model, train, and get an adapter that answers
differently.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft import demo
from iisft.runs.record.folder import RunFolder

ASK = Path(__file__).with_name("ask_with_and_without_adapter.py")


@pytest.mark.slow
def test_the_demo_learns_its_task(iisft: Callable[..., Any]) -> None:
    result = iisft("train", "--preset", "demo", "--name", "demo")
    assert result.code == 0, result.err[-3000:]
    workspace = Path(os.environ["IISFT_HOME"])
    run = RunFolder(workspace / "runs" / "demo")
    losses = [
        event["loss"]
        for event in run.read_events()
        if event["kind"] == "metrics" and "loss" in event
    ]
    assert sum(losses[-5:]) / 5 < losses[0] / 4
    observed = json.loads(run.record.read_text())["observed"]
    assert (observed["weights_dtype"], observed["compute_dtype"], observed["rows"]) == (
        "bfloat16",
        "float32",
        240,
    )
    assert (run.output / "training_loss.png").stat().st_size > 1000
    planned = json.loads(iisft("plan", "--preset", "demo", "--json").out)
    assert (planned["measured"]["runs"], planned["fits"]) == (1, "yes")
    assert 0 < planned["step_s"] < 10
    answers = ask(workspace / "models" / demo.MODEL_ID, run.output)
    rows = [json.loads(line) for line in demo.EVAL_ROWS.read_text(encoding="utf-8").splitlines()]
    right = sum(
        decision_of(answer) == decision_of(row["output"])
        for answer, row in zip(answers["after"], rows, strict=True)
    )
    assert answers["before"] != answers["after"]
    assert right > 0.75 * len(rows)


def test_a_dry_run_of_the_demo_builds_nothing(iisft: Callable[..., Any]) -> None:
    first = iisft("train", "--preset", "demo", "--dry-run")
    assert (first.code, "the model iisft/demo-qwen2 is not there" in first.err) == (3, True)
    assert list(Path(os.environ["IISFT_HOME"]).iterdir()) == []


def decision_of(answer: str) -> bool | None:
    """None where the answer is no JSON: that is not right either."""
    try:
        return bool(json.loads(answer)["keep"])
    except (ValueError, KeyError, TypeError):
        return None


def ask(model: Path, adapter: Path) -> dict[str, list[str]]:
    """Greedy answers to the held-out rows, without and with the adapter."""
    python = os.environ.get("IISFT_PYTHON") or sys.executable
    argv = [python, str(ASK), str(model), str(adapter), str(demo.EVAL_ROWS)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    answers: dict[str, list[str]] = json.loads(done.stdout)
    return answers
