"""The small process that owns a trainer: starts it, brings it back after a crash, and records how
the run ended.

Run as `python -m iisft.runs.supervise.supervisor RUN_FOLDER [NODE_RANK]`. It imports no pydantic,
rich or typer, so that it stays small and starts whatever else is broken. The trainer writes to its
log itself: the supervisor's death does not end it, and the next supervisor adopts it.
"""

import contextlib
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft import files, process
from iisft.child.constants_iisft import LAYERS_KEPT_KEY
from iisft.errors import Finding, IisftError, RunStateError
from iisft.files import read_json_object, sha256_of, write_json_atomically
from iisft.models.view.build import restore_base_model_name
from iisft.runs.record import measurements
from iisft.runs.record.events import Events
from iisft.runs.record.folder import RunFolder, parse_event
from iisft.runs.record.run_record import RunRecord
from iisft.runs.record.state import latest_metrics
from iisft.runs.supervise import trainer
from iisft.runs.supervise.attempt import Attempt
from iisft.runs.supervise.ending import OUT_OF_MEMORY, Ending
from iisft.runs.supervise.nodes import Nodes, Order, order_of
from iisft.runs.supervise.telling import Teller
from iisft.secrets import hide

_FIRST_BACKOFF_S = 3.0
_BACKOFF_FACTOR = 3
_LONGEST_BACKOFF_S = 60.0
_RESUME_WAIT_S = 24 * 3600.0  # how long the other nodes wait for a resume on node 0
_LOOK_FOR_ORDER_S = 2.0
_RESERVE_BYTES = 256 * 1024


class Supervisor:
    """One node's run, from here to exit.json."""

    def __init__(self, folder: RunFolder) -> None:
        record = folder.read_record()
        if record is None or record.missing:
            raise SystemExit(f"no run to supervise in {folder.path}")
        self.folder = folder
        self.record = record
        self.events = Events(folder)
        self.teller = Teller(folder, record, self.events)
        self.nodes = Nodes(folder, record, self.events)
        self.restarts = 0
        self._crashes: set[tuple[int, str]] = set()
        self._furthest = -1
        self._vain_restarts = 0
        self._attempt: Attempt | None = None
        self._told_to_end = False
        self._came_again = False
        self._failed = False

    def run(self) -> None:
        """Supervise to the end."""
        process.on_terminate(self._on_signal)
        with contextlib.suppress(OSError):
            self.folder.reserve.write_bytes(bytes(_RESERVE_BYTES))
        self._note_start()
        self.nodes.begin()
        start = trainer.adopt(self.folder, self.events)
        while True:
            try:
                start = start or trainer.start(self.folder, self.record, self.events)
            except (OSError, RunStateError) as error:
                fix = error.fix if isinstance(error, RunStateError) else ""
                reason = f"the trainer can't be started: {error}"
                before = self._attempt.progress() if self._attempt else (0, 0)
                self.events.finding(Finding("start-failed", reason, fix=fix))
                self._finish(Ending("failed", reason, *before, fix=fix))
                return
            self.nodes.training(start.proof_word, start.from_step, adopted=start.adopted)
            self._attempt = Attempt(self.folder, self.record, start, self.events, self.nodes)
            self._attempt.told_to_end = self._told_to_end
            ending = self._attempt.run()
            self.record = self.folder.read_record() or self.record
            if not self._may_restart(ending) or not self._wait_for_restart(ending):
                break
            start = None
        self._finish(self.nodes.explain(ending, lambda: self._told_to_end))

    def await_resume(self) -> None:
        """Where this later node's life failed: wait for a resume on node 0, and resume here too.

        Not for ever, not when told to end, and not when the run was removed or brought back here.
        """
        deadline = time.monotonic() + _RESUME_WAIT_S
        while self._failed and self.folder.node_rank and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # the shared folder is out of reach for a while
                if not (self.folder.record.exists() and self.folder.exit.exists()):
                    return
            if self._told_to_end:
                return
            order = order_of(self.folder)
            if order is None or order.word == self.nodes.order.word:
                time.sleep(_LOOK_FOR_ORDER_S)
            elif self._follow(order):
                return

    def _follow(self, order: Order) -> bool:
        from iisft.runs.supervise.resume import resume  # what it loads, a waiting process need not

        drift, again = order.accept_drift, order.from_start
        try:
            resume(self.folder, accept_drift=drift, from_start=again, ordered=True)
        except IisftError as error:
            self.events.finding(error.finding)
            self.nodes.refused(order, str(error))
            return False
        return True

    def _note_start(self) -> None:
        """A run that waited in the queue began now, not when it was put there."""
        if self.record.queue and not self.folder.processes.exists():
            with contextlib.suppress(OSError):
                self.folder.update_record(created=time.time())
                self.record = self.folder.read_record() or self.record

    def _on_signal(self) -> None:
        self._told_to_end = True
        if self._attempt is not None:
            self._attempt.told_to_end = True

    def _may_restart(self, ending: Ending) -> bool:
        """Not what would come again, and not with several nodes: one alone can't rejoin
        the others.
        """
        if ending.state != "failed" or self.record.nodes > 1:
            return False
        asked_to_end = self._told_to_end or self.folder.stop_request.exists()
        may_start = self.restarts < self.record.watch.restarts and not asked_to_end
        if ending.cause == OUT_OF_MEMORY and may_start:
            kept = keep_fewer(self.folder, self.record, self.events)
            self.record = self.folder.read_record() or self.record
            return kept
        if not ending.passing:
            return False
        crash = (ending.step, ending.cause or ending.reason)
        self._came_again = crash in self._crashes
        self._crashes.add(crash)
        return not self._came_again and may_start

    def _wait_for_restart(self, ending: Ending) -> bool:
        """The pause before another start; False when a stop is asked for meanwhile."""
        self._vain_restarts = 0 if ending.step > self._furthest else self._vain_restarts + 1
        self._furthest = max(self._furthest, ending.step)
        pause = min(_FIRST_BACKOFF_S * _BACKOFF_FACTOR**self._vain_restarts, _LONGEST_BACKOFF_S)
        self.restarts += 1
        self.events.append(
            "state", state="restarting", message=f"{ending.reason}; again in {pause:.0f} s"
        )
        self.teller.restarting(ending, pause)
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if self._told_to_end or self.folder.stop_request.exists():
                return False
            time.sleep(0.1)
        return True

    def _finish(self, ending: Ending) -> None:
        if not self.folder.node_rank:
            self._restore_names()
        if ending.state == "failed" and ending.passing and self._told_to_end:
            ending = replace(
                ending,
                state="lost",
                reason=f"told to end, as at a shutdown, after: {ending.reason}",
            )
        elif ending.state == "failed" and ending.passing and self.folder.stop_request.exists():
            ending = replace(
                ending, state="stopped", reason=f"stopped on request after: {ending.reason}"
            )
        elif self._came_again and not ending.fix:
            # nothing is known that would make the next start another one
            ending = replace(ending, passing=False)
        events = [] if self.folder.node_rank else list(map(parse_event, self.events.lines()))
        found = measurements.measure(events)
        outcome = self._outcome(ending, latest_metrics(filter(None, events))) | {"measured": found}
        self.folder.reserve.unlink(missing_ok=True)  # how a run ended must find room on a full disk
        self.events.append("state", **outcome)
        files.write_json_atomically(self.folder.exit, outcome)
        self._failed = ending.state == "failed"
        self.nodes.ended(ending)
        if ending.state == "finished" and not self.folder.node_rank:
            measurements.keep(self.folder.path.parent, self.folder, self.record, found)
        if ending.state == "finished":
            shutil.rmtree(self.folder.datasets_cache, ignore_errors=True)
        self.teller.ended(ending, outcome)
        self.teller.wait()

    def _restore_names(self) -> None:
        try:
            restore_base_model_name(
                self.folder.output, self.folder.model, str(self.record.model.folder)
            )
        except OSError as error:  # how the run ended matters more
            message = f"the adapters still name the view as their base model: {error.strerror}"
            self.events.finding(Finding("base-model-name", message, severity="warn"))

    def _outcome(self, ending: Ending, latest: dict[str, Any]) -> dict[str, Any]:
        """All that a list of runs shows, so that it reads one file per ended run."""
        return {
            "state": ending.state,
            "reason": hide(ending.reason),
            "fix": hide(ending.fix),
            "comes_again": ending.comes_again,
            "returncode": ending.returncode,
            "ended": time.time(),
            "step": ending.step,
            "total_steps": ending.total_steps,
            "checkpoint": self._attempt.kept if self._attempt else None,
            "loss": latest.get("loss"),
            "eval_loss": latest.get("eval_loss"),
            "preset": self.record.preset_name,
            "started": self.record.created,
            "ranks": self.record.world_size,
        }


def keep_fewer(folder: RunFolder, record: RunRecord, events: Events) -> bool:
    """Change view and record to three quarters of the layers; False where none is kept.

    The bits of the run stay the same: a layer that keeps nothing computes the same twice.
    """
    kept = record.proof.layers_kept
    config = read_json_object(folder.model / "config.json")
    if not kept or config is None:
        return False
    fewer = kept * 3 // 4
    try:
        write_json_atomically(folder.model / "config.json", config | {LAYERS_KEPT_KEY: fewer})
        digest = sha256_of(folder.model / "config.json")
        folder.update_record(
            expected=dict(record.expected) | {"layers_kept": fewer},
            view=dict(record.view) | {"config.json": digest},
        )
    except OSError:
        return False
    text = f"a GPU ran out of memory with the products of {kept} layers kept: now {fewer} keep them"
    events.finding(Finding("fewer-layers-kept", text, severity="warn"))
    return True


def main(argv: list[str]) -> None:
    """Supervise the run in argv[0] as node argv[1] (0 when left out)."""
    folder = RunFolder(Path(argv[0]), int(argv[1]) if len(argv) > 1 else 0)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.exclusive_lock(folder.supervisor_lock))
        except BlockingIOError:
            raise SystemExit("another supervisor has this run") from None
        if folder.exit.exists():  # another one was faster, and is done
            raise SystemExit("this run has ended")
        supervisor = Supervisor(folder)
        supervisor.run()
    supervisor.await_resume()


if __name__ == "__main__":
    main(sys.argv[1:])
