"""Waiting for a run and asking it to stop, from outside of its supervisor."""

import time
from collections.abc import Callable

from iisft import files, process
from iisft.errors import ExitCode, RunStateError
from iisft.runs.folder import RunFolder, complete_checkpoints
from iisft.runs.state import RunStatus, status_of

_EXIT_CODES = {"finished": ExitCode.OK, "stopped": ExitCode.INTERRUPTED}


def exit_code(status: RunStatus) -> ExitCode:
    """How `wait` and a foreground `train` end: as the run did."""
    return _EXIT_CODES.get(status.state, ExitCode.FAILED)


def wait(folder: RunFolder, on_poll: Callable[[], None] = lambda: None, poll_s: float = 0.2) -> RunStatus:
    """Block until the run has ended; `on_poll` is called in between."""
    checks = 0
    while not folder.exit.exists():
        on_poll()
        checks += 1
        if checks % 25 == 0 and not (status := status_of(folder)).live:
            return status
        time.sleep(poll_s)
    on_poll()
    return status_of(folder)


def request_stop(folder: RunFolder, *, now: bool) -> None:
    """Ask the supervisors of all nodes to stop: with a checkpoint where possible, or at once.

    Raises:
        RunStateError: the run is not running.
    """
    status = status_of(folder)
    if not status.live:
        raise RunStateError(
            "not-running",
            f"{folder.id} is {status.state}{': ' + status.reason if status.reason else ''}",
            where=str(folder.path),
        )
    files.write_json_atomically(folder.stop_request, {"now": now, "time": time.time()})
    if status.reason.startswith("unsupervised"):
        _stop_unsupervised(folder)


def _stop_unsupervised(folder: RunFolder) -> None:
    """Nobody is left to record the end, so this process does."""
    left = process.kill_run(folder.marker)
    kept = max((step for step, whole in complete_checkpoints(folder.output).items() if whole), default=None)
    reason = "stopped on request without a supervisor" + (f"; processes {left} can't be killed" if left else "")
    outcome = {
        "state": "stopped",
        "reason": reason,
        "returncode": None,
        "ended": time.time(),
        "checkpoint": kept,
    }
    folder.append_event("state", **outcome)
    files.write_json_atomically(folder.exit, outcome)
