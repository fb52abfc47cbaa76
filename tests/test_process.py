"""Real processes: told apart, found, and ended with everything they started."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import until
from iisft import process

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[str]:
    name = str(tmp_path / "运行 run")
    yield name
    process.kill_run(name)


def start(marker: str, argv: list[str], **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv, env=os.environ | {process.RUN_MARKER: marker} | env, start_new_session=True
    )


def test_an_identity_lives_as_long_as_its_process(marker: str) -> None:
    child = start(marker, SLEEP)
    identity = process.identity_of(child.pid)
    assert identity is not None
    assert identity.alive()
    assert process.ProcessIdentity.from_json(identity.as_json()) == identity
    child.kill()
    child.wait()
    assert not identity.alive()


def test_a_reused_pid_or_another_boot_is_another_process() -> None:
    mine = process.identity_of(os.getpid())
    assert mine is not None
    assert not replace(mine, start_ticks=mine.start_ticks + 1).alive()
    assert not replace(mine, boot_id="another machine").alive()


@pytest.mark.parametrize("value", [None, {}, {"pid": "x", "start_ticks": 1, "boot_id": "b"}, [1]])
def test_a_torn_identity_is_none(value: object) -> None:
    assert process.ProcessIdentity.from_json(value) is None


def test_a_zombie_is_not_alive(marker: str) -> None:
    child = start(marker, ["true"])
    until(lambda: process.identity_of(child.pid) is None)
    child.wait()


def test_an_orphan_in_a_session_of_its_own_is_found_and_killed(marker: str) -> None:
    spawn = (
        f"import subprocess, time; subprocess.Popen({SLEEP!r}, start_new_session=True); "
        "time.sleep(600)"
    )
    parent = start(marker, [sys.executable, "-c", spawn])
    until(lambda: len(process.processes_of_run(marker)) == 2)
    process.kill([parent.pid])
    parent.wait()
    until(lambda: len(process.processes_of_run(marker)) == 1)
    assert process.kill_run(marker) == []
    assert process.processes_of_run(marker) == []


def test_the_ranks_are_torchruns_workers_and_not_what_they_start(marker: str) -> None:
    spawn = f"import subprocess, time; subprocess.Popen({SLEEP!r}); time.sleep(600)"
    launcher = start(marker, SLEEP)
    until(lambda: process.rank_processes(marker) == [launcher.pid])
    worker = start(marker, [sys.executable, "-c", spawn], LOCAL_RANK="0")
    until(lambda: len(process.processes_of_run(marker)) == 3)
    until(lambda: process.rank_processes(marker) == [worker.pid])


def test_a_command_that_hangs_is_killed_with_its_children(marker: str) -> None:
    argv = ["sh", "-c", "sleep 600 & sleep 600"]
    with pytest.raises(TimeoutError, match=r"sh did not end within 0\.5 s"):
        process.run(argv, timeout_s=0.5, env=os.environ | {process.RUN_MARKER: marker})
    assert process.processes_of_run(marker) == []


def test_a_command_that_falls_silent_is_killed_and_what_it_said_is_kept() -> None:
    with pytest.raises(process.RanTooLong, match=r"sh wrote nothing for 0\.3 s") as late:
        process.run(
            ["sh", "-c", "echo begun; echo why >&2; sleep 600"], timeout_s=60, silence_s=0.3
        )
    assert (late.value.stdout, late.value.stderr) == ("begun\n", "why\n")


def test_a_command_gives_its_output_and_code() -> None:
    assert process.run(
        ["sh", "-c", "echo 中文; echo err >&2; exit 3"], timeout_s=10
    ) == process.Completed(3, "中文\n", "err\n")


def test_a_child_is_waited_for_and_its_output_appended(tmp_path: Path) -> None:
    log = tmp_path / "a log"
    log.write_text("before\n")
    child = process.Child(
        ["sh", "-c", "echo after; kill -9 $$"], cwd=tmp_path, env=os.environ, output=log
    )
    until(lambda: child.wait(5))
    assert child.returncode() == -9
    assert process.signal_name(-9) == "SIGKILL"
    assert log.read_text() == "before\nafter\n"


def test_waiting_ends_in_time_while_the_child_runs(tmp_path: Path) -> None:
    child = process.Child(SLEEP, cwd=tmp_path, env=os.environ, output=tmp_path / "log")
    assert not child.wait(0.05)
    process.kill([child.pid])
    until(lambda: child.wait(5))


def test_a_killed_run_is_gone_and_not_only_dying(tmp_path: Path) -> None:
    """A process that gives back its memory has no environment any more, but still its files and its
    GPU.
    """
    code = (
        "import time; big = bytearray(b'x') * 400_000_000; print('ready', flush=True); "
        "time.sleep(600)"
    )
    log, env = tmp_path / "log", os.environ | {process.RUN_MARKER: str(tmp_path)}
    child = process.Child([sys.executable, "-c", code], cwd=tmp_path, env=env, output=log)
    until(lambda: log.read_text())
    assert process.kill_run(str(tmp_path)) == []
    assert process.identity_of(child.pid) is None
