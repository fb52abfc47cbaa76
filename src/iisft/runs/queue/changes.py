"""Changing the queue: adding a run, moving it, taking it out, pausing. One process at a time."""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence

from iisft import files, process
from iisft.errors import EnvironmentFault, RunStateError, UsageError
from iisft.llamafactory.interpreter import training_interpreter
from iisft.machine.doctor.engine import training_gpus
from iisft.process import ProcessIdentity
from iisft.runs.plan import create
from iisft.runs.plan.plan import Plan
from iisft.runs.plan.preflight import taken_error
from iisft.runs.queue.entries import LARGEST, LAST, MOST, Entry, Need, Queue, entry_files, read
from iisft.runs.record.folder import RunFolder
from iisft.runs.supervise import control
from iisft.workspace import Workspace

_LOCK_S = 30.0
_FAMILY = re.compile(r"\w[\w.-]{0,99}")


def add(plan: Plan, workspace: Workspace, family: str | None = None) -> RunFolder:
    """Make the folder of a run that was planned with Preflight.here(..., queued=True), and put it
    at the end of the queue. Afterwards call entries.ensure_runner(workspace, added=True).

    Raises:
        UsageError: it can't wait: several machines, or a family of odd letters.
        RunStateError: the name is taken.
        EnvironmentFault: the disk is full or read-only.
    """
    if plan.placement.nodes > 1:
        raise UsageError("queue-nodes", "a run of several machines can't wait in the queue of one")
    if family is not None and not _FAMILY.fullmatch(family):
        text = f"a family's name has letters, digits, '.', '_' and '-', not {family!r}"
        raise UsageError("queue-family", text)
    folder = plan.folder
    with changing(workspace) as queue:
        if _is_being_added(folder):
            raise taken_error(folder)
        last = max((entry.place for entry in queue.entries if entry.place < LAST), default=0.0)
        _write(folder, last + 1, str(training_interpreter()))
    try:
        create.create(plan, {"family": family, **_need(plan).as_json()})
    except BaseException:
        with contextlib.suppress(OSError):
            if not folder.path.exists():
                folder.queue_entry.unlink(missing_ok=True)
        raise
    return folder


def _need(plan: Plan) -> Need:
    ranks = plan.placement.ranks
    used = training_gpus(plan.gpus, plan.preset.hardware.vendor)[:ranks]
    if plan.placement.on_cpu or not used:
        return Need()
    return Need(ranks, used[0].vendor, used[0].arch, min(gpu.memory_gib for gpu in used))


def _write(folder: RunFolder, place: float, python: str) -> None:
    adder = process.identity_of(os.getpid())
    values = {"place": place, "python": python, "adder": adder and adder.as_json()}
    files.write_json_atomically(folder.queue_entry, values)


def _is_being_added(folder: RunFolder) -> bool:
    """Whether another process is just making the folder that this entry announces."""
    values = files.read_json_object(folder.queue_entry, LARGEST) or {}
    adder = ProcessIdentity.from_json(values.get("adder"))
    return adder is not None and adder.pid != os.getpid() and adder.alive()


@contextlib.contextmanager
def changing(workspace: Workspace) -> Iterator[Queue]:
    """Keep others from changing the queue meanwhile; waits for them.

    Raises:
        RunStateError: another process has it for too long.
        EnvironmentFault: the workspace can't be written.
    """
    deadline = time.monotonic() + _LOCK_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                workspace.queue.mkdir(parents=True, exist_ok=True)
                stack.enter_context(files.exclusive_lock(workspace.queue / ".lock"))
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    text = "another process is changing the queue, and does not come to an end"
                    raise RunStateError(
                        "queue-locked", text, where=str(workspace.queue / ".lock")
                    ) from None
                time.sleep(0.02)
            except OSError as error:
                text = f"the queue can't be written: {error.strerror}"
                raise EnvironmentFault(
                    "queue-unwritable", text, where=str(workspace.queue)
                ) from error
        yield read(workspace)


def move(workspace: Workspace, run: str, position: int) -> None:
    """Give a waiting run another position.

    Raises:
        RunStateError: it does not wait in the queue.
    """
    with changing(workspace) as queue:
        entry = _waiting(queue, run)
        others = [one for one in queue.waiting if one.id != run]
        before, after = others[: position - 1], others[max(position - 1, 0) :]
        if not after:
            last = max((one.place for one in before if one.place < LAST), default=0.0)
            place = last + 1
        elif not before:
            place = min(after[0].place, MOST) - 1
        else:
            place = (before[-1].place + min(after[0].place, before[-1].place + 2)) / 2
        place = min(place, MOST)
        fits = (not before or before[-1].place < place) and (not after or place < after[0].place)
        # where no number is left between two, everybody gets another
        line = {entry.id: place} if fits else _numbered([*before, entry, *after])
        for one in queue.waiting:
            if one.id in line:
                _write(one.folder, line[one.id], one.python or str(training_interpreter()))


def _numbered(line: Sequence[Entry]) -> dict[str, float]:
    return {entry.id: float(number) for number, entry in enumerate(line, 1)}


def remove(workspace: Workspace, runs: Iterable[str]) -> None:
    """Take waiting runs out of the queue, with their folders: nothing has happened in them.

    Raises:
        RunStateError: one does not wait in the queue (then none is taken out), or is just being
            started.
    """
    with changing(workspace) as queue:
        for entry in [_waiting(queue, run) for run in dict.fromkeys(runs)]:
            control.remove(entry.folder)  # refused while the runner is starting it
            entry.folder.queue_entry.unlink(missing_ok=True)


def pause(workspace: Workspace) -> None:
    """Start nothing more until `go_on`; what runs goes on."""
    with changing(workspace):
        files.write_text_atomically(workspace.queue / "paused", "iisft queue run goes on\n")


def go_on(workspace: Workspace) -> None:
    with changing(workspace):
        (workspace.queue / "paused").unlink(missing_ok=True)


def _waiting(queue: Queue, run: str) -> Entry:
    entry = next((entry for entry in queue.entries if entry.id == run), None)
    if entry is None:
        ids = ", ".join(one.id for one in queue.waiting[:5])
        hint = f"; there wait: {ids}" if ids else ""
        raise RunStateError(
            "not-in-queue", f"no run named {run!r} is in the queue{hint}", fix="iisft queue"
        )
    if not entry.waiting:
        raise _not_waiting(entry)
    return entry


def _not_waiting(entry: Entry) -> RunStateError:
    state = entry.status.state
    fix = f"iisft stop {entry.id}" if entry.status.live else f"iisft status {entry.id}"
    return RunStateError(
        "not-waiting", f"{entry.id} waits no more: it is {state}", where=str(entry.folder.path),
        fix=fix,
    )  # fmt: skip


def forget_ended(workspace: Workspace, queue: Queue) -> None:
    """Drop the entries of runs that have ended, and those whose folder was never made or is gone.

    Call it while `changing` holds the queue.
    """
    for entry in queue.entries:
        if entry.ended:
            entry.folder.queue_entry.unlink(missing_ok=True)
    for file in entry_files(workspace):
        folder = RunFolder(workspace.runs / file.stem)
        announced = "adder" in (files.read_json_object(file, LARGEST) or {})
        if announced and not folder.path.exists() and not _is_being_added(folder):
            file.unlink(missing_ok=True)
