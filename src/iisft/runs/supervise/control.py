"""Waiting for a run, asking it to stop, and removing it, from outside of its supervisor."""

import shutil
import time
from collections.abc import Callable

from iisft import files, process
from iisft.errors import ExitCode, RunStateError
from iisft.quoting import shell_word
from iisft.runs.record.checkpoints import newest_complete
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import QUEUED, RunStatus, status_of
from iisft.runs.supervise import resume

_ANSWER_S = 60.0  # of a supervisor on a busy machine; a frozen one never answers
_EXIT_CODES = {"finished": ExitCode.OK, "stopped": ExitCode.INTERRUPTED}


def exit_code(status: RunStatus) -> ExitCode:
    """How `wait` and a foreground `train` end: as the run did."""
    return _EXIT_CODES.get(status.state, ExitCode.FAILED)


def wait(
    folder: RunFolder, on_poll: Callable[[], None] = lambda: None, poll_s: float = 0.2
) -> RunStatus:
    """Block until the run has ended, also one that is still queued; `on_poll` is called in
    between.
    """
    checks = 0
    while not folder.exit.exists():
        on_poll()
        checks += 1
        if checks % 25 == 0 and (status := status_of(folder)).over:
            return status
        time.sleep(poll_s)
    on_poll()
    return status_of(folder)


def request_stop(folder: RunFolder, *, now: bool) -> None:
    """Ask the supervisors of all nodes to stop: with a checkpoint where possible, or at once.

    A trainer without a supervisor gets one first; what is left of a lost run is ended.

    Raises:
        RunStateError: the run is not running.
    """
    status = status_of(folder)
    if status.live and not status.supervised and not resume.attach(folder):
        status = status_of(folder)
    if status.state == "lost" and process.processes_of_run(folder.marker):
        _end_what_is_left(folder)
        return
    if not status.live:
        queued = status.state == QUEUED
        raise RunStateError(
            "not-running",
            f"{folder.id} is {status.state}{': ' + status.reason if status.reason else ''}",
            where=str(folder.path),
            fix=f"iisft queue rm {shell_word(folder.id)}" if queued else "",
        )
    files.write_json_atomically(folder.stop_request, {"now": now, "time": time.time()})


def wait_for_kill(folder: RunFolder) -> RunStatus:
    """After a request to stop at once: wait for it.

    A supervisor that does not answer is killed with the rest.
    """
    deadline = time.monotonic() + _ANSWER_S
    while not folder.exit.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    supervisor = folder.live_supervisor()
    if not folder.exit.exists() and supervisor is not None:
        process.kill([supervisor.pid])
        process.Adopted(supervisor).wait(_ANSWER_S)
        _end_what_is_left(folder)
    return wait(folder)


def _end_what_is_left(folder: RunFolder) -> None:
    """Ranks whose parents died hold their GPUs; nobody else is there to record the end."""
    left = process.kill_run(folder.marker)
    record = folder.read_record()
    saved = newest_complete(folder.output, (record and record.world_size) or 1)
    kept = f"checkpoint-{saved.step} is kept" if saved else "no checkpoint is kept"
    reason = f"stopped on request without a supervisor; {kept}" + (
        f"; {left} can't be killed" if left else ""
    )
    outcome = {"state": "stopped", "reason": reason, "returncode": None, "ended": time.time()}
    folder.append_event("state", **outcome)
    files.write_json_atomically(folder.exit, outcome)


def check_removable(folder: RunFolder) -> None:
    """Raises RunStateError when the run is running."""
    if folder.path.is_symlink():
        return
    status = status_of(folder)
    # one that is done may live for a while: it still tells phones of it
    supervised = folder.marker in process.marked(process.SUPERVISOR_MARKER)
    starting = supervised and not folder.exit.exists()
    if status.live or starting or process.processes_of_run(folder.marker):
        raise RunStateError(
            "still-running",
            f"{folder.id} is running",
            where=str(folder.path),
            fix=f"iisft stop {folder.id}",
        )


def remove(folder: RunFolder) -> None:
    """Delete a run that is not running, as a whole: it is renamed first.

    Raises:
        RunStateError: it is running, or can't be deleted.
    """
    if folder.path.is_symlink():  # what it points to is somebody else's
        folder.path.unlink(missing_ok=True)
        return
    hidden = folder.path.with_name(f".removed-{folder.id}-{time.time_ns()}")
    try:
        with resume.only_one(folder):
            check_removable(folder)
            folder.path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise RunStateError(
            "not-removed", f"can't be deleted: {error.strerror}", where=str(folder.path)
        ) from error
