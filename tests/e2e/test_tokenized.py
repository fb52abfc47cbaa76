"""Tokens made while staging: runs take them, learn the same from them, and never take those of
other rows.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CLI = Callable[..., Any]


def losses(workspace: Path, run: str) -> list[tuple[int, float]]:
    lines = (workspace / "runs" / run / "output" / "trainer_log.jsonl").read_text().splitlines()
    return [
        (entry["current_steps"], entry["loss"])
        for entry in map(json.loads, lines)
        if "loss" in entry
    ]


def test_runs_take_the_tokens_that_staging_made(
    iisft: CLI, train: CLI, tiny_models: Path, workspace: Path
) -> None:
    argv = ["data", "stage", str(workspace / "rows.json"), "--name", "情报", "--preset", "mi50"]
    argv += ["--model", str(tiny_models / "qwen2-tied" / "model"), "--set", "train.cutoff_len=256"]
    made = iisft(*argv, "--tokenize", "--json")
    assert made.code == 0, made.err
    assert (
        Path(json.loads(made.out)["tokenized"]).parent == workspace / "data" / "情报" / "tokenized"
    )

    result = train(name="cached")
    assert result.code == 0, result.err
    assert "the rows are taken as LLaMA-Factory tokenised them while staging" in result.err
    log = (workspace / "runs" / "cached" / "logs" / "train.log").read_text(encoding="utf-8")
    assert "Loaded tokenized dataset from" in log and "Running tokenizer on dataset" not in log

    rows = json.loads((workspace / "rows.json").read_text(encoding="utf-8"))
    (workspace / "rows.json").write_text(
        json.dumps([*rows, rows[0] | {"input": "新"}]), encoding="utf-8"
    )
    assert iisft(*argv[:-4], *argv[-4:]).code == 0
    assert "tokenised" not in train("--dry-run", name="other-rows").err
    (workspace / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert iisft(*argv).code == 0
    assert (
        "tokenised"
        not in train("--dry-run", "--set", "train.cutoff_len=128", name="other-limit").err
    )
    (arrow,) = (workspace / "data" / "情报" / "tokenized").rglob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-8])
    assert "tokenised" not in train("--dry-run", name="torn").err

    assert train(name="plain").code == 0
    assert losses(workspace, "cached") == losses(workspace, "plain")
