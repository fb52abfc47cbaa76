"""Finds and ends the processes that a test has left behind, whatever became of their parents."""

import contextlib
import os
import signal
import time
from pathlib import Path

# Every process that the tests start inherits it, from the session down to a trainer's ranks.
SESSION = "TESTS_OF_IISFT"


def carrying(name: str, value: str) -> dict[int, str]:
    """Pid and command line of every other live process whose environment has NAME=VALUE."""
    wanted, found = f"{name}={value}".encode(), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace").strip()
    return found


def kill_all(name: str, value: str) -> None:
    """Again until none is left: one that is being killed may still start another."""
    while found := carrying(name, value):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def await_none(name: str, value: str, seconds: float) -> dict[int, str]:
    """Those that are still there after some time in which what is about to end may do so."""
    deadline = time.monotonic() + seconds
    while (found := carrying(name, value)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
