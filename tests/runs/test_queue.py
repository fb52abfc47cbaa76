"""The queue at work: a runner, supervisors and stand-in trainers as real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.two_cards import CARDS, write_two_cards
from helpers import CLI, steps, train_argv, until
from iisft import files, process
from iisft.machine.facts import nvidia_smi
from iisft.runs.queue import entries
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import brief_of
from iisft.runs.supervise import control
from iisft.workspace import Workspace

Queued = Callable[..., RunFolder]
ONE_GPU = {"preset": "cuda-24g"}


@pytest.fixture
def queued(iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]) -> Queued:
    """`iisft train --queue` on eight staged rows, as a run of that name."""
    assert iisft("data", "stage", str(rows), "--name", "数据").code == 0

    def add(name: str, *more: str, gpus: str = "1", preset: str = "mi50") -> RunFolder:
        size = ("--gpus", gpus, "--set", "train.accumulation=2", "--name", name)
        argv = train_argv(model, *size, *more, data="数据", preset=preset)
        done = iisft(*argv, "--queue", "--json")
        assert done.code == 0, done.err
        folder = RunFolder(Workspace.current().runs / name)
        assert json.loads(done.out) == {"id": name, "run_dir": str(folder.path)}
        return folder

    return add


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, for every process."""
    cards, env = write_two_cards(tmp_path)
    monkeypatch.setattr(nvidia_smi, "_FILES", (str(cards),))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return cards


@pytest.fixture
def somebody(cards: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Puts a process that is not ours on a card."""
    started = []

    def sit(card: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        started.append(child)
        (cards / card / str(child.pid)).touch()
        return child

    yield sit
    for child in started:
        child.communicate()


def queue() -> entries.Queue:
    return entries.read(Workspace.current())


def await_empty() -> None:
    until(lambda: not queue().entries and queue().runner is None)


def starts(folder: RunFolder) -> list[int]:
    """The step from which each of its trainers went on."""
    return [e["from_step"] for e in folder.read_events() if "from_step" in e]


def given(folder: RunFolder) -> str:
    """What its trainer has in its environment."""
    trainer = folder.live_trainer()
    assert trainer is not None
    return process.environment_of(trainer.pid)["CUDA_VISIBLE_DEVICES"]


def runners() -> list[int]:
    """Those that wait for the end of another one too, as each `train --queue` begins one."""
    return process.marked(process.SUPERVISOR_MARKER).get(str(Workspace.current().queue), [])


def kill_runners() -> None:
    assert runners()
    while found := runners():
        process.kill(found)


def test_one_run_after_another(
    queued: Queued, iisft: CLI, workspace: Path, fake_trainer: Callable[..., None]
) -> None:
    folders = [queued(name) for name in ("first", "二")]
    ended = [control.wait(folder) for folder in folders]
    assert [one.state for one in ended] == ["finished"] * 2
    assert [starts(folder) for folder in folders] == [[0]] * 2
    assert (ended[1].started or 0) >= (ended[0].ended or 0)
    await_empty()
    assert list((workspace / "queue").glob("*.json")) == []
    assert "the queue is empty" in iisft("queue").err


def test_what_was_asked_for_is_fixed_and_a_queued_run_is_no_lost_one(
    queued: Queued,
    iisft: CLI,
    workspace: Path,
    model: Path,
    fake_trainer: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert iisft("queue", "pause").code == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    folder = queued("夜", "--set", "train.epochs=7")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    other = queued("other")
    python = os.environ["IISFT_PYTHON"]
    monkeypatch.delenv("IISFT_PYTHON")
    shown = json.loads(iisft("queue", "--json").out)
    assert (shown["paused"], shown["runner"]) == (True, None)
    assert [(one["position"], one["id"], one["state"]) for one in shown["entries"]] == [
        (1, "夜", "queued"),
        (2, "other", "queued"),
    ]
    assert iisft("resume", "--all-lost", "--json").out == "[]\n"
    refused = iisft("resume", "夜")
    assert (refused.code, "iisft queue move '夜' 1" in refused.err) == (6, True)
    refused = iisft("stop", "夜")
    assert (refused.code, "iisft queue rm '夜'" in refused.err) == (6, True)
    assert "夜: queued" in iisft("status", "夜").out
    assert "iisft queue" in iisft("runs").err
    model.joinpath("config.json").write_text(
        model.joinpath("config.json").read_text().replace('"vocab_size": 16', '"vocab_size": 17')
    )
    assert iisft("queue", "rm", "other").code == 0
    assert not other.path.exists()
    assert iisft("queue", "run").code == 0
    ended = control.wait(folder)
    assert ended.state == "failed"
    assert "is not what it was when it began: the model's config.json has changed" in ended.reason
    assert ended.fix.endswith("iisft resume 夜 --accept-drift")
    monkeypatch.setenv("IISFT_PYTHON", python)
    assert folder.whole_record().shell["OMP_NUM_THREADS"] == "3"
    await_empty()


def test_two_runs_share_a_machine_with_two_cards(
    queued: Queued,
    cards: Path,
    iisft: CLI,
    fake_trainer: Callable[..., None],
    somebody: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    fake_trainer("hang")
    both = queued("both", gpus="2", **ONE_GPU)
    until(lambda: 1 in steps(both))
    assert given(both) == "GPU-aaaa,GPU-bbbb"
    one, two, three = (queued(name, **ONE_GPU) for name in ("one", "二", "three"))
    until(lambda: "one" in queue().why)
    assert queue().why == {
        "one": "it waits for 1 of its 1 GPUs (0000:01:00.0: run both is on it; 0000:02:00.0: run "
        "both is on it)"
    }
    assert iisft("stop", "both", "--now").code == 0
    until(lambda: 1 in steps(one) and 1 in steps(two))
    assert {given(one), given(two)} == set(CARDS)
    assert brief_of(three).state == "queued"
    # another takes the card of the first in the moment in which that ends
    foreign = somebody(given(one))
    free = given(two)
    assert iisft("stop", "one", "--now").code == 0
    until(lambda: f"process {foreign.pid} is on it" in queue().why.get("three", ""))
    assert iisft("stop", "二", "--now").code == 0
    until(lambda: 1 in steps(three))
    assert given(three) == free
    assert iisft("stop", "three", "--now").code == 0
    await_empty()
    assert not (cards / "shared").exists()
    for folder, seen in ((both, list(CARDS)), (three, [free])):
        observed = folder.whole_record().observed or {}
        assert observed["cards"]["variables"]["CUDA_VISIBLE_DEVICES"] == ",".join(seen)


def test_a_trainer_that_sees_another_card_than_it_was_given_is_stopped(
    queued: Queued, cards: Path, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("hang", SEES="GPU-bbbb")
    ended = control.wait(queued("run", **ONE_GPU))
    assert (ended.state, ended.reason) == (
        "failed",
        "this run is not what its preset says: rank 0: CUDA_VISIBLE_DEVICES GPU-bbbb, but the "
        "queue gave it GPU-aaaa",
    )
    await_empty()


def test_cards_that_nobody_can_tell_of_are_taken_for_busy(
    queued: Queued, cards: Path, iisft: CLI
) -> None:
    iisft("queue", "pause")
    folder = queued("run", **ONE_GPU)
    program = cards.parent / "programs" / "nvidia-smi"
    silent = program.read_text().replace("*compute-apps*)", "*compute-apps*) exit 9 ;;\n    never)")
    program.write_text(silent)
    iisft("queue", "run")
    until(lambda: "nvidia-smi does not tell who is on it" in queue().why.get("run", ""))
    assert not folder.processes.exists()
    assert iisft("queue", "rm", "run").code == 0
    until(lambda: not runners())


def test_whoever_is_killed_nothing_is_lost_or_run_twice(
    queued: Queued, iisft: CLI, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("hang")
    one, two = queued("one"), queued("two")
    until(lambda: 1 in steps(one))
    # of several runners one stays
    entries.ensure_runner(Workspace.current(), added=True)
    until(lambda: runners() == [queue().runner])
    # the runner alone: any command begins the next
    kill_runners()
    iisft("runs")
    until(lambda: queue().runner)
    # the supervisor: the trainer goes on under another one
    trainer, supervisor = one.live_trainer(), one.live_supervisor()
    assert trainer and supervisor
    process.kill([supervisor.pid])
    until(lambda: one.live_supervisor() not in (None, supervisor))
    assert one.live_trainer() == trainer
    assert starts(one) == [0]
    # everything, as in a reboot
    kill_runners()
    supervisor = one.live_supervisor()
    assert supervisor
    process.kill([supervisor.pid])
    process.kill_run(one.marker)
    assert (brief_of(one).state, brief_of(two).state) == ("lost", "queued")
    fake_trainer("ok")
    back = iisft("resume", "--all-lost", "--json")
    assert json.loads(back.out) == [{"id": "one", "queued": True}]
    assert [control.wait(folder).state for folder in (one, two)] == ["finished"] * 2
    assert (starts(one), starts(two)) == ([0, 0], [0])
    await_empty()


def test_a_runner_killed_while_it_starts_a_run(
    queued: Queued, iisft: CLI, workspace: Path, fake_trainer: Callable[..., None]
) -> None:
    """The supervisor that it began comes through, or it does not: one of them trains, once."""
    iisft("queue", "pause")
    one, two = queued("one"), queued("two")
    argv = [sys.executable, "-P", "-m", "iisft.runs.supervise.supervisor", str(one.path), "0"]
    marked = os.environ | {process.SUPERVISOR_MARKER: one.marker}
    with files.exclusive_lock(one.supervisor_lock):
        # its supervisor lives, and has recorded nothing yet
        stopped = subprocess.Popen(["cat"], env=marked, stdin=subprocess.PIPE)
        until(lambda: one.marker in process.marked(process.SUPERVISOR_MARKER))
        iisft("queue", "run")
        until(lambda: queue().why == {"one": "it is being started"})
        kill_runners()
        iisft("queue")
        until(lambda: queue().why == {"one": "it is being started"})
        assert not one.processes.exists()
    stopped.communicate()
    assert [control.wait(folder).state for folder in (one, two)] == ["finished"] * 2
    await_empty()
    late = subprocess.run(argv, env=marked, capture_output=True, text=True, check=False)
    assert (late.returncode, late.stderr) == (1, "this run has ended\n")
    assert (starts(one), starts(two)) == ([0], [0])


def test_what_can_not_be_started_does_not_hold_up_the_others(
    queued: Queued, iisft: CLI, fake_trainer: Callable[..., None]
) -> None:
    iisft("queue", "pause")
    broken, good = queued("broken"), queued("good")
    broken.train_yaml.write_text("output_dir: /elsewhere\n")
    iisft("queue", "run")
    assert control.wait(good).state == "finished"
    ended = brief_of(broken)
    assert (ended.state, "was made at" in ended.reason) == ("failed", True)
    assert not broken.processes.exists()
    await_empty()
