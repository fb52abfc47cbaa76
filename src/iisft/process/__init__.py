"""The only package that starts, finds, signals or waits for processes. Linux (/proc)."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft.pipes import Pipes

# Every process of a trainer carries this variable with its run's marker, so that orphans are found
# after any kill.
RUN_MARKER = "IISFT_RUN"
# A supervisor carries this one instead, so that it is not killed with its trainer.
SUPERVISOR_MARKER = "IISFT_SUPERVISES"
_EXITING = 0x4  # PF_EXITING of linux/sched.h, field 9 of /proc/PID/stat
_DYING_S = 2.0


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that can't be confused with a later one of the same pid: pid, start time and boot.

    `start_ticks` is field 22 of /proc/PID/stat: clock ticks since boot, so that a changed clock
    doesn't matter.
    """

    pid: int
    start_ticks: int
    boot_id: str

    def as_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": self.boot_id}

    @classmethod
    def from_json(cls, value: Any) -> "ProcessIdentity | None":
        try:
            return cls(int(value["pid"]), int(value["start_ticks"]), str(value["boot_id"]))
        except (TypeError, KeyError, ValueError, OverflowError):
            return None

    def alive(self) -> bool:
        return identity_of(self.pid) == self

    def alive_for(self, variable: str, value: str, owner: int) -> bool:
        """Whether it lives and was started with that variable: any file may name any process.

        The environment of another user's process can't be read; then it must be the one of `owner`.
        """
        place = Path(f"/proc/{self.pid}")
        try:
            found = (place / "environ").read_bytes()
            flags = int((place / "stat").read_text().rpartition(")")[2].split()[6])
            foreign = place.stat().st_uid != owner
        except PermissionError:
            return self.alive() and _owner(place) == owner
        except (OSError, ValueError, IndexError):
            return False
        # one that is being torn down has no environment any more, and may still hold its GPU
        ours = os.fsencode(f"{variable}={value}") in found.split(b"\0")
        return self.alive() and (ours or (not found and not foreign and bool(flags & _EXITING)))


@dataclass(frozen=True, slots=True)
class Completed:
    """What a finished child said."""

    returncode: int
    stdout: str
    stderr: str


class RanTooLong(TimeoutError):
    """A command that had to be killed; what it had written until then."""

    def __init__(self, message: str, stdout: str, stderr: str) -> None:
        super().__init__(message)
        self.stdout = stdout
        self.stderr = stderr


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a live process; None when there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else ProcessIdentity(pid, int(fields[18]), boot_id)


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    silence_s: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run a short command to its end, without a shell and without standard input.

    Args:
        argv: the program and its arguments.
        timeout_s: how long it may take.
        silence_s: how long it may write nothing; for one that says what it does.
        env: its variables, all of them; ours when left out.

    Raises:
        OSError: the program is missing or can't be executed.
        RanTooLong: it took or was silent too long; its whole process group was killed. What can't
            be killed (it waits inside a driver) is left behind.
    """
    child = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env) if env is not None else None,
        start_new_session=True,
    )
    assert child.stdout is not None and child.stderr is not None
    with Pipes(child.stdout, child.stderr) as pipes:
        try:
            late = pipes.read(timeout_s, silence_s)
            if late is None:
                return Completed(child.wait(max(timeout_s, _DYING_S)), *pipes.texts)
        except BaseException:
            signal_group(child.pid, signal.SIGKILL)
            raise
        signal_group(child.pid, signal.SIGKILL)
        pipes.read(_DYING_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_DYING_S)
        raise RanTooLong(f"{argv[0]} {late}", *pipes.texts)


def run_attached(argv: Sequence[str]) -> int:
    """Run a command whose talk goes to our stderr, and return its code.

    It ends with us, at once, on Ctrl-C.
    """
    child = subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
    try:
        return child.wait()
    except BaseException:
        signal_group(child.pid, signal.SIGKILL)
        child.wait()
        raise


class Child:
    """A started process that leads its own session, with its output appended to a file."""

    def __init__(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: Path
    ) -> None:
        with output.open("ab") as stream:
            self._process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def returncode(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended; waits for that up to `timeout_s` seconds."""
        sleep_until_end(self.pid, timeout_s)
        return self.returncode() is not None


@dataclass(frozen=True, slots=True)
class Adopted:
    """A running process that another one started.

    How it ends can be seen, but not its return code.
    """

    identity: ProcessIdentity

    @property
    def pid(self) -> int:
        return self.identity.pid

    def returncode(self) -> None:
        return None

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended; waits for that up to `timeout_s` seconds."""
        if self.identity.alive():
            sleep_until_end(self.pid, timeout_s)
        return not self.identity.alive()


def sleep_until_end(pid: int, timeout_s: float) -> None:
    """Wait for the end of a process, a zombie's included, up to `timeout_s` seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # a kernel before 5.3
        time.sleep(timeout_s)
        return
    try:
        select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)


def processes_of_run(marker: str) -> list[int]:
    """Every live process whose RUN_MARKER is `marker`, orphans included, sorted by pid."""
    wanted = os.fsencode(f"{RUN_MARKER}={marker}")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and wanted in _environment(entry) and identity_of(int(entry.name)):
            found.append(int(entry.name))
    return sorted(found)


def rank_processes(marker: str) -> list[int]:
    """The processes that train: torchrun's workers (with LOCAL_RANK), else the trainer itself."""
    pids = processes_of_run(marker)
    ranks = {pid for pid in pids if _has_variable(pid, b"LOCAL_RANK")}
    if not ranks:
        return pids
    return sorted(pid for pid in ranks if _parent(pid) not in ranks)


def terminate(pids: Iterable[int]) -> None:
    """SIGTERM each process that still lives."""
    _signal_all(pids, signal.SIGTERM)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL each process that still lives."""
    _signal_all(pids, signal.SIGKILL)


def ask_for_stacks(pids: Iterable[int]) -> None:
    """SIGUSR1: a trainer with iisft's callback writes the stacks of its threads to its log."""
    _signal_all(pids, signal.SIGUSR1)


def environment_of(pid: int) -> dict[str, str]:
    """The variables that a process was started with; empty when it is gone or another user's."""
    pairs = (
        item.decode("utf-8", "surrogateescape").partition("=")
        for item in _environment(Path(f"/proc/{pid}"))
    )
    return {name: value for name, separator, value in pairs if separator}


def kill_run(marker: str, timeout_s: float = 10.0) -> list[int]:
    """SIGKILL every process of a run until none is left.

    What still lives after `timeout_s` is returned.
    """
    deadline = time.monotonic() + timeout_s
    dying: set[ProcessIdentity] = set()
    while True:
        pids = processes_of_run(marker)
        # A process that is being torn down has no environment any more, and may hold its GPU a
        # while longer.
        dying = {
            one
            for one in dying | {identity_of(pid) for pid in pids}
            if one is not None and one.alive()
        }
        if not pids and not dying:
            return []
        if time.monotonic() > deadline:
            return sorted({*pids, *(one.pid for one in dying)})
        kill(pids)
        time.sleep(0.05)


def on_terminate(handler: Callable[[], None]) -> None:
    """Call `handler` on SIGTERM and SIGINT from now on; SIGHUP (a closed terminal) is ignored."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: handler())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def signal_name(returncode: int) -> str:
    """SIGKILL for -9."""
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _environment(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _owner(place: Path) -> int | None:
    try:
        return place.stat().st_uid
    except OSError:
        return None


def _has_variable(pid: int, name: bytes) -> bool:
    return any(item.startswith(name + b"=") for item in _environment(Path(f"/proc/{pid}")))


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def signal_group(pid: int, number: int) -> None:
    """Signal every process of the group that `pid` leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
