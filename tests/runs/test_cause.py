"""A run that failed says its cause and fix, and `iisft resume` only where that has a chance."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft import process
from iisft.llamafactory.failures import KNOWN, Failure
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import status_of

CLI = Callable[..., Any]
Fake = Callable[..., None]
EXCERPTS = Path(__file__).parents[1] / "llamafactory" / "failures"
GO_ON = "  go on with: iisft resume run\n"


@pytest.fixture
def train(iisft: CLI, model: Path, rows: Path, fake_trainer: Fake) -> CLI:
    assert iisft("data", "stage", str(rows), "--name", "数据").code == 0
    size = ("--gpus", "1", "--set", "train.accumulation=2", "--name", "run")
    # with layers kept, exhausted memory is answered by another start that keeps fewer
    whole = ("--set", "train.gradient_checkpointing=true")

    def run(*more: str) -> Any:
        return iisft(
            "train",
            "--preset",
            "mi50",
            "--model",
            str(model),
            "--data",
            "数据",
            *size,
            *whole,
            *more,
        )

    return run


@pytest.fixture
def folder(workspace: Path) -> RunFolder:
    return RunFolder(workspace / "runs" / "run")


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def in_forward(failure_id: str) -> str:
    return f"forward:{EXCERPTS / failure_id}.log"


def found(folder: RunFolder) -> list[str]:
    return [event["id"] for event in folder.read_events() if event["kind"] == "finding"]


def outcome(folder: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(folder.exit.read_text())
    return content


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
def test_a_crash_in_the_first_forward_ends_with_its_cause_and_its_fix(
    known: Failure, iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer(in_forward(known.id))
    result = train("--set", "watch.restarts=0")
    # what the library had warned of before
    heard = ["library-warning"] if known.id == "dataset-no-valid-rows" else []
    assert (result.code, found(folder)) == (1, [*heard, known.id])
    assert outcome(folder)["fix"] == known.fix
    end = result.err[result.err.rindex("run: failed - ") :]
    assert known.cause in end and f"\n  fix: {known.fix}\n  log: {folder.train_log}\n" in end
    assert end.endswith(GO_ON) == known.passing and ("iisft resume run" in end) == known.passing
    status = iisft("status", "run").out
    assert known.cause in status and f"  fix: {known.fix}\n" in status
    assert ("iisft resume" in status) == known.passing
    assert "not what its preset says" not in result.err + status


def test_the_end_is_told_in_four_lines(
    train: CLI, folder: RunFolder, fake_trainer: Fake, tmp_path: Path
) -> None:
    (tmp_path / "token.log").write_text("IndexError: index out of range in self\n")
    fake_trainer(f"forward:{tmp_path / 'token.log'}")
    end = train().err.splitlines()[-4:]
    assert end == [
        "run: failed - IndexError: index out of range in self (exit code 1)",
        "  cause: A row holds a token that the model's embedding lacks: tokenizer and weights do "
        "not belong together.",
        "  fix: take tokenizer and weights from the same model; --set model.template= that model's "
        "own",
        f"  log: {folder.train_log}",
    ]


def test_a_rank_that_reported_does_not_make_the_crash_of_another_a_verdict(
    train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer(in_forward("gpu-out-of-memory"), REPORTED="1")
    assert train("--gpus", "2").code == 1
    assert found(folder) == ["gpu-out-of-memory"]
    assert outcome(folder)["reason"].startswith(
        "while training at step 0: torch.OutOfMemoryError: "
    )


def test_a_rank_that_reported_something_else_is_a_verdict_at_once(
    train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer(
        in_forward("gpu-out-of-memory"), REPORTED="1", WRONG_ATTENTION="1", WAIT_FOR="never"
    )
    result = train("--gpus", "2", "--set", "attention=sdpa")
    assert (result.code, found(folder)) == (1, ["not-as-preset"])
    sentence = (
        "this run is not what its preset says: rank 0: attention eager, but the preset says sdpa"
    )
    assert outcome(folder)["reason"] == sentence
    assert result.err.endswith(f"run: failed - {sentence}\n  log: {folder.train_log}\n")


def test_an_evaluation_before_the_first_step_is_no_step(
    train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer(in_forward("no-kernel-image"), EVAL_FIRST="1")
    assert train().code == 1
    assert found(folder) == ["no-kernel-image"]


def test_a_trainer_that_ends_well_without_a_report_is_a_verdict(
    train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer("stock-class", STEPS="0")
    result = train()
    assert (result.code, found(folder), "iisft resume" in result.err) == (
        1,
        ["not-as-preset"],
        False,
    )


def test_the_crash_of_an_adopted_trainer_in_its_first_forward_has_its_cause(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Fake, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fake_trainer(in_forward("rocblas-without-kernels"), WAIT_FOR=str(gate))
    train("--detach")
    until(lambda: "Number of trainable" in folder.train_log.read_text())
    process.kill([json.loads(folder.processes.read_text())["supervisor"]["pid"]])
    until(lambda: not status_of(folder).supervised)
    assert iisft("resume", "run", "--detach").code == 0
    gate.touch()
    ended = iisft("wait", "run")
    assert (ended.code, found(folder)) == (1, ["rocblas-without-kernels"])
    assert "(unsupervised at its end)" in outcome(folder)["reason"] and GO_ON not in ended.err


def test_a_stop_before_the_first_step_is_a_stop(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer(in_forward("gpu-out-of-memory"), WAIT_FOR="never")
    train("--detach")
    until(lambda: "Number of trainable" in folder.train_log.read_text())
    assert (
        iisft("stop", "run").out
        == "run: stopped - stopped on request at step 0; no checkpoint is kept\n"
    )
    assert found(folder) == []
    assert iisft("wait", "run").err.endswith(GO_ON)


def test_a_crash_that_comes_again_is_told_though_a_stop_was_asked_for(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Fake, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fake_trainer(in_forward("gpu-out-of-memory"), REPORTED="1", WAIT_FOR=str(gate))
    train("--detach")
    until(lambda: any(event["kind"] == "observed" for event in folder.read_events()))
    folder.stop_request.write_text('{"now": false}')
    until(lambda: any(event.get("state") == "stopping" for event in folder.read_events()))
    gate.touch()
    ended = iisft("wait", "run")
    assert (ended.code, found(folder), GO_ON in ended.err) == (1, ["gpu-out-of-memory"], False)


UNKNOWN = "Traceback (most recent call last):\nRuntimeError: something that no table knows\n"


@pytest.mark.parametrize("mode", ["forward", "log"])
def test_an_unknown_exception_that_comes_again_has_no_way_on(
    mode: str, train: CLI, folder: RunFolder, fake_trainer: Fake, tmp_path: Path
) -> None:
    """Before the first step it is tried once, later twice."""
    (tmp_path / "unknown.log").write_text(UNKNOWN)
    fake_trainer(f"{mode}:{tmp_path / 'unknown.log'}", LOG_AT="3")
    end = train().err.splitlines()[-2:]
    assert end == [
        "run: failed - RuntimeError: something that no table knows (exit code 1)",
        f"  log: {folder.train_log}",
    ]
    assert status_of(folder).restarts == (mode == "log")


def test_nan_is_told_with_its_fix_and_without_a_way_on(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer("nan")
    end = train().err.splitlines()[-3:]
    assert end[0].startswith("run: failed - loss nan, ")
    assert end[1].startswith("  fix: checkpoint-2 is kept; lower train.learning_rate")
    assert end[2] == f"  log: {folder.train_log}"
    assert "go on" not in iisft("status", "run").out


def test_what_was_killed_has_a_way_on(train: CLI, fake_trainer: Fake) -> None:
    fake_trainer("crash-at-3")
    assert train("--set", "watch.restarts=0").err.endswith(GO_ON)


def test_the_fix_is_that_of_the_last_end_and_not_of_one_before(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Fake, tmp_path: Path
) -> None:
    fake_trainer(in_forward("gpu-lost"))
    train("--set", "watch.restarts=0")
    (tmp_path / "unknown.log").write_text(UNKNOWN)
    fake_trainer(f"forward:{tmp_path / 'unknown.log'}")
    assert "fix:" not in iisft("resume", "run").err.splitlines()[-2]


def test_a_run_without_its_record_has_no_way_on(iisft: CLI, train: CLI, folder: RunFolder) -> None:
    train()
    folder.record.unlink()
    folder.exit.unlink()
    assert (iisft("resume", "run").code, "go on" in iisft("status", "run").out) == (6, False)
