"""The small process that starts the runs of a queue, one after another or beside each other.

Run as `python -m iisft.runs.queue.runner WORKSPACE`. It remembers nothing: killed at any moment,
the next one goes on from the files. A run counts as started when its folder says so, and is never
touched while somebody else brings it back (its resume lock).
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from iisft import files, process
from iisft.errors import IisftError
from iisft.llamafactory.environment import of_record, steering
from iisft.runs.queue import telling
from iisft.runs.queue.cards import Cards
from iisft.runs.queue.changes import changing, forget_ended
from iisft.runs.queue.entries import Entry, Queue, has_work, read
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.given_cards import GivenCards
from iisft.runs.record.state import QUEUED, RunStatus, brief_of
from iisft.runs.supervise import resume
from iisft.secrets import HIDDEN
from iisft.workspace import Workspace

_POLL_S = 1.0
_OTHER_RUNNER_S = 2.0  # of one that is just ending
_NOT_NOW = ("already-running", "already-resuming")  # somebody else is at it


class Runner:
    """One look after the other at the queue."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.cards = Cards()
        self._starting: Mapping[str, list[int]] = {}
        self._said: dict[str, object] | None = None

    def step(self) -> bool:
        """Bring back what is lost and start what can start; whether anything is left to do."""
        queue = read(self.workspace)
        why = {}
        self._starting = process.marked(process.SUPERVISOR_MARKER)
        for entry in queue.entries:
            if entry.status.live and not entry.status.supervised:
                _attach(entry)
            elif entry.status.state == "lost" and (reason := self._start(entry)):
                why[entry.id] = reason
        for entry in queue.waiting if not queue.paused else ():
            if reason := self._start(entry):
                why[entry.id] = reason
                break  # nobody overtakes
        self._say(why)
        return has_work(queue) and any(not entry.ended for entry in queue.entries)

    def _start(self, entry: Entry) -> str:
        """Start it, if what it needs is free; else the reason why not."""
        if entry.folder.marker in self._starting:
            return "it is being started"
        if entry.status.state == "lost":
            _end_leftovers(entry)
        live = [run for run in self._begun() if run.folder != entry.folder]
        if not entry.need.cards:
            on_cpu = [run.folder.id for run in live if _is_on_cpu(run)]
            if on_cpu:
                return f"run {on_cpu[0]} computes on the processor"
            self._try(entry)
            return ""
        fresh = self.cards.look(live)
        given = self.cards.choose(entry, live)
        if not fresh and not isinstance(given, str):
            self.cards.look(live, now=True)
            given = self.cards.choose(entry, live)
        if isinstance(given, str):
            return given
        self._try(entry, given)
        return ""

    def _begun(self) -> list[RunStatus]:
        """Runs whose trainers are, or are about to be, on their GPUs; not only the queue's."""
        try:
            folders = [RunFolder(path) for path in self.workspace.runs.glob("[!.]*")]
        except OSError:
            return []
        found = [brief_of(folder) for folder in folders if not folder.exit.exists()]
        return [run for run in found if run.live or run.folder.marker in self._starting]

    def _try(self, entry: Entry, given: GivenCards | None = None) -> None:
        """Start or resume it. What speaks against that is how the run ended."""
        try:
            with _shell_of(entry):
                if entry.waiting:
                    resume.begin(entry.folder, given)
                else:
                    resume.resume(entry.folder, cards=given)
        except IisftError as error:
            _end(entry, error)
        except OSError as error:
            _end(entry, IisftError("start-failed", f"it can't be started: {error}"))

    def _say(self, why: dict[str, str]) -> None:
        """Who runs the queue, and why the next run waits; for `iisft queue`."""
        identity = process.identity_of(os.getpid())
        said = {**(identity.as_json() if identity else {}), "why": why}
        if said != self._said:
            files.write_json_atomically(self.workspace.queue / "runner", said)
            self._said = said


@contextlib.contextmanager
def _shell_of(entry: Entry) -> Iterator[None]:
    """The variables that steer the trainer's libraries, and its interpreter, as they were in the
    shell that queued the run, and not as they were where this process began.
    """
    before = dict(os.environ)
    shell, _ = of_record(entry.record.shell, entry.folder.path)
    os.environ.update({name: value for name, value in shell.items() if HIDDEN not in value})
    if entry.python:
        os.environ["IISFT_PYTHON"] = entry.python
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _attach(entry: Entry) -> None:
    """Whatever keeps a new supervisor from its trainer: the next look sees what became of it."""
    with contextlib.suppress(IisftError, OSError), _shell_of(entry):
        resume.attach(entry.folder)


def _end_leftovers(entry: Entry) -> None:
    """Ranks that outlived a lost run are on the GPUs that it waits for."""
    with contextlib.suppress(IisftError), resume.only_one(entry.folder):
        if brief_of(entry.folder).state == "lost":
            process.kill_run(entry.folder.marker)


def _end(entry: Entry, error: IisftError) -> None:
    """Record that a run could not be started, and tell."""
    somebody = entry.folder.marker in process.marked(process.SUPERVISOR_MARKER)
    if error.code in _NOT_NOW or somebody or brief_of(entry.folder).state not in (QUEUED, "lost"):
        return
    reason = f"the queue could not start it: {error.message}"
    outcome = {"state": "failed", "reason": reason, "fix": error.fix, "ended": time.time()}
    entry.folder.append_event("state", **outcome)
    files.write_json_atomically(entry.folder.exit, outcome)
    telling.not_started(entry, reason)


def _is_on_cpu(run: RunStatus) -> bool:
    record = run.folder.read_record()
    return record is not None and not record.gpus


def main(argv: Sequence[str]) -> None:
    """Run the queue of the workspace argv[0] until it is empty, or paused with nothing running."""
    workspace = Workspace(Path(argv[0]))
    for name in steering(os.environ):
        # that of the shell which was the first to queue a run; each run has its own
        os.environ.pop(name, None)
    with contextlib.ExitStack() as stack:
        if not _is_the_only_one(workspace, stack):
            return
        runner = Runner(workspace)
        while True:
            try:
                while runner.step():
                    _wait(read(workspace))
                with changing(workspace) as queue:  # nobody adds anything meanwhile
                    if not has_work(queue) or all(entry.ended for entry in queue.entries):
                        (workspace.queue / "runner").unlink(missing_ok=True)
                        forget_ended(workspace, queue)
                        stack.close()
                        break
            except (OSError, IisftError):  # a full disk: the night is long, it may have room again
                if not workspace.queue.is_dir():
                    return
                time.sleep(_POLL_S)
    if queue.entries and not queue.waiting:
        telling.empty(queue)


def _is_the_only_one(workspace: Workspace, stack: contextlib.ExitStack) -> bool:
    deadline = time.monotonic() + _OTHER_RUNNER_S
    while True:
        try:
            stack.enter_context(files.exclusive_lock(workspace.queue / "runner.lock"))
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _wait(queue: Queue) -> None:
    """Until something may have changed: a run ended, or a second is over."""
    supervisors = (entry.folder.live_supervisor() for entry in queue.entries if entry.status.live)
    first = next((one for one in supervisors if one is not None), None)
    if first is None:
        time.sleep(_POLL_S)
    else:
        process.Adopted(first).wait(_POLL_S)


if __name__ == "__main__":
    main(sys.argv[1:])
