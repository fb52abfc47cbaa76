"""Every command that prints data prints one JSON document with --json, and nothing else
on stdout.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLI = Callable[..., Any]


@pytest.fixture
def finished(iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]) -> list[str]:
    """A finished run, and the arguments that made it."""
    assert iisft("data", "stage", str(rows), "--name", "rows", "--json").code == 0
    argv = ["train", "--preset", "mi50", "--model", str(model), "--data", "rows", "--gpus", "1"]
    document = json.loads(iisft(*argv, "--name", "done", "--json").out)
    assert (document["id"], document["state"], document["step"]) == ("done", "finished", 4)
    return argv


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["runs"], 0),
        (["status", "done"], 0),
        (["logs", "done"], 0),
        (["wait", "done"], 0),
        (["data", "list"], 0),
        (["preset", "list"], 0),
        (["preset", "show", "mi50"], 0),
        (["preset", "show", "mi50", "--explain"], 0),
        (["preset", "validate", "mi50", "p40"], 0),
        (["preset", "validate", "nothing"], 3),
        (["stop", "done"], 6),
        (["status", "nothing"], 6),
        (["preset", "show", "nothing"], 3),
        (["data", "stage", "nothing.json", "--name", "x"], 3),
    ],
)
def test_one_document(iisft: CLI, finished: list[str], argv: list[str], code: int) -> None:
    result = iisft(*argv, "--json")
    assert result.code == code
    json.loads(result.out)


def test_status_has_the_promised_keys(iisft: CLI, finished: list[str]) -> None:
    status = json.loads(iisft("status", "done", "--json").out)
    assert {
        "id",
        "state",
        "reason",
        "preset",
        "started",
        "ended",
        "step",
        "total_steps",
        "loss",
        "eta_s",
    } <= set(status)
    assert status["checkpoints"] == [{"step": 2, "complete": True}, {"step": 4, "complete": True}]
    assert (status["restarts"], status["findings"], status["loss"]) == (0, [], 0.5)


def test_a_detached_run_and_a_stop_are_documents_too(
    iisft: CLI, finished: list[str], fake_trainer: Callable[..., None], workspace: Path
) -> None:
    fake_trainer("hang")
    started = json.loads(iisft(*finished, "--name", "long", "--detach", "--json").out)
    assert started == {"id": "long", "run_dir": str(workspace / "runs" / "long")}
    assert json.loads(iisft("stop", "long", "--now", "--json").out)["state"] == "stopped"


def test_quiet_prints_ids_alone(iisft: CLI, finished: list[str]) -> None:
    assert iisft("runs", "--quiet").out == "done\n"
    assert iisft("data", "list", "-q").out == "rows\n"
    assert "mi50\n" in iisft("preset", "list", "-q").out
