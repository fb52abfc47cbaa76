"""A rehearsal finds each fault that would cost a long run, and leaves only what it learnt."""

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import CLI, until, write_rows
from iisft import notices, process
from iisft.errors import Finding
from iisft.rehearsal import short, verdict
from iisft.runs.plan.make import make_plan
from iisft.runs.plan.request import Request
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace

FAILURES = Path(__file__).parents[1] / "llamafactory" / "failures"
KEYS = Path(__file__).parents[2] / "scripts" / "json_keys.yaml"
FREE = namedtuple("FREE", "total used free")

Behave = Callable[..., None]


@pytest.fixture
def argv(iisft: CLI, model: Path, rows: Path, workspace: Path, fake_trainer: Behave) -> list[str]:
    """`rehearse` with rows of many lengths, evaluated on eight others."""
    words = [{"instruction": "x" * (1 + 5 * i % 97), "input": "", "output": "y"} for i in range(97)]
    file = write_rows(workspace / "many 行.jsonl", words)
    assert iisft("data", "stage", str(file), "--name", "数据").code == 0
    assert iisft("data", "stage", str(rows), "--name", "other").code == 0
    fake_trainer("ok", STEPS="7")
    values = ("train.accumulation=2", "data.eval=other", "save.eval_every_steps=5")
    options = [part for value in values for part in ("--set", value)]
    target = ("--preset", "mi50", "--model", str(model), "--data", "数据", "--gpus", "1")
    return ["rehearse", *target, *options]


def folder_of(workspace: Path) -> RunFolder:
    """The only rehearsal there is."""
    [path] = [path for path in (workspace / "rehearsals").iterdir() if path.is_dir()]
    return RunFolder(path)


def errors(document: dict[str, Any]) -> list[str]:
    return [one["id"] for one in document["findings"] if one["severity"] == "error"]


def test_what_it_tells_and_what_it_leaves(iisft: CLI, argv: list[str], workspace: Path) -> None:
    result = iisft(*argv, "--json")
    document = json.loads(result.out)
    assert (result.code, errors(document)) == (0, [])
    keys = yaml.safe_load(KEYS.read_text(encoding="utf-8"))["rehearse"]
    assert {key for key in keys if "." not in key} == document.keys()
    whole = {
        "ok": True,
        "preset": "mi50",
        "model": argv[argv.index("--model") + 1],
        "peak_gib": None,
        "step_s": 0.5,
        "checkpoint_s": 0.25,
        "eval_s": 1.0,
        "accumulation": 2,
        "resume": {"ok": True, "loss_equal": True},
        "prediction": True,
    }
    assert {key: document[key] for key in whole} == whole
    folder = folder_of(workspace)
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "events.jsonl",
        "logs",
        "run.json",
        "verdict.json",
    ]
    assert json.loads((folder.path / "verdict.json").read_text()) == document
    assert [path.name for path in (workspace / "runs").iterdir()] == ["measured.jsonl"]
    [line] = (workspace / "runs" / "measured.jsonl").read_text().splitlines()
    assert json.loads(line)["measured"]["step_s"] == 0.5
    assert "predict" in {path.stem for path in folder.logs.iterdir()}


def test_the_longest_rows_come_first_and_others_of_all_lengths_follow(
    iisft: CLI, argv: list[str], workspace: Path, fake_trainer: Behave
) -> None:
    fake_trainer("hang")
    started = subprocess.Popen([sys.executable, "-m", "iisft", *argv], stderr=subprocess.DEVNULL)
    folder = running(workspace)
    lines = (folder.dataset / "数据.jsonl").read_text().splitlines()
    sizes = [len(json.loads(line)["instruction"]) for line in lines]
    assert (sizes[:4], len(sizes)) == ([97, 96, 95, 94], 14)
    assert sorted(sizes[4:]) == [5, 15, 25, 34, 44, 54, 64, 73, 83, 93]
    config = folder.read_record()
    assert config is not None
    wanted = {"max_steps": 7, "save_steps": 4, "eval_steps": 4, "disable_shuffling": True}
    assert {key: config.train_yaml[key] for key in wanted} == wanted
    interrupt(started)


def running(workspace: Path) -> RunFolder:
    """The rehearsal whose trainer is there."""
    until(lambda: list((workspace / "rehearsals").glob("mi50-*/processes.json")))
    folder = folder_of(workspace)
    until(lambda: any(one["kind"] == "metrics" for one in folder.read_events()))
    return folder


def interrupt(started: subprocess.Popen[bytes]) -> None:
    started.send_signal(signal.SIGINT)
    assert started.wait(60) == 130


def test_ctrl_c_leaves_nothing(argv: list[str], workspace: Path, fake_trainer: Behave) -> None:
    fake_trainer("hang")
    started = subprocess.Popen([sys.executable, "-m", "iisft", *argv], stderr=subprocess.DEVNULL)
    folder = running(workspace)
    interrupt(started)
    assert process.processes_of_run(folder.marker) == []
    assert [path.name for path in (workspace / "rehearsals").iterdir()] == [".lock"]
    assert list((workspace / "runs").iterdir()) == []


def test_one_that_was_killed_is_ended_by_the_next(
    iisft: CLI, argv: list[str], workspace: Path, fake_trainer: Behave
) -> None:
    fake_trainer("hang")
    started = subprocess.Popen([sys.executable, "-m", "iisft", *argv], stderr=subprocess.DEVNULL)
    first = running(workspace)
    refused = iisft(*argv, "--json")
    assert (refused.code, json.loads(refused.out)["error"]["code"]) == (6, "rehearsing-already")
    started.kill()
    started.wait()
    assert process.processes_of_run(first.marker)
    fake_trainer("ok")
    again = json.loads(iisft(*argv, "--json").out)
    assert (again["ok"], process.processes_of_run(first.marker)) == (True, [])
    assert folder_of(workspace).id == again["name"] != first.id


@pytest.mark.parametrize(
    ("mode", "code", "found", "resume"),
    [
        ("no-resume", 1, ["resume-elsewhere"], {"ok": False, "loss_equal": None}),
        ("other-loss", 1, ["resume-differs"], {"ok": False, "loss_equal": False}),
        ("no-eval", 1, ["evaluation-missing"], {"ok": True, "loss_equal": True}),
        ("no-checkpoint", 1, ["checkpoint-missing"], {"ok": False, "loss_equal": None}),
        ("wrong-attention", 1, ["not-as-preset"], {"ok": False, "loss_equal": None}),
        ("crash-at-7", 1, ["killed"], {"ok": False, "loss_equal": None}),
        ("oom", 4, ["gpu-out-of-memory"], {"ok": False, "loss_equal": None}),
    ],
)
def test_a_fault_is_found_with_its_fix(
    mode: str,
    code: int,
    found: list[str],
    resume: dict[str, Any],
    iisft: CLI,
    argv: list[str],
    workspace: Path,
    fake_trainer: Behave,
) -> None:
    fake_trainer(f"forward:{FAILURES / 'gpu-out-of-memory.log'}" if mode == "oom" else mode)
    result = iisft(*argv, "--json")
    document = json.loads(result.out)
    assert (result.code, errors(document), document["resume"]) == (code, found, resume)
    assert all(one["fix"] for one in document["findings"] if one["severity"] == "error")
    assert "  fix:   " in result.err
    assert document["prediction"] is (mode in ("no-resume", "other-loss", "no-eval"))
    left = folder_of(workspace)
    assert not left.output.exists() and process.processes_of_run(left.marker) == []


def test_an_answer_that_can_not_be_read_back_is_found(
    iisft: CLI, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CHILD", "no-answer")
    result = iisft(*argv, "--json")
    document = json.loads(result.out)
    assert (result.code, errors(document)) == (1, ["prediction-unreadable"])
    assert (document["prediction"], document["resume"]["ok"]) == (False, True)
    monkeypatch.setenv("FAKE_CHILD", "other-precision")
    result = iisft(*argv, "--json")
    assert (result.code, errors(json.loads(result.out))) == (1, ["not-as-trained"])


def test_a_disk_that_the_long_run_fills_is_found(
    iisft: CLI, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan counts on small checkpoints: what is measured is larger."""
    monkeypatch.setenv("FAKE_CHECKPOINT_BYTES", str(50 * 2**20))
    free = FREE(2**40, 0, 150 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    result = iisft(*argv, "--json")
    document = json.loads(result.out)
    assert (result.code, errors(document)) == (4, ["disk-space"])
    assert document["disk_gib"] > document["free_gib"]


def test_one_screen_one_notice_and_the_archive_that_holds_no_row(
    iisft: CLI,
    argv: list[str],
    tmp_path: Path,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent_to: list[tuple[str, Any]] = []
    monkeypatch.setenv(notices.VARIABLE, "json://127.0.0.1:9/x")
    monkeypatch.setattr(notices, "send", lambda title, _, to: sent_to.append((title, to)) or [])
    file = tmp_path / "for you.tar.gz"
    result = iisft(*argv, "--collect", str(file))
    assert result.code == 0, result.err
    title = f"iisft: the rehearsal of mi50 went well ({platform.node()})"
    assert [one for one in sent_to if one[0]] == [(title, ["json://127.0.0.1:9/x"])]
    record = folder_of(workspace).whole_record()
    assert record.env[notices.VARIABLE] == ""  # its supervisor tells nobody of the kill
    first, *lines = result.out.splitlines()
    assert first.startswith("mi50-") and first.endswith(": ok")
    assert [line.split()[0] for line in lines] == [
        "memory",
        "time",
        "checkpoint",
        "evaluation",
        "resume",
        "prediction",
        "proven",
        "next",
    ]
    assert shlex.split(lines[-1])[2:] == ["train", *argv[1:]]
    with tarfile.open(file) as archive:
        [packed] = [one for one in archive.getmembers() if one.name == "iisft/rehearsal.json"]
        stream = archive.extractfile(packed)
        assert stream is not None
        sent = stream.read().decode()
        assert json.loads(sent)["resume"] == {"ok": True, "loss_equal": True}
        assert os.environ["IISFT_HOME"] not in sent
    assert iisft(*argv, "--collect", str(file)).code == 6
    assert iisft("env-check", "--from", str(file), "--json").code in (0, 4)


def test_a_wrong_preset_ends_before_anything_is_written(
    iisft: CLI, argv: list[str], workspace: Path
) -> None:
    result = iisft(*argv, "--data", "nothing", "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (3, "data-missing")
    assert not (workspace / "rehearsals").exists()


def test_a_long_step_is_cut_to_fewer_micro_batches(workspace: Path) -> None:
    """On two MI50 a step of mi50 takes 13 minutes, and the rehearsal makes nine of them."""
    plan = make_plan(Request("mi50"), Workspace(workspace))
    assert (plan.preset.train.accumulation, short._accumulation(plan)) == (32, 2)
    plan = make_plan(Request("mi50", ("train.cutoff_len=256",)), Workspace(workspace))
    assert short._accumulation(plan) == 32


def test_a_long_run_that_was_never_rehearsed_here(
    iisft: CLI, argv: list[str], workspace: Path
) -> None:
    plan = make_plan(Request("mi50", data="数据"), Workspace(workspace))
    assert list(verdict.never_rehearsed(plan, workspace / "rehearsals")) == []  # 97 rows: 10 steps
    plan = make_plan(
        Request("mi50", ("train.max_steps=100000",), data="数据"), Workspace(workspace)
    )

    def said() -> list[str]:
        return [one.fix for one in verdict.never_rehearsed(plan, workspace / "rehearsals")]

    hint = ["iisft rehearse --preset mi50"]
    assert said() == hint
    place = workspace / "rehearsals" / "mi50-1"
    place.mkdir(parents=True)
    known = {"ok": True, "preset": "mi50", "machine": "another one"}
    for content, expected in (
        (json.dumps(known), hint),
        ("{torn", hint),
        (json.dumps(known | {"machine": platform.node(), "ok": False}), hint),
        (json.dumps(known | {"machine": platform.node()}), []),
    ):
        (place / "verdict.json").write_text(content)
        assert said() == expected


def test_train_says_so(
    iisft: CLI, argv: list[str], fake_trainer: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "never_rehearsed", lambda *_: [Finding("x", "never tried")])
    fake_trainer("ok", STEPS="4")
    said = iisft("train", *argv[1:], "--name", "long")
    assert (said.code, "never tried" in said.err) == (0, True)
