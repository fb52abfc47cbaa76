"""What a run tells without a terminal, and what its figures are when an evaluation came last."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import CLI
from iisft.llamafactory.logs import Metrics
from iisft.runs.record import events as recording
from iisft.runs.record.folder import RunFolder

NEXT = (
    "iisft predict run   iisft evaluate run   iisft report run   iisft chat run   "
    "iisft export run -o DIR"
)


@pytest.fixture
def evaluated(
    train: CLI, fake_trainer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., object]:
    """Train the run `run`, whose last word is an evaluation."""
    monkeypatch.setenv("FAKE_EVAL_LAST", "1")
    return train


def plain(text: str) -> list[str]:
    """Its lines without what a machine's speed decides."""
    timed = r"ETA \S+( \d+s)?  \S+ s/step  |  \d+ tokens/s"
    return [re.sub(timed, "", line) for line in text.splitlines()]


def test_a_pipe_gets_a_line_for_each_step_and_the_log_keeps_the_trainers_talk(
    evaluated: CLI, folder: RunFolder
) -> None:
    result = evaluated()
    assert result.code == 0, result.err
    lines = plain(result.out)
    assert lines[:6] == [
        "step 1/4  loss 2.0000  grad_norm 2.1  lr 1.00e-05  epoch 0.25",
        "step 2/4  loss 1.0000  grad_norm 2.1  lr 1.00e-05  epoch 0.50",
        "step 3/4  loss 0.6667  grad_norm 2.1  lr 1.00e-05  epoch 0.75",
        "step 4/4  loss 0.5000  grad_norm 2.1  lr 1.00e-05  epoch 1.00",
        "step 4/4  epoch 1.00  eval_loss 0.7500",
        "run: finished, all 4 steps",
    ]
    assert lines[-1] == f"  next       {NEXT}"
    talk = "***** Running training *****"
    assert talk not in result.out + result.err
    assert talk in folder.train_log.read_text()


def test_json_has_stdout_for_itself_and_verbose_shows_the_trainers_lines(evaluated: CLI) -> None:
    result = evaluated("--json", "--verbose")
    assert json.loads(result.out)["state"] == "finished"
    assert "***** Running training *****" in result.err
    assert "step 1/4" not in result.err


def test_the_figures_of_a_run_whose_last_word_was_an_evaluation(
    iisft: CLI, evaluated: CLI, folder: RunFolder
) -> None:
    evaluated("--detach")
    waited = iisft("wait", "run")
    assert f"  next: {NEXT}" in waited.err
    outcome = json.loads(folder.exit.read_text())
    assert (outcome["loss"], outcome["eval_loss"]) == (0.5, 0.75)
    for argv in (["status", "run"], ["runs"]):
        found = json.loads(iisft(*argv, "--json").out)
        one = found[0] if isinstance(found, list) else found
        assert (one["loss"], one["eval_loss"]) == (0.5, 0.75)
    status = iisft("status", "run").out
    assert "step 4/4" in status and "loss 0.5000" in status and "eval_loss 0.7500" in status
    assert "adapted              q_proj 1\n" in status
    assert "first batch          shape 1 8, sha256 0123456789abcdef\n" in status
    assert not any(mark in status for mark in ("{", "[", "None", "True", "False"))
    assert "  0.5000  " in iisft("runs").out
    # a record of earlier versions, which kept no loss there
    folder.exit.write_text(json.dumps(outcome | {"loss": None}))
    assert "  0.5000  " in iisft("runs").out


def test_the_energy_of_a_run_and_its_cost(
    iisft: CLI, train: CLI, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train().code == 0
    assert "energy" not in iisft("status", "run").out
    with folder.events.open("a") as events:
        events.writelines(['{"kind": "power", "joules": 1800000.0, "seconds": 60.0}\n'] * 3)
    assert "\nenergy       1.5 kWh by the GPUs\n" in iisft("status", "run").out
    monkeypatch.setenv("IISFT_KWH_PRICE", "0.3")
    assert "1.5 kWh by the GPUs, 0.45 at IISFT_KWH_PRICE\n" in iisft("status", "run").out
    status = json.loads(iisft("status", "run", "--json").out)
    assert status["measured"]["energy_kwh"] == 1.5


def test_a_detached_run_names_the_way_to_see_it(train: CLI, iisft: CLI) -> None:
    result = train("--detach")
    assert "running; see it with: iisft watch run   stop it with: iisft stop run" in result.err
    iisft("wait", "run")


def test_tokens_per_second_of_each_step_and_of_none_but_steps(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps between two logs, an evaluation of a minute in between."""
    folder.path.mkdir(parents=True)
    clock = [0.0]
    monkeypatch.setattr(recording.time, "monotonic", lambda: clock[0])
    recorder = recording.Recorder(recording.Events(folder), adopted=False)

    def at(time: float, step: int, tokens: int, *, evaluation: bool = False) -> None:
        clock[0] = time
        loss, eval_loss = (None, 2.0) if evaluation else (1.0, None)
        recorder.take([Metrics(step, 30, None, loss, None, None, eval_loss, tokens)])

    at(0, 10, 1000)
    at(20, 20, 3000)
    at(80, 20, 3000, evaluation=True)
    at(100, 30, 5000)
    told = [(e.get("step_s"), e.get("tokens_per_s")) for e in folder.read_events()]
    assert told == [(None, None), (2.0, 100.0), (None, None), (2.0, 100.0)]


def test_the_last_lines_of_a_log_and_the_last_events(
    iisft: CLI, train: CLI, folder: RunFolder
) -> None:
    assert train().code == 0
    whole = iisft("logs", "run").out.splitlines()
    assert iisft("logs", "run", "-n", "3").out.splitlines() == whole[-3:]
    assert iisft("logs", "run", "-n", "3", "--follow").out.splitlines() == whole[-3:]
    assert iisft("logs", "run", "--lines", "9999").out.splitlines() == whole
    events = json.loads(iisft("logs", "run", "--json").out)
    assert json.loads(iisft("logs", "run", "--json", "-n", "2").out) == events[-2:]
    lines = iisft("logs", "run", "--json", "-n", "2", "-f").out.splitlines()
    assert [json.loads(line) for line in lines] == events[-2:]
    assert iisft("logs", "run", "-n", "0").code == 2


def test_a_longer_run_is_a_new_one_with_its_command(
    iisft: CLI, train: CLI, folder: RunFolder
) -> None:
    assert train().code == 0
    command = f"iisft train --preset '{folder.preset}' --gpus 1 --set lora.start=run --set"
    done = iisft("resume", "run")
    assert (done.code, f"to go on with its adapter: {command} train.epochs=N" in done.err) == (
        6,
        True,
    )
    for option, said in (("--epochs", "train.epochs=7"), ("--max-steps", "train.max_steps=7")):
        done = iisft("resume", "run", option, "7")
        assert (done.code, f"fix:   {command} {said}\n" in done.err) == (6, True)


def test_failed_runs_are_removed_together(
    iisft: CLI, train: CLI, workspace: Path, fake_trainer: Callable[..., None]
) -> None:
    assert iisft("runs", "rm", "--failed").err == "no run has failed\n"
    assert iisft("runs", "rm").code == 2
    assert train().code == 0
    for name in ("a", "b"):
        (workspace / "runs" / name).mkdir()
        outcome = {"state": "failed", "preset": "p", "reason": "why"}
        (workspace / "runs" / name / "exit.json").write_text(json.dumps(outcome))
    asked = iisft("runs", "rm", "--failed")
    assert (asked.code, (workspace / "runs" / "a").is_dir()) == (2, True)
    assert sorted(iisft("runs", "rm", "--failed", "--yes").out.split()) == ["a", "b"]
    assert iisft("runs", "--quiet").out == "run\n"


def test_a_dataset_is_removed_and_its_runs_keep_their_rows(
    iisft: CLI, train: CLI, workspace: Path, folder: RunFolder
) -> None:
    assert train().code == 0
    unknown = iisft("data", "rm", "数据", "other", "--yes")
    assert (unknown.code, "no staged dataset 'other'" in unknown.err) == (3, True)
    assert iisft("data", "rm", "数据").code == 2
    for name in ("", "..", "../runs", "."):
        assert iisft("data", "rm", name, "--yes").code == 3
    done = iisft("data", "rm", "数据", "--yes")
    assert (done.code, done.out, list((workspace / "data").iterdir())) == (0, "数据\n", [])
    assert len((folder.dataset / "数据.jsonl").read_text().splitlines()) == 8
