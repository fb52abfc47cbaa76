"""The only package that starts, finds, signals or waits for processes. Linux (/proc)."""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iisft.process.pipes import Pipes
from iisft.process.proc import ProcessIdentity as ProcessIdentity
from iisft.process.proc import environ_entries, has_variable, parent_of
from iisft.process.proc import environment_of as environment_of
from iisft.process.proc import identity_of as identity_of

# Every process of a trainer carries this variable with its run's marker, so that orphans are found
# after any kill.
RUN_MARKER = "IISFT_RUN"
# A supervisor carries this one instead, so that it is not killed with its trainer.
SUPERVISOR_MARKER = "IISFT_SUPERVISES"
_DYING_S = 2.0


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupts what takes longer, also inside of a regular expression, which looks for signals
    now and then. Without effect beside the main thread.

    Raises:
        TimeoutError: the time is over.
    """

    def over(*_: object) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
        start_new_session=True,  # a group of its own: what it starts dies with it, and we don't
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
                # Ctrl-C and a closed terminal signal the foreground's whole group (setsid(2))
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
        # readable when the process ends, also one that is not a child of ours (pidfd_open(2))
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
    return marked(RUN_MARKER).get(marker, [])


def marked(variable: str) -> dict[str, list[int]]:
    """Every live process that was started with that variable, by its value, sorted by pid."""
    start = os.fsencode(f"{variable}=")
    found: dict[str, list[int]] = {}
    for pid in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        values = [
            item.removeprefix(start)
            for item in environ_entries(Path(f"/proc/{pid}"))
            if item.startswith(start)
        ]
        if values and identity_of(pid):
            found.setdefault(os.fsdecode(values[0]), []).append(pid)
    return found


def rank_processes(marker: str) -> list[int]:
    """The processes that train: torchrun's workers (with LOCAL_RANK), else the trainer itself."""
    pids = processes_of_run(marker)
    ranks = {pid for pid in pids if has_variable(pid, b"LOCAL_RANK")}
    if not ranks:
        return pids
    return sorted(pid for pid in ranks if parent_of(pid) not in ranks)


def terminate(pids: Iterable[int]) -> None:
    """SIGTERM each process that still lives."""
    _signal_all(pids, signal.SIGTERM)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL each process that still lives."""
    _signal_all(pids, signal.SIGKILL)


def ask_for_stacks(pids: Iterable[int]) -> None:
    """SIGUSR1: a trainer with iisft's callback writes the stacks of its threads to its log."""
    _signal_all(pids, signal.SIGUSR1)


def kill_run(marker: str, timeout_s: float = 10.0) -> list[int]:
    """SIGKILL every process of a run until none is left.

    What still lives after `timeout_s` is returned.
    """
    deadline = time.monotonic() + timeout_s
    dying: set[ProcessIdentity] = set()
    while True:
        # again and again: what is being killed may just have started another
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


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def signal_group(pid: int, number: int) -> None:
    """Signal every process of the group that `pid` leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
