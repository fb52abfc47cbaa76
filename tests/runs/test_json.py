"""Every command that prints data prints one JSON document with --json, and nothing else
on stdout.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    assert status["checkpoints"] == [
        {"step": step, "complete": True, "eval_loss": None, "best": False} for step in (2, 4)
    ]
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


DESCRIBED: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "scripts" / "json_keys.yaml").read_text(encoding="utf-8")
)


PRINTED = [
    ("train --dry-run", ["train", "-p", "mi50", "--dry-run"]),
    ("plan", ["plan", "-p", "mi50"]),
    ("sweep --preset", ["sweep", "-p", "mi50", "--set", "lora.rank=8,16", "--dry-run"]),
    ("status, wait, stop, train, resume", ["status", "done"]),
    ("status, wait, stop, train, resume", ["wait", "done"]),
    ("runs", ["runs"]),
    ("queue, queue move, queue rm, queue pause, queue run", ["queue"]),
    ("logs", ["logs", "done"]),
    ("env-check", ["env-check"]),
    ("env-check --explain", ["env-check", "--explain", "R08"]),
    ("preset list", ["preset", "list"]),
    ("preset validate", ["preset", "validate", "mi50"]),
    ("preset show --explain", ["preset", "show", "mi50", "--explain"]),
    ("data check", ["data", "check", "{rows}", "--model", "{model}"]),
    ("data stage", ["data", "stage", "{rows}", "--name", "again"]),
    ("data list", ["data", "list"]),
    ("data split", ["data", "split", "{rows}"]),
    ("model show", ["model", "show", "{model}"]),
    ("evaluate", ["evaluate", "{answers}"]),
    ("compare", ["compare", "{answers}", "{others}"]),
    ("report", ["report", "done", "-o", "{page}"]),
]
# Documents that need a live run, a hub or a loaded model, or whose keys a preset or row brings.
NOT_COMPARED = {
    "rehearse",  # compared in test_rehearse.py
    "sweep",  # compared in test_sweep.py
    "train --detach",
    "train --queue",  # compared in test_queue.py
    "resume --detach",
    "notify test",
    "runs diff",
    "preset show",
    "data show",
    "models",
    "download",
    "predict",
    "chat",
    "serve",
    "export",
}


def test_every_described_document_is_compared_or_said_not_to_be() -> None:
    assert DESCRIBED.keys() - {entry for entry, _ in PRINTED} == NOT_COMPARED


def test_the_manual_describes_every_key(
    iisft: CLI, finished: list[str], rows: Path, model: Path, tmp_path: Path
) -> None:
    places = {"rows": rows, "model": model, "page": tmp_path / "page.html"}
    for name, text in (("answers", "yes"), ("others", "no")):
        places[name] = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"{i}", "reference": "yes", "prediction": text} for i in range(6)]
        places[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    for entry, argv in PRINTED:
        document = json.loads(iisft(*(word.format(**places) for word in argv), "--json").out)
        described = DESCRIBED[entry]
        if "[]" in described:
            described, document = described["[]"], document[0]
        always = {key for key in described if not key.endswith("?") and "." not in key}
        sometimes = {key.rstrip("?") for key in described if key.endswith("?")}
        printed = set(document) - sometimes
        if entry == "logs":  # each kind of event has keys of its own
            printed &= always
        assert (entry, printed) == (entry, always)
        for outer, _, inner in (key.partition(".") for key in described if "." in key):
            assert inner in document[outer], f"{entry}: {outer}.{inner}"
