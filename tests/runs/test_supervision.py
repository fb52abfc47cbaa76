"""Process life against a fake trainer: how a run ends, and what is on record."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI, steps, train_argv, until
from iisft import process
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import status_of

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def in_terminal(train: CLI, model: Path) -> Start:
    """Start the run in the foreground of a session of its own, as in a terminal."""

    def start() -> subprocess.Popen[bytes]:
        argv = train_argv(model, "--gpus", "1", "--name", "run", data="数据")
        return subprocess.Popen(
            [sys.executable, "-m", "iisft", *argv, "--set", "train.accumulation=2"],
            start_new_session=True,
        )

    return start


def outcome(folder: RunFolder) -> dict[str, Any]:
    record = json.loads(folder.exit.read_text())
    return {key: record[key] for key in ("state", "reason", "step", "total_steps", "checkpoint")}


def test_a_run_that_holds_its_preset_is_finished_and_proven(
    train: CLI, folder: RunFolder, model: Path
) -> None:
    result = train()
    assert (result.code, outcome(folder)) == (
        0,
        {
            "state": "finished",
            "reason": "all 4 steps",
            "step": 4,
            "total_steps": 4,
            "checkpoint": 4,
        },
    )
    assert folder.train_yaml.exists() and not folder.datasets_cache.exists()
    observed = json.loads(folder.record.read_text())["observed"]
    assert observed == {
        "adapter": None,
        "weights_dtype": "bfloat16",
        "compute_dtype": "float32",
        "attention": "eager_blocks",
        "world_size": 1,
        "global_batch": 2,
        "rows": 8,
        "trainable_parameters": 131072,
        "autocast": None,
        "arithmetic": "float32",
        "class": "Qwen2ForCausalLM",
        "device": "cpu",
        "layers_kept": 1,
        "packed": None,
        "cards": None,
        "logit_positions": None,
        "loaded": {"missing": [0], "unexpected": [0], "mismatched": [0]},
        "adapted": {"q_proj": 1},
        "products": {"float32": 7},
        "first_batch": {"shape": [1, 8], "sha256": "0123456789abcdef"},
        "reach": None,
        "rows_repeated": 0,
        "tokens": "not compared: rows can't be told from their padding",
    }
    metrics = [event for event in folder.read_events() if event["kind"] == "metrics"]
    assert [(event["step"], event["loss"], event["grad_norm"]) for event in metrics] == [
        (1, 2.0, 2.102),
        (2, 1.0, 2.102),
        (3, 2.0 / 3, 2.102),
        (4, 0.5, 2.102),
    ]
    assert "loss       2.0000 -> 1.0417" in result.out


def test_adapters_name_the_real_base_model_and_not_the_view(
    train: CLI, folder: RunFolder, model: Path
) -> None:
    assert train().code == 0
    for place in (folder.output, folder.output / "checkpoint-4"):
        assert json.loads((place / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == str(model)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("stock-class", "1 of 1 ranks did not report their precision"),
        ("wrong-attention", "rank 0: attention eager, but the preset says sdpa"),
        ("dropped-row", "the trainer has 7 rows, but 8 were staged: 1 rows were dropped"),
        (
            "random-head",
            "rank 0: 1 tensors were in no file and are random (lm_head.weight)",
        ),
        ("narrow-mlp", "rank 0: products of the first forward in bfloat16 (7), not float32"),
        ("no-cap", "rank 0: the model's attention cap of 50.0 was left out"),
    ],
)
def test_a_run_that_is_not_its_preset_ends_with_1_and_one_sentence(
    mode: str, sentence: str, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer(mode)
    result = train("--set", "attention=sdpa")
    ended = outcome(folder)
    assert (result.code, ended["state"]) == (1, "failed")
    assert sentence in ended["reason"]
    assert ended["reason"].startswith("this run is not what its preset says: ")
    assert [event["id"] for event in folder.read_events() if event["kind"] == "finding"] == [
        "not-as-preset"
    ]


def test_a_crash_is_failed_with_the_trainers_own_sentence(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash")
    assert train().code == 1
    assert outcome(folder) == {
        "state": "failed",
        "reason": "ValueError: Cannot find valid samples, check `data/README.md` for the data "
        "format. (exit code 1)",
        "step": 0,
        "total_steps": 0,
        "checkpoint": None,
    }


def test_an_end_before_the_last_step_is_no_success(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("early-end")
    assert train("--set", "watch.restarts=0").code == 1
    assert outcome(folder)["reason"] == "the trainer ended at step 2 of 4 without an error"


def test_nan_twice_stops_the_run_before_more_time_is_lost(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("nan")
    assert train().code == 1
    assert (
        outcome(folder)["reason"]
        == "loss nan, grad_norm 2.102 at step 3: nothing is learnt from here on"
    )
    logged = [event["loss"] for event in folder.read_events() if event["kind"] == "metrics"]
    assert logged == [2.0, "nan", "nan"]
    (finding,) = [event for event in folder.read_events() if event["kind"] == "finding"]
    assert finding["fix"].startswith("checkpoint-2 is kept; ")


def test_nan_is_let_through_when_the_preset_says_so(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("nan", STEPS="2")
    assert train("--set", "watch.nan=ignore").code == 0


def test_stop_asks_for_a_checkpoint_and_says_what_was_kept(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("hang")
    started = train("--detach")
    assert (started.code, started.out) == (0, "run\n")
    until(lambda: any(event["kind"] == "observed" for event in folder.read_events()))
    stopped = iisft("stop", "run")
    assert (stopped.code, stopped.out) == (
        0,
        "run: stopped - stopped on request at step 1; checkpoint-1 is kept\n",
    )
    assert process.processes_of_run(folder.marker) == []
    assert iisft("wait", "run").code == 130


def test_a_trainer_that_ignores_the_request_is_killed_by_stop_now(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("ignore-stop", 1)
    stopped = iisft("stop", "run", "--now")
    assert stopped.out == "run: stopped - stopped on request at step 1; no checkpoint is kept\n"
    assert process.processes_of_run(folder.marker) == []


def test_no_orphan_outlives_its_run(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("orphan")
    train("--detach")
    until(lambda: len(process.processes_of_run(folder.marker)) == 2)
    assert iisft("stop", "run", "--now").code == 0
    assert process.processes_of_run(folder.marker) == []


def test_a_killed_supervisor_does_not_take_the_trainer_with_it_and_stop_still_works(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang", 1)
    supervisor = json.loads(folder.processes.read_text())["supervisor"]["pid"]
    process.kill([supervisor])
    until(lambda: status_of(folder).reason.startswith("unsupervised"))
    assert status_of(folder).state == "running"
    assert iisft("stop", "run").code == 0
    assert (status_of(folder).state, process.processes_of_run(folder.marker)) == ("stopped", [])


@pytest.mark.slow
def test_everything_killed_at_once_is_lost_and_wait_says_so(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang", 1)
    process.kill([json.loads(folder.processes.read_text())["supervisor"]["pid"]])
    process.kill_run(folder.marker)
    until(lambda: status_of(folder).state == "lost")
    assert iisft("wait", "run").code == 1
    again = iisft("stop", "run")
    assert (again.code, "run is lost" in again.err) == (6, True)


def test_a_closed_terminal_ends_nothing(
    iisft: CLI, folder: RunFolder, fake_trainer: Callable[..., None], in_terminal: Start
) -> None:
    fake_trainer("hang")
    following = in_terminal()
    until(lambda: steps(folder) == [1])
    os.killpg(following.pid, signal.SIGHUP)
    following.wait(60)
    assert status_of(folder).state == "running"
    assert iisft("stop", "run", "--now").code == 0


def test_ctrl_c_in_the_foreground_stops_with_a_checkpoint(
    folder: RunFolder, fake_trainer: Callable[..., None], in_terminal: Start
) -> None:
    fake_trainer("hang")
    following = in_terminal()
    until(lambda: steps(folder) == [1])
    os.killpg(following.pid, signal.SIGINT)
    assert following.wait(60) == 130
    assert outcome(folder)["reason"] == "stopped on request at step 1; checkpoint-1 is kept"


def test_a_second_ctrl_c_kills(
    folder: RunFolder, fake_trainer: Callable[..., None], in_terminal: Start
) -> None:
    fake_trainer("ignore-stop")
    following = in_terminal()
    until(lambda: steps(folder) == [1])
    os.killpg(following.pid, signal.SIGINT)
    until(lambda: any(event.get("state") == "stopping" for event in folder.read_events()))
    os.killpg(following.pid, signal.SIGINT)
    assert following.wait(60) == 130
    assert process.processes_of_run(folder.marker) == []


def test_secrets_reach_the_trainer_but_no_file(
    train: CLI, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    assert (
        train(
            "--set",
            "env.WANDB_API_KEY=alsoverysecret",
            "--set",
            "env.PROXY=http://me:hunter22@host:1",
        ).code
        == 0
    )
    for path in folder.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in (b"verysecret", b"hunter22")), path


def test_a_corrupt_record_hides_no_other_run(iisft: CLI, train: CLI, workspace: Path) -> None:
    assert train().code == 0
    broken = workspace / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"id": "bro')
    listed = json.loads(iisft("runs", "--json").out)
    assert {run["id"]: run["state"] for run in listed} == {"run": "finished", "broken": "lost"}
