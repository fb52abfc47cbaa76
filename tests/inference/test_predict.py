"""Predictions through the command line: none twice, none lost, whatever ends them."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import until
from iisft import files
from iisft.runs.record.folder import RunFolder

CLI = Callable[..., Any]
MakeRun = Callable[..., RunFolder]


def rows_of(folder: RunFolder, which: str = "final") -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in folder.predictions_of("情报", which).read_text().splitlines()
    ]


def numbers(folder: RunFolder, which: str = "final") -> list[int]:
    return [row["row"] for row in rows_of(folder, which)]


def test_every_row_is_answered_once_and_in_order(
    iisft: CLI, make_run: MakeRun, staged: str
) -> None:
    folder = make_run()
    result = iisft("predict", "run", "--data", staged, "--batch-size", "3", "--json")
    file = folder.predictions / "情报@final.jsonl"
    assert (result.code, json.loads(result.out)) == (
        0,
        [
            {
                "checkpoint": "final",
                "file": str(file),
                "rows": 10,
                "generated": 10,
                "errors": 0,
                "cut_off": 1,
                "longer_than_cutoff": 4,
            }
        ],
    )
    assert numbers(folder) == list(range(1, 11))
    assert rows_of(folder)[4] == {
        "row": 5,
        "prompt": "问 5",
        "reference": "答 5",
        "prediction": "final says 5",
        "prompt_tokens": 50,
        "tokens": 5,
        "stop": "eos",
        "error": None,
    }
    about = json.loads(file.with_suffix(".json").read_text())
    assert about["ended"] > about["started"]
    wanted = {"run": "run", "checkpoint": "final", "data": "情报", "rows": 10, "model": "测试/tiny"}
    assert {key: about[key] for key in wanted} == wanted
    assert about["observed"] == {
        "weights_dtype": "bfloat16",
        "compute_dtype": "float32",
        "attention": "eager",
        "autocast": None,
        "device": "cpu",
    }
    assert about["generation"] == {"do_sample": False, "max_new_tokens": 64}


def test_what_a_person_should_know_is_said(
    iisft: CLI, make_run: MakeRun, staged: str, child: Any
) -> None:
    make_run()
    child("failed-rows")
    result = iisft("predict", "--data", staged, "--batch-size", "10")
    assert (
        "5 rows have no answer (see their `error`); the same command tries them again" in result.err
    )
    assert "4 prompts are longer than the training's cutoff_len 64" in result.err
    child("ok")
    assert (
        "情报@final: 5 rows answered, 5 were there already"
        in iisft("predict", "--data", staged).err
    )


def test_a_complete_file_loads_no_model(
    iisft: CLI, make_run: MakeRun, staged: str, child: Any
) -> None:
    make_run()
    assert iisft("predict", "--data", staged).code == 0
    child("die-after:0")
    again = iisft("predict", "--data", staged)
    assert (again.code, again.err) == (
        0,
        "情报@final: 0 rows answered, 10 were there already\n"
        "  1 answers were cut off at the limit (--max-tokens)\n"
        "  4 prompts are longer than the training's cutoff_len 64: it saw none that long. "
        "They were not cut\n"
        "  next: iisft evaluate run\n",
    )


def test_a_dead_child_costs_a_batch_and_the_same_command_goes_on(
    iisft: CLI, make_run: MakeRun, staged: str, child: Any
) -> None:
    folder = make_run()
    child("die-after:2")
    died = iisft("predict", "--data", staged, "--batch-size", "2")
    assert (died.code, numbers(folder)) == (1, [10, 9, 8, 7])
    assert "the process with the model died (exit code 1)" in died.err
    child("ok")
    result = iisft("predict", "--data", staged, "--batch-size", "2", "--json")
    assert json.loads(result.out)[0]["generated"] == 6
    assert numbers(folder) == list(range(1, 11))


def test_a_half_written_last_line_is_cut_off(
    iisft: CLI, make_run: MakeRun, staged: str, child: Any
) -> None:
    folder = make_run()
    child("die-after:2")
    iisft("predict", "--data", staged, "--batch-size", "2")
    file = folder.predictions_of("情报", "final")
    file.write_bytes(file.read_bytes()[:-7])
    child("ok")
    assert json.loads(iisft("predict", "--data", staged, "--json").out)[0]["generated"] == 7
    assert numbers(folder) == list(range(1, 11))


@pytest.fixture
def predicting(tmp_path: Path, child: Any) -> Callable[..., subprocess.Popen[str]]:
    """`iisft predict` as a process whose child waits for a gate at every batch."""
    child("slow", GATE=str(tmp_path / "gate"))

    def start(*more: str) -> subprocess.Popen[str]:
        argv = [
            sys.executable,
            "-m",
            "iisft",
            "predict",
            "run",
            "--data",
            "情报",
            "--batch-size",
            "2",
            *more,
        ]
        return subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    return start


def children_of(folder: RunFolder) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                here = (entry / "cwd").readlink() == folder.path
            except OSError:
                continue
            if here and b"predict_rows.py" in command:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_no_kill_loses_or_repeats_a_row_or_leaves_a_child(
    number: int,
    code: int,
    make_run: MakeRun,
    staged: str,
    predicting: Any,
    iisft: CLI,
    tmp_path: Path,
    child: Any,
) -> None:
    folder = make_run()
    running = predicting()
    file = folder.predictions_of("情报", "final")
    (tmp_path / "gate").write_text("2")
    until(lambda: file.exists() and len(file.read_text().splitlines()) == 4)
    running.send_signal(number)
    assert running.wait(30) == code
    until(lambda: not children_of(folder))
    child("ok")
    result = iisft("predict", "--data", staged, "--json")
    assert json.loads(result.out)[0]["generated"] == 6
    assert numbers(folder) == list(range(1, 11))


def test_two_commands_never_write_the_same_file(
    make_run: MakeRun, staged: str, predicting: Any, iisft: CLI, tmp_path: Path
) -> None:
    folder = make_run()
    running = predicting()
    until(lambda: children_of(folder))
    second = iisft("predict", "--data", staged)
    assert (second.code, "another command is writing these predictions" in second.err) == (6, True)
    (tmp_path / "gate").write_text("99")
    assert running.wait(30) == 0
    assert numbers(folder) == list(range(1, 11))


def test_a_full_disk_ends_with_4_and_keeps_what_was_written(
    iisft: CLI, make_run: MakeRun, staged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    append, calls = files.append_line, []

    def full(path: Path, line: str, **options: Any) -> None:
        calls.append(line)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, line, **options)

    monkeypatch.setattr(files, "append_line", full)
    result = iisft("predict", "--data", staged, "--batch-size", "3")
    assert (result.code, len(numbers(folder))) == (4, 6)
    assert "predictions can't be written: No space left on device" in result.err
    monkeypatch.undo()


def test_answers_made_in_another_way_are_not_mixed(
    iisft: CLI, make_run: MakeRun, staged: str
) -> None:
    folder = make_run()
    assert iisft("predict", "--data", staged, "--limit", "4").code == 0
    other = iisft("predict", "--data", staged, "--max-tokens", "5")
    assert other.code == 6
    assert (
        "made with other settings (generation: {'do_sample': False, 'max_new_tokens': 64} there"
        in other.err
    )
    assert numbers(folder) == [1, 2, 3, 4]
    assert iisft("predict", "--data", staged, "--max-tokens", "5", "--from-start").code == 0
    assert numbers(folder) == list(range(1, 11))


def test_a_limit_can_be_raised_later(iisft: CLI, make_run: MakeRun, staged: str) -> None:
    folder = make_run()
    assert iisft("predict", "--data", staged, "--limit", "4").code == 0
    assert json.loads(iisft("predict", "--data", staged, "--json").out)[0]["generated"] == 6
    assert numbers(folder) == list(range(1, 11))


def test_all_checkpoints_are_answered_by_one_child(
    iisft: CLI, make_run: MakeRun, staged: str
) -> None:
    folder = make_run()
    result = iisft("predict", "--data", staged, "--checkpoint", "all", "--json")
    assert [one["checkpoint"] for one in json.loads(result.out)] == ["20", "40"]
    assert rows_of(folder, "20")[0]["prediction"] == "20 says 1"
    assert rows_of(folder, "40")[0]["prediction"] == "40 says 1"


def test_another_precision_than_the_runs_answers_nothing(
    iisft: CLI, make_run: MakeRun, staged: str, child: Any
) -> None:
    folder = make_run()
    child("other-precision")
    result = iisft("predict", "--data", staged)
    assert (result.code, numbers(folder)) == (1, [])
    assert "arithmetic bfloat16, but the preset says float32" in result.err


def test_a_known_failure_of_the_child_is_named(
    iisft: CLI, make_run: MakeRun, staged: str, child: Any, tmp_path: Path
) -> None:
    make_run()
    log = Path(__file__).parents[1] / "llamafactory" / "failures" / "gpu-out-of-memory.log"
    child(f"log:{log}")
    result = iisft("predict", "--data", staged, "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (4, "gpu-out-of-memory")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "the run has no evaluation data, so --data says which rows; staged: 情报"),
        (("--data", "情包"), 3, "no staged dataset '情包'"),
        (("--data", "情报", "--limit", "0"), 2, "--limit must be at least 1, not 0"),
        (("--data", "情报", "--backend", "vllm"), 2, "--backend is local or api, not 'vllm'"),
        (("--data", "情报", "--backend", "api"), 2, "--backend api needs --url and --api-model"),
    ],
)
def test_wrong_usage(
    iisft: CLI, make_run: MakeRun, staged: str, options: Any, code: int, message: str
) -> None:
    make_run()
    result = iisft("predict", "run", *options)
    assert (result.code, message in result.err) == (code, True), result.err


def test_the_runs_own_evaluation_data_is_meant_when_none_is_named(
    iisft: CLI, make_run: MakeRun, staged: str
) -> None:
    folder = make_run(data={"name": "情报", "eval": "情报"})
    assert iisft("predict").code == 0
    assert len(numbers(folder)) == 10


def test_answers_to_several_datasets_say_which_one_they_are_of(
    iisft: CLI, make_run: MakeRun, staged: str, workspace: Path
) -> None:
    file = workspace / "chat.jsonl"
    file.write_text('{"instruction": "hi", "input": "", "output": "yes"}\n')
    assert iisft("data", "stage", str(file), "--name", "chat").code == 0
    folder = make_run(data={"name": staged, "eval": ["chat", staged]})
    assert iisft("predict", "run").code == 0
    answers = folder.predictions_of(f"chat+{staged}", "final").read_text().splitlines()
    assert [json.loads(line)["source"] for line in answers] == ["chat", *[staged] * 10]
    found = json.loads(iisft("evaluate", "run", "--json").out)
    assert {name: one["rows"] for name, one in found["sources"].items()} == {"chat": 1, staged: 10}
    assert iisft("predict", "run", "--data", f"{staged},chat", "--limit", "2").code == 0
    assert iisft("evaluate", "run", "--data", f"{staged}+chat").code == 0
