"""The small process that owns a trainer: starts it, follows its log, proves the preset, and records how it ended.

Run as `python -m iisft.runs.supervisor RUN_FOLDER [NODE_RANK]`. It imports no pydantic, rich or typer, so that it stays
small and starts whatever else is broken. The trainer writes to its log itself: the supervisor's death does not end it.
"""

import math
import os
import secrets
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from iisft import files, process
from iisft.llamafactory.logs import PROOF_VARIABLE, Metrics, TrainerLog, error_in_log
from iisft.models.view import restore_base_model_name
from iisft.runs.folder import RunFolder, complete_checkpoints
from iisft.runs.proof import Expected, Observed, differences

_POLL_S = 1.0
_NAN_STEPS = 2
_MIN_STOP_GRACE_S = 180.0


class Supervisor:
    """One node's trainer, from start to exit.json."""

    def __init__(self, folder: RunFolder) -> None:
        record = folder.read_record()
        if record is None:
            raise SystemExit(f"no run to supervise in {folder.path}")
        self.folder = folder
        self.record = record
        self.expected = Expected(**record["expected"])
        self.local_ranks = int(record["ranks"])
        self.proof_word = secrets.token_hex(8)
        self.log = TrainerLog.follow(folder.train_log, folder.trainer_log, self.proof_word)
        self.last: Metrics | None = None
        self.proven = False
        self.fault = ""
        self.stop_deadline: float | None = None
        self._step_times: deque[float] = deque(maxlen=50)
        self._last_step_at = time.monotonic()
        self._tokens: int | None = None
        self._not_finite = 0
        self._checkpoints: set[int] = set()
        self._signalled = False

    def run(self) -> None:
        """Supervise to the end."""
        process.on_terminate(self._on_signal)
        trainer = self._start_trainer()
        if trainer is not None:
            while (returncode := trainer.wait(_POLL_S)) is None:
                self._look()
            self._look(at_end=True)
            left = process.kill_run(self.folder.marker)  # ranks that outlived torchrun would keep their GPU
            if left:
                self.folder.append_event("finding", id="unkillable", message=f"processes {left} can't be killed")
            self._finish(returncode)

    def _start_trainer(self) -> process.Child | None:
        # The environment comes by inheritance, never from run.json: secrets stand in no file.
        env = dict(os.environ) | {process.RUN_MARKER: self.folder.marker, PROOF_VARIABLE: self.proof_word}
        try:
            trainer = process.Child(self.record["argv"], cwd=self.folder.path, env=env, output=self.folder.train_log)
        except OSError as error:
            self._finish(None, f"the trainer can't be started: {error}")
            return None
        identities = {
            "supervisor": process.identity_of(os.getpid()),
            "trainer": process.identity_of(trainer.pid),
        }
        files.write_json_atomically(
            self.folder.processes, {name: found and found.as_json() for name, found in identities.items()}
        )
        self.folder.append_event("state", state="running")
        return trainer

    def _look(self, *, at_end: bool = False) -> None:
        """One round: take in the log, prove, watch for NaN, answer a stop request."""
        self._take(self.log.read(at_end=at_end))
        if not self.proven and not self.fault:
            self._prove(at_end=at_end)
        self._note_checkpoints()
        if self.fault:
            process.kill(process.processes_of_run(self.folder.marker))
        elif not at_end:
            self._answer_stop_request()

    def _take(self, arrived: list[Metrics]) -> None:
        """Record metrics. Steps that arrived in one round share the time since the last round that had one."""
        now = time.monotonic()
        before = self.last.step if self.last else None
        steps = arrived[-1].step - before if arrived and before is not None else 0
        step_s = round((now - self._last_step_at) / steps, 4) if steps > 0 else None
        for metrics in arrived:
            timed = {"step_s": step_s} if step_s is not None and metrics.loss is not None else {}
            self._step_times.extend(timed.values())
            if step_s and metrics.tokens is not None and self._tokens is not None:
                timed["tokens_per_s"] = round((metrics.tokens - self._tokens) / step_s, 1)
            self._tokens = metrics.tokens
            self.folder.append_event("metrics", **metrics.as_json(), **timed)
            self._watch_for_nan(metrics)
        if arrived and (steps > 0 or before is None):
            self.last, self._last_step_at = arrived[-1], now

    def _watch_for_nan(self, metrics: Metrics) -> None:
        """A NaN loss is logged as NaN; with fp16 overflow the loss is 0.0 beside a NaN or zero grad_norm."""
        loss, norm = metrics.loss, metrics.grad_norm
        if loss is None or self.record["watch"]["nan"] == "ignore":
            return
        broken = not math.isfinite(loss) or (norm is not None and not math.isfinite(norm))
        self._not_finite = self._not_finite + 1 if broken or (loss == 0.0 and norm == 0.0) else 0
        if self._not_finite >= _NAN_STEPS and not self.fault:
            self._fail("nan", f"loss {loss}, grad_norm {norm} at step {metrics.step}: nothing is learnt from here on")

    def _prove(self, *, at_end: bool) -> None:
        """Compare as soon as everything was reported, and at the first step at the latest."""
        first_node = self.folder.node_rank == 0
        observed = Observed(self.log.proofs, self.log.summary)
        reported = len(self.log.proofs) >= self.local_ranks and (not first_node or len(self.log.summary) == 4)
        if not (reported or self.last is not None or (at_end and self.log.training_started)):
            return
        if first_node:
            try:
                self.folder.update_record(observed=observed.as_json())
            except OSError:
                return  # a full disk: without the record there is no proof, so the next round tries again
        self.folder.append_event("observed", **observed.as_json())
        found = differences(self.expected, observed, self.local_ranks, is_first_node=first_node)
        if found:
            self._fail("not-as-preset", "this run is not what its preset says: " + "; ".join(found))
        else:
            self.proven = True

    def _fail(self, finding: str, message: str) -> None:
        self.fault = message
        self.folder.append_event("finding", id=finding, severity="error", message=message)

    def _note_checkpoints(self) -> None:
        if self.folder.node_rank:
            return
        complete = {
            step for step, whole in complete_checkpoints(self.folder.output, self._checkpoints).items() if whole
        }
        for step in sorted(complete - self._checkpoints):
            self.folder.append_event("checkpoint", step=step)
        self._checkpoints |= complete

    def _answer_stop_request(self) -> None:
        request = files.read_json_object(self.folder.stop_request)
        if request is None and not self._signalled:
            return
        now = bool((request or {}).get("now"))
        if self.stop_deadline is None and not now and self.log.proofs:  # they train, so they answer SIGTERM
            grace = max(_MIN_STOP_GRACE_S, 3 * statistics.median(self._step_times or [0.0]) + 120)
            self.stop_deadline = time.monotonic() + grace
            self.folder.append_event("state", state="stopping", message="asked every rank for a checkpoint")
            # Each rank gets it directly: torchrun kills its workers 30 s after its own SIGTERM, in mid-step.
            process.terminate(process.rank_processes(self.folder.marker))
        elif now or self.stop_deadline is None or time.monotonic() > self.stop_deadline:
            self.stop_deadline = self.stop_deadline or time.monotonic()
            process.kill(process.processes_of_run(self.folder.marker))

    def _on_signal(self) -> None:
        self._signalled = True

    def _finish(self, returncode: int | None, reason: str = "") -> None:
        if not self.folder.node_rank:
            try:
                restore_base_model_name(self.folder.output, self.folder.model, self.record["model"]["folder"])
            except OSError as error:  # how the run ended matters more
                message = f"the adapters still name the view as their base model: {error.strerror}"
                self.folder.append_event("finding", id="base-model-name", severity="warn", message=message)
        state, reason = ("failed", reason) if reason else self._verdict(returncode)
        step, total = self._progress()
        outcome: dict[str, Any] = {
            "state": state,
            "reason": reason,
            "returncode": returncode,
            "ended": time.time(),
            "step": step,
            "total_steps": total,
            "checkpoint": max(self._checkpoints, default=None),
        }
        self.folder.append_event("state", **outcome)
        files.write_json_atomically(self.folder.exit, outcome)

    def _verdict(self, returncode: int | None) -> tuple[str, str]:
        """How the run ended, from everything but the trainer's own word: a stopped run ends with 0 as well."""
        step, total = self._progress()
        if self.fault:
            return "failed", self.fault
        # Only node 0 sees the trainer's state; elsewhere a trainer that ended well unasked has done its part.
        whole = self.stop_deadline is None if self.folder.node_rank else (total and step == total)
        if returncode == 0 and whole and self.proven:
            return "finished", f"all {total} steps" if total else "node done"
        if self.stop_deadline is not None:
            kept = max(self._checkpoints, default=None)
            what = f"checkpoint-{kept} is kept" if kept is not None else "no checkpoint was made yet"
            return "stopped", f"stopped on request at step {step}; {what}"
        cause = error_in_log(self.folder.train_log)
        if returncode == 0:
            return (
                "failed",
                cause or f"the trainer ended at step {step} of {total or 'unknown'} without an error",
            )
        how = f"exit code {returncode}" if (returncode or 0) > 0 else process.signal_name(returncode or 0)
        return "failed", f"{cause or 'the trainer died'} ({how})"

    def _progress(self) -> tuple[int, int]:
        """Step and total, from the trainer's state when it wrote one, else from the last metrics."""
        state = files.read_json_object(self.folder.trainer_state) or {}
        logged = (self.last.step, self.last.total_steps) if self.last else (0, self.log.summary.get("total_steps", 0))
        try:
            return int(state["global_step"]), int(state["max_steps"])
        except (KeyError, TypeError, ValueError):
            return logged


def main(argv: list[str]) -> None:
    """Supervise the run in argv[0] as node argv[1] (0 when left out)."""
    Supervisor(RunFolder(Path(argv[0]), int(argv[1]) if len(argv) > 1 else 0)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
