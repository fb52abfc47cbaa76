"""A run comes back: after a crash, after its supervisor's death, after everything died, and never
twice at once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import CLI, steps, until
from iisft import process
from iisft.runs.record.checkpoints import SEAL
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import status_of


def ended(folder: RunFolder) -> tuple[str, str]:
    outcome = json.loads(folder.exit.read_text())
    return outcome["state"], outcome["reason"]


def supervisor_of(folder: RunFolder) -> int:
    pid: int = json.loads(folder.processes.read_text())["supervisor"]["pid"]
    return pid


def lose(folder: RunFolder) -> None:
    """As a power cut leaves it."""
    process.kill([supervisor_of(folder)])
    process.kill_run(folder.marker)
    until(lambda: status_of(folder).state == "lost")


def test_a_crashed_trainer_comes_back_from_its_last_checkpoint_and_the_curve_is_one(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash-once-at-3")
    assert train().code == 0
    assert ended(folder) == ("finished", "all 4 steps")
    assert (steps(folder), steps(folder, "redone")) == ([1, 2, 3, 4], [3])
    states = [
        (event["state"], event.get("from_step"))
        for event in folder.read_events()
        if event["kind"] == "state"
    ]
    assert states == [("running", 0), ("restarting", None), ("running", 2), ("finished", None)]
    status = json.loads(iisft("status", "run", "--json").out)
    assert (status["restarts"], status["checkpoints"]) == (
        1,
        [{"step": n, "complete": True, "eval_loss": None, "best": False} for n in (2, 4)],
    )


def test_the_same_crash_at_the_same_step_is_not_tried_a_third_time(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash-at-3")
    assert train().code == 1
    assert ended(folder) == ("failed", "the trainer was killed (SIGKILL)")
    assert status_of(folder).restarts == 1


def test_a_stop_in_the_pause_before_a_restart_is_obeyed(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash-at-3")
    train("--detach")
    until(
        lambda: status_of(folder).reason.startswith(
            "restarting after: the trainer was killed (SIGKILL)"
        )
    )
    assert iisft("stop", "run").code == 0
    assert ended(folder) == (
        "stopped",
        "stopped on request after: the trainer was killed (SIGKILL)",
    )
    assert status_of(folder).restarts == 1


def test_an_exception_before_the_first_step_would_come_again(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash")
    assert train().code == 1
    assert status_of(folder).restarts == 0


@pytest.mark.slow
def test_a_hang_is_seen_its_stacks_are_kept_and_the_run_goes_on(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("hang-once")
    assert train("--set", "watch.hang_min_s=0.6").code == 0
    (finding,) = [event for event in folder.read_events() if event["kind"] == "finding"]
    assert (finding["id"], finding["severity"]) == ("hang", "error")
    assert (
        "no sign of life for" in finding["message"]
        and f"stacks are in {folder.train_log}" in finding["message"]
    )
    assert "in fake all_reduce" in folder.train_log.read_text()
    assert steps(folder) == [1, 2, 3, 4]


def test_a_new_supervisor_adopts_the_trainer_that_lost_its_own(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("ok", STEPS="40", STEP_S="0.1")
    train("--detach")
    until(lambda: 3 in steps(folder))
    trainer = json.loads(folder.processes.read_text())["trainer"]
    process.kill([supervisor_of(folder)])
    until(lambda: not status_of(folder).supervised)
    listed = json.loads(iisft("status", "run", "--json").out)
    assert (listed["state"], [finding["id"] for finding in listed["findings"]]) == (
        "running",
        ["unsupervised"],
    )
    resumed = iisft("resume", "run", "--detach", "--json")
    assert (resumed.code, json.loads(resumed.out)["attached"]) == (0, True)
    assert json.loads(folder.processes.read_text())["trainer"] == trainer
    assert iisft("wait", "run").code == 0
    assert (steps(folder), steps(folder, "redone")) == (list(range(1, 41)), [])


def test_a_trainer_that_ends_unsupervised_before_its_last_step_is_not_finished(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang", 1, "--set", "env.MY_TOKEN=verysecret")
    process.kill([supervisor_of(folder)])
    until(lambda: not status_of(folder).supervised)
    assert iisft("resume", "run", "--detach").code == 0
    first = process.processes_of_run(folder.marker)
    process.kill_run(folder.marker)
    until(lambda: set(process.processes_of_run(folder.marker)) - set(first))
    assert status_of(folder).restarts == 1
    (second,) = process.processes_of_run(folder.marker)
    until(lambda: process.environment_of(second).get("MY_TOKEN") == "verysecret")
    assert iisft("stop", "run", "--now").code == 0
    assert ended(folder)[0] == "stopped"


def test_a_frozen_supervisor_can_not_keep_a_run_from_being_stopped(
    iisft: CLI, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, detached: Callable[..., None]
) -> None:
    monkeypatch.setattr("iisft.runs.supervise.control._ANSWER_S", 1.0)
    detached("hang", 1)
    os.kill(supervisor_of(folder), signal.SIGSTOP)
    assert iisft("stop", "run", "--now").code == 0
    assert ended(folder) == (
        "stopped",
        "stopped on request without a supervisor; checkpoint-1 is kept",
    )
    assert process.processes_of_run(folder.marker) == []


def test_the_shell_of_the_start_is_there_again_after_a_reboot(
    iisft: CLI, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, detached: Callable[..., None]
) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    detached("hang", 1)
    assert iisft("stop", "run").code == 0
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    assert "variable NCCL_P2P_DISABLE 1 -> 0" in iisft("resume", "run").err
    monkeypatch.delenv("NCCL_P2P_DISABLE")
    assert iisft("resume", "run", "--detach").code == 0
    until(lambda: process.processes_of_run(folder.marker))
    trainer = process.processes_of_run(folder.marker)[0]
    assert process.environment_of(trainer)["NCCL_P2P_DISABLE"] == "1"
    assert iisft("stop", "run", "--now").code == 0


def test_a_trainer_that_can_not_be_started_again_is_told_at_once(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3)
    lose(folder)
    folder.resume_yaml.mkdir()
    resumed = iisft("resume", "run", "--detach")
    assert (resumed.code, resumed.out) == (1, "")
    assert resumed.err.startswith(
        "error: run: the trainer can't be started: [Errno 21] Is a directory"
    )
    folder.resume_yaml.rmdir()
    assert iisft("resume", "run").code == 0
    assert steps(folder) == [1, 2, 3, 4]


def test_a_supervisor_that_reads_long_is_not_taken_for_dead(
    iisft: CLI, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3)
    lose(folder)
    hours = iter(range(0, 10**9, 3600))
    clock = SimpleNamespace(monotonic=lambda: float(next(hours)), sleep=time.sleep)
    monkeypatch.setattr("iisft.runs.supervise.spawn.time", clock)
    assert iisft("resume", "run", "--detach").code == 0
    assert iisft("wait", "run").code == 0


def test_everything_killed_then_resumed_is_one_curve(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3)
    lose(folder)
    resumed = iisft("resume", "run")
    assert (resumed.code, "run: goes on from checkpoint-2" in resumed.err) == (0, True)
    told = [line.split()[1] for line in resumed.out.splitlines() if line.startswith("step ")]
    assert told == ["3/4", "4/4"]  # not the steps of the life before
    assert (steps(folder), steps(folder, "redone")) == ([1, 2, 3, 4], [3])
    assert "resume_from_checkpoint" in folder.resume_yaml.read_text()


@pytest.mark.slow
def test_steps_that_nobody_saw_but_that_stand_in_the_checkpoint_are_recorded(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("ok", STEPS="60", STEP_S="0.1")
    train("--detach")
    until(lambda: 3 in steps(folder))
    process.kill([supervisor_of(folder)])
    seen = max(steps(folder))
    until(
        lambda: any(int(path.name[11:]) > seen + 4 for path in folder.output.glob("checkpoint-*"))
    )
    lose(folder)
    assert iisft("resume", "run").code == 0
    assert steps(folder) == list(range(1, 61))
    assert {event["grad_norm"] for event in folder.read_events() if event["kind"] == "metrics"} == {
        2.102
    }


def test_a_stopped_run_goes_on_where_it_stopped(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3)
    assert (
        iisft("stop", "run").out
        == "run: stopped - stopped on request at step 3; checkpoint-3 is kept\n"
    )
    assert iisft("resume", "run").code == 0
    assert (steps(folder), steps(folder, "redone")) == ([1, 2, 3, 4], [])


def test_without_a_whole_checkpoint_it_begins_anew(
    iisft: CLI, folder: RunFolder, fake_trainer: Callable[..., None], detached: Callable[..., None]
) -> None:
    detached("hang", 1)
    lose(folder)
    fake_trainer("ok")
    resumed = iisft("resume", "run")
    assert (resumed.code, "run: no complete checkpoint, so it starts over" in resumed.err) == (
        0,
        True,
    )
    assert folder.resume_yaml.read_text().endswith("\noverwrite_output_dir: true\n")
    assert (steps(folder), steps(folder, "redone")) == ([1, 2, 3, 4], [1])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        pytest.param(
            lambda f: f.write_bytes(f.read_bytes()[:-3]), "has 112 bytes instead of 115", id="cut"
        ),
        pytest.param(
            lambda f: f.write_bytes(b"y" * len(f.read_bytes())),
            "is not what was recorded",
            id="flipped",
        ),
        pytest.param(lambda f: f.unlink(), "is missing", id="missing"),
    ],
)
def test_a_torn_checkpoint_is_put_aside_and_listed(
    damage: Callable[[Path], None],
    fault: str,
    iisft: CLI,
    train: CLI,
    folder: RunFolder,
    fake_trainer: Callable[..., None],
) -> None:
    fake_trainer("hang-once", STEPS="6")
    train("--detach")
    until(lambda: (folder.output / "checkpoint-2" / SEAL).exists())
    until(lambda: 3 in steps(folder))
    assert iisft("stop", "run").code == 0
    damage(folder.output / "checkpoint-3" / "optimizer.pt")
    resumed = iisft("resume", "run")
    assert (resumed.code, "goes on from checkpoint-2" in resumed.err) == (0, True)
    assert (folder.output / "torn-checkpoint-3").is_dir()
    status = json.loads(iisft("status", "run", "--json").out)
    torn = [one for one in status["checkpoints"] if not one["complete"]]
    assert [(one["step"], one["fault"]) for one in torn] == [(3, "torn, put aside")]
    assert [finding["id"] for finding in status["findings"]] == ["torn-checkpoint"]
    assert steps(folder) == [1, 2, 3, 4, 5, 6]


def test_a_run_that_lost_every_whole_checkpoint_does_not_begin_anew_by_itself(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3)
    assert iisft("stop", "run").code == 0
    whole = iisft("resume", "run", "--from-start")
    assert (whole.code, "has a whole checkpoint-3" in whole.err) == (6, True)
    for checkpoint in folder.output.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    refused = iisft("resume", "run", "--json")
    assert (refused.code, json.loads(refused.out)["error"]["code"]) == (6, "no-whole-checkpoint")
    assert sorted(path.name for path in folder.output.glob("*checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    assert iisft("resume", "run", "--from-start").code == 0
    assert (steps(folder), steps(folder, "redone")) == ([1, 2, 3, 4], [1, 2, 3])
    assert len(folder.trainer_log.read_text().splitlines()) == 4


def test_of_two_resumes_one_wins(
    folder: RunFolder, iisft: CLI, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3)
    lose(folder)
    argv = [sys.executable, "-m", "iisft", "resume", "run", "--detach"]
    both = [subprocess.Popen(argv, env=dict(os.environ)) for _ in range(2)]
    assert sorted(one.wait(30) for one in both) == [0, 6]
    assert iisft("wait", "run").code == 0
    assert steps(folder) == [1, 2, 3, 4]


def test_what_can_not_be_resumed(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None], workspace: Path
) -> None:
    fake_trainer("hang")
    train("--detach")
    again = iisft("resume", "run")
    assert (again.code, "run is running" in again.err) == (6, True)
    assert iisft("stop", "run", "--now").code == 0
    moved = workspace / "runs" / "moved"
    folder.path.rename(moved)
    error = iisft("resume", "moved")
    assert (error.code, "its files name that place" in error.err) == (6, True)
    moved.rename(folder.path)
    fake_trainer("ok")
    assert iisft("resume", "run").code == 0
    done = iisft("resume", "run")
    assert (done.code, "nothing to resume" in done.err) == (6, True)
    near = iisft("resume", "runn")
    assert (near.code, "did you mean run?" in near.err) == (6, True)
    assert "run is finished" in iisft("stop", "run").err


def test_drift_is_refused_with_the_list_and_accepted_on_request(
    iisft: CLI,
    train: CLI,
    folder: RunFolder,
    model: Path,
    workspace: Path,
    detached: Callable[..., None],
) -> None:
    detached("hang-once", 3)
    assert iisft("stop", "run").code == 0
    os.utime(model / "model.safetensors")
    (rows,) = (workspace / "data" / "数据").glob("*.jsonl")
    rows.write_text(rows.read_text() + '{"instruction": "more", "output": "x"}\n')
    folder.train_yaml.write_text(
        folder.train_yaml.read_text().replace("learning_rate: 1.0e-05", "learning_rate: 0.1")
    )
    refused = iisft("resume", "run", "--json")
    assert (refused.code, json.loads(refused.out)["error"]["code"]) == (6, "drift")
    for part in (
        "train.yaml learning_rate 1e-05 -> 0.1",
        "model.safetensors was replaced",
        "the rows of 数据 have",
    ):
        assert part in refused.err
    assert folder.exit.exists()
    assert iisft("resume", "run", "--accept-drift").code == 0
    assert "learning_rate: 0.1" in folder.resume_yaml.read_text()
    assert [event["id"] for event in folder.read_events() if event["kind"] == "finding"] == [
        "drift"
    ]


def test_a_secret_of_the_run_must_be_given_again(
    iisft: CLI, monkeypatch: pytest.MonkeyPatch, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3, "--set", "env.MY_TOKEN=verysecret")
    assert iisft("stop", "run").code == 0
    refused = iisft("resume", "run")
    assert (refused.code, "export MY_TOKEN=..." in refused.err) == (4, True)
    monkeypatch.setenv("MY_TOKEN", "verysecret")
    assert iisft("resume", "run").code == 0


def test_all_lost_brings_back_what_was_lost_and_nothing_else(
    iisft: CLI,
    train: CLI,
    folder: RunFolder,
    fake_trainer: Callable[..., None],
    detached: Callable[..., None],
) -> None:
    detached("hang-once", 3)
    lose(folder)
    fake_trainer("ok")
    assert train("--name", "done").code == 0
    back = iisft("resume", "--all-lost", "--json")
    assert (back.code, json.loads(back.out)) == (
        0,
        [{"id": "run", "attached": False, "from_step": 2}],
    )
    assert iisft("wait", "run").code == 0
    assert "no run is lost" in iisft("resume", "--all-lost").err


def test_a_supervisor_told_to_end_saves_and_leaves_the_run_to_all_lost(
    iisft: CLI, folder: RunFolder, detached: Callable[..., None]
) -> None:
    detached("hang-once", 3)
    process.terminate([supervisor_of(folder)])
    until(folder.exit.exists)
    assert ended(folder) == (
        "lost",
        "told to end, as at a shutdown, at step 3; checkpoint-3 is kept",
    )
    assert iisft("resume", "--all-lost").code == 0
    assert iisft("wait", "run").code == 0
    assert steps(folder) == [1, 2, 3, 4]


def test_a_shutdown_in_the_pause_before_a_restart_leaves_the_run_lost(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash-at-3")
    train("--detach")
    until(lambda: status_of(folder).reason.startswith("restarting"))
    process.terminate([supervisor_of(folder)])
    until(folder.exit.exists)
    assert ended(folder) == (
        "lost",
        "told to end, as at a shutdown, after: the trainer was killed (SIGKILL)",
    )


def test_ranks_that_outlived_everything_are_told_and_ended(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("orphan")
    train("--detach")
    until(lambda: len(process.processes_of_run(folder.marker)) == 2)
    pids = json.loads(folder.processes.read_text())
    process.kill([pids["supervisor"]["pid"], pids["trainer"]["pid"]])
    until(lambda: status_of(folder).state == "lost")
    assert "1 processes of it still run (iisft stop run ends them)" in status_of(folder).reason
    assert iisft("stop", "run").code == 0
    assert process.processes_of_run(folder.marker) == []
    assert ended(folder)[0] == "stopped"


def test_rm_deletes_what_has_ended_and_refuses_what_runs(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None], workspace: Path
) -> None:
    fake_trainer("hang")
    train("--detach")
    refused = iisft("runs", "rm", "run", "--yes")
    assert (refused.code, "fix:   iisft stop run" in refused.err) == (6, True)
    assert iisft("stop", "run", "--now").code == 0
    unasked = iisft("runs", "rm", "run")
    assert (unasked.code, folder.path.exists()) == (2, True)
    # its supervisor has written the end, and still tells phones of it
    marked = os.environ | {process.SUPERVISOR_MARKER: folder.marker}
    telling = subprocess.Popen(["cat"], env=marked, stdin=subprocess.PIPE)
    until(lambda: telling.pid in process.marked(process.SUPERVISOR_MARKER).get(folder.marker, []))
    assert (
        iisft("runs", "rm", "run", "run", "--yes").out,
        list((workspace / "runs").iterdir()),
    ) == ("run\n", [])
    telling.communicate()


def test_diff_tells_what_two_runs_differ_in(iisft: CLI, train: CLI) -> None:
    assert train().code == 0
    assert train("--name", "other", "--set", "lora.rank=8").code == 0
    found = json.loads(iisft("runs", "diff", "run", "other", "--json").out)
    assert found == {"preset.lora.rank": [64, 8]}
    assert iisft("runs", "diff", "run", "other").out.splitlines() == [
        "                  run  other",
        "preset.lora.rank  64   8",
    ]


def test_diff_takes_no_resume_for_a_difference(iisft: CLI, train: CLI, workspace: Path) -> None:
    """The first batch that a resumed trainer saw is of a later step."""
    assert train().code == 0
    assert train("--name", "other").code == 0
    for name, digest in (("run", "a"), ("other", "b")):
        folder = RunFolder(workspace / "runs" / name)
        record = json.loads(folder.record.read_text())
        record["observed"]["first_batch"] = {"shape": [1, 8], "sha256": digest}
        folder.record.write_text(json.dumps(record))
    found = json.loads(iisft("runs", "diff", "run", "other", "--json").out)
    assert found == {"observed.first_batch.sha256": ["a", "b"]}
    folder.append_event("state", state="running", from_step=2)
    assert json.loads(iisft("runs", "diff", "run", "other", "--json").out) == {}


EXCERPTS = Path(__file__).parents[1] / "llamafactory" / "failures"


@pytest.mark.parametrize(
    ("excerpt", "code", "restarts"), [("gpu-out-of-memory", 1, 0), ("gpu-lost", 0, 1)]
)
def test_only_what_may_pass_is_tried_again(
    excerpt: str,
    code: int,
    restarts: int,
    train: CLI,
    folder: RunFolder,
    fake_trainer: Callable[..., None],
) -> None:
    fake_trainer(f"log:{EXCERPTS / excerpt}.log")
    assert train("--set", "train.gradient_checkpointing=true").code == code
    status = status_of(folder)
    assert (status.findings[0]["id"], status.restarts) == (excerpt, restarts)


def test_out_of_memory_is_told_with_its_phase_and_its_fix(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer(f"log:{EXCERPTS / 'gpu-out-of-memory'}.log")
    said = train("--set", "train.gradient_checkpointing=true").err
    outcome = json.loads(folder.exit.read_text())
    assert said.endswith(f"  fix: {outcome['fix']}\n  log: {folder.train_log}\n")
    assert outcome["reason"].startswith("while training at step 2: torch.OutOfMemoryError: ")
    assert (
        f"  fix: {outcome['fix']}" in iisft("status", "run").out and "cutoff_len" in outcome["fix"]
    )
