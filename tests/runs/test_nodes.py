"""A run on several machines: all of them end when one is lost, and one resume brings all back.

The machines are this one, with a supervisor and a trainer for each node.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import CLI, until
from iisft import process
from iisft.runs.record.events import Events
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord, Watch
from iisft.runs.record.state import status_of
from iisft.runs.supervise.ending import Ending
from iisft.runs.supervise.nodes import NODE_LOST, Nodes, give_order

HERE = socket.gethostname()
KILLED = f"node 1 on {HERE} failed: the trainer was killed (SIGKILL)"


@pytest.fixture
def nodes(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> Iterator[Callable[..., list[RunFolder]]]:
    """Start the run `run` in the background on two nodes; the folder of each."""

    def start(mode: str, *more: str) -> list[RunFolder]:
        fake_trainer(mode)
        both = ("--detach", "--nodes", "2", "--rendezvous", "127.0.0.1:29599", *more)
        for rank in (0, 1):
            started = train(*both, "--set", "train.accumulation=1", "--node-rank", str(rank))
            assert started.code == 0, started.err
        found = [RunFolder(folder.path, rank) for rank in (0, 1)]
        until(lambda: all(said(one)["state"] == "running" for one in found))
        return found

    yield start
    if folder.path.exists():
        iisft("stop", "run", "--now")  # of a test that failed
        assert iisft("runs", "rm", "--yes", "run").code == 0  # those who wait for a resume leave


def said(folder: RunFolder) -> dict[str, object]:
    document: dict[str, object] = json.loads(folder.node_file.read_text())
    return document


def outcome(folder: RunFolder) -> tuple[str, str]:
    until(folder.exit.exists)
    ended = json.loads(folder.exit.read_text())
    return ended["state"], ended["reason"]


def starts(folder: RunFolder) -> list[int]:
    return [e["from_step"] for e in folder.read_events() if e.get("state") == "running"]


def test_a_killed_trainer_ends_both_nodes_and_one_resume_brings_both_back(
    iisft: CLI, nodes: Callable[..., list[RunFolder]]
) -> None:
    zero, one = nodes("hang-once")  # both wait in step 3, once
    until(lambda: (zero.path / "hung1").exists() and (zero.path / "hung").exists())
    until(lambda: any(event["kind"] == "checkpoint" for event in zero.read_events()))
    process.kill_run(one.marker)
    assert outcome(zero) == ("failed", KILLED)
    assert outcome(one) == ("failed", "the trainer was killed (SIGKILL)")
    status = status_of(zero)
    assert (status.can_go_on, status.fix) == (
        True,
        "iisft resume run; on a node that does not follow: iisft resume run --node-rank N",
    )
    assert [f["message"] for f in status.findings if f["id"] == NODE_LOST] == [KILLED]
    resumed = iisft("resume", "run", "--json")
    assert (resumed.code, json.loads(resumed.out)["state"]) == (0, "finished"), resumed.err
    until(lambda: one.exit.exists() and outcome(one)[0] == "finished")
    assert (starts(zero), starts(one)) == ([0, 2], [0, 2])


def test_a_silent_node_ends_the_others_with_its_name(
    iisft: CLI, nodes: Callable[..., list[RunFolder]]
) -> None:
    zero, one = nodes("hang", "--set", "watch.node_silence_s=4")
    supervisor = one.live_supervisor()
    assert supervisor is not None
    process.kill([supervisor.pid])
    process.kill_run(one.marker)
    state, reason = outcome(zero)
    assert (state, reason.startswith(f"node 1 on {HERE} has given no sign of life for ")) == (
        "failed",
        True,
    )
    assert process.processes_of_run(zero.marker) == []


def test_a_node_that_can_not_follow_a_resume_ends_it_with_the_reason(
    iisft: CLI,
    nodes: Callable[..., list[RunFolder]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zero, one = nodes("hang")
    process.kill_run(one.marker)
    assert outcome(zero) == ("failed", KILLED)
    until(one.exit.exists)
    # its supervisor has the old path in its environment
    other = tmp_path / "another env"
    shutil.move(Path(os.environ["IISFT_PYTHON"]).parent, other)
    monkeypatch.setenv("IISFT_PYTHON", str(other / "python"))
    assert iisft("resume", "run", "--detach", "--accept-drift").code == 0
    assert outcome(zero) == (
        "failed",
        f"node 1 on {HERE} failed: the training interpreter is not there",
    )
    assert "interpreter-missing" in [event.get("id") for event in one.read_events()]


def on_another_machine(folder: RunFolder) -> None:
    """As the run looks from a machine on which its first node does not run."""
    told = json.loads(folder.processes.read_text())
    for role in ("supervisor", "trainer"):
        told[role]["boot_id"] = "another machine's"
    folder.processes.write_text(json.dumps(told))


def test_a_run_is_seen_and_stopped_from_a_machine_other_than_the_first(
    iisft: CLI, nodes: Callable[..., list[RunFolder]]
) -> None:
    zero, one = nodes("hang")
    on_another_machine(zero)
    seen = status_of(zero)
    assert (seen.state, seen.reason) == ("running", f"on {HERE}")
    refused = iisft("resume", "run")
    assert (refused.code, "run is running" in refused.err) == (6, True)
    assert iisft("stop", "run").code == 0
    assert (outcome(zero)[0], outcome(one)[0]) == ("stopped", "stopped")


def test_a_first_node_that_said_nothing_for_minutes_is_lost_from_elsewhere_too(
    nodes: Callable[..., list[RunFolder]],
) -> None:
    zero, one = nodes("hang")
    for each in (one, zero):
        supervisor = each.live_supervisor()
        assert supervisor is not None
        process.kill([supervisor.pid])
        process.kill_run(each.marker)
    on_another_machine(zero)
    assert status_of(zero).state == "running"
    os.utime(zero.node_file, (0, 0))
    assert status_of(zero).state == "lost"


@pytest.fixture
def of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Nodes]]:
    """What a supervisor of node R knows of the others, and one that looks often."""
    monkeypatch.setattr("iisft.runs.supervise.nodes._LOOK_S", 0.05)
    monkeypatch.setattr("iisft.runs.supervise.nodes._BEAT_S", 0.2)
    folder = RunFolder(tmp_path / "运行 run")
    folder.path.mkdir()
    made = []

    def make(rank: int, count: int = 2) -> Nodes:
        record = RunRecord.from_json({})
        record = replace(record, nodes=count, watch=Watch(node_silence_s=5))
        own = RunFolder(folder.path, rank)
        nodes = Nodes(own, record, Events(own))
        nodes.begin()
        made.append(nodes)
        return nodes

    yield make
    for nodes in made:
        nodes.ended(Ending("finished", "", 0, 0))


def lost(nodes: Nodes) -> str:
    until(nodes.lost)
    found = nodes.lost()
    assert found is not None
    return found.message


CLOSED = Ending("failed", "Connection closed by peer", 3, 9, passing=True, lost_others=True)


def test_who_only_lost_a_connection_takes_the_reason_of_the_node_that_has_one(
    of_two: Callable[..., Nodes],
) -> None:
    zero, one, two = (of_two(rank, 3) for rank in range(3))
    for nodes in (zero, one, two):
        nodes.training("first", 0, adopted=False)
    one.ended(CLOSED)
    assert lost(zero) == f"node 1 on {HERE} failed: Connection closed by peer"
    two.ended(replace(CLOSED, reason="no room on the disk", lost_others=False))
    ending = zero.explain(CLOSED, lambda: False)
    assert (ending.reason, ending.cause) == (
        f"node 2 on {HERE} failed: no room on the disk",
        NODE_LOST,
    )


def test_two_who_lost_each_other_keep_what_they_saw(of_two: Callable[..., Nodes]) -> None:
    zero, one = of_two(0), of_two(1)
    for nodes in (zero, one):
        nodes.training("first", 0, adopted=False)
    one.ended(CLOSED)
    assert lost(zero)
    assert zero.explain(CLOSED, lambda: False) == CLOSED


def test_nodes_that_go_on_from_different_checkpoints_end(of_two: Callable[..., Nodes]) -> None:
    zero, one = of_two(0), of_two(1)
    zero.training("first", 4, adopted=False)
    one.training("first", 2, adopted=False)
    assert lost(zero) == (
        f"node 1 on {HERE} goes on from step 2, this one from step 4: they see different "
        "checkpoints"
    )


def test_a_resume_on_node_0_ends_the_life_that_was_with_its_last_one_and_no_other(
    of_two: Callable[..., Nodes], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "运行 run")
    early = of_two(1)  # resumed by hand before node 0
    give_order(folder, accept_drift=False, from_start=False)
    until(lambda: early.order.word)
    assert early.lost() is None
    zero = of_two(0)
    until(lambda: any(peer.said for peer in early._peers))
    zero.ended(Ending("failed", "it hung", 3, 9))
    assert lost(early) == f"node 0 on {HERE} failed: it hung"
    late = of_two(1)
    zero = of_two(0)
    until(lambda: late._peers[0].moved)
    give_order(folder, accept_drift=False, from_start=False)
    assert lost(late) == "node 0 was resumed meanwhile: this node begins again with it"


def test_a_trainer_of_the_life_before_a_resume_on_node_0_begins_again(
    of_two: Callable[..., Nodes], tmp_path: Path
) -> None:
    """Its supervisor was killed, so nobody ended it; then it got a new one."""
    folder = RunFolder(tmp_path / "运行 run")
    killed = of_two(1)
    killed.training("first", 2, adopted=False)
    killed.ended(Ending("lost", "", 2, 9))
    give_order(folder, accept_drift=False, from_start=False)
    of_two(0).training("second", 2, adopted=False)
    late = of_two(1)
    late.training("first", 2, adopted=True)
    assert lost(late) == "node 0 was resumed meanwhile: this node begins again with it"


def test_a_node_that_does_not_come_is_named_with_its_command(
    of_two: Callable[..., Nodes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iisft.runs.supervise.nodes._COMES_S", 0.3)
    zero = of_two(0)
    folder = RunFolder(tmp_path / "运行 run")
    until(lambda: any(event["kind"] == "finding" for event in folder.read_events()))
    (found,) = folder.read_events()
    assert zero.lost() is None
    assert (found["id"], found["fix"]) == ("node-awaited", "there: iisft train --node-rank 1")
