"""One life of a trainer: started, or adopted when its supervisor died; watched until it ends."""

import contextlib
import time
from typing import Literal

from iisft import files, process
from iisft.errors import Finding
from iisft.llamafactory.logs import TrainerLog, last_lines
from iisft.runs.record import checkpoints, given_cards
from iisft.runs.record.events import Events, Recorder
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.proof import Observed, differences
from iisft.runs.record.run_record import RunRecord
from iisft.runs.supervise import loading, watchdogs
from iisft.runs.supervise.ending import Crash, Ending
from iisft.runs.supervise.nodes import Nodes
from iisft.runs.supervise.trainer import Start
from iisft.runs.supervise.watchdogs import (
    DiskWatch,
    HangWatch,
    NanWatch,
    PowerWatch,
    ThermalWatch,
)
from iisft.secrets import Mask

_POLL_S = 1.0
_NAN_FIX = (
    "lower train.learning_rate, or another precision or attention (fp16 with eager "
    "overflows on Qwen2)"
)


class Attempt:
    """A trainer and what is known about its life."""

    def __init__(
        self, folder: RunFolder, record: RunRecord, start: Start, events: Events, nodes: Nodes
    ) -> None:
        self.folder = folder
        self._nodes = nodes
        self.events = events
        self.record = record
        self.start = start
        self.expected = loading.expected_of(folder, record, start.from_step)
        self.log = TrainerLog.follow(
            folder.train_log, folder.trainer_log, start.begin, start.proof_word
        )
        self._mask = Mask(folder.train_log)
        self.recorder = Recorder(events, adopted=start.adopted)
        self.proven = False
        self.fault: Ending | None = None
        self.stop_deadline: float | None = None
        self.told_to_end = False
        self._killed = False
        self.phase = "loading"
        watch = record.watch
        self._nan = NanWatch(watch.nan, with_scaler=self.expected.autocast == "float16")
        logging_steps = float(record.train_yaml.get("logging_steps", 1))
        self._hang = HangWatch(watch.hang_min_s, watch.hang_factor, logging_steps)
        self._disk = DiskWatch(folder.path)
        self._thermal = ThermalWatch()
        self._power = PowerWatch(given_cards.alone_on(folder, record.gpus))
        self.kept: int | None = start.from_step or None

    @property
    def step(self) -> int:
        return self.recorder.last.step if self.recorder.last else self.start.from_step

    @property
    def _repeated_rows(self) -> int:
        return loading.repeated_rows(self.record, self.log.summary.get("rows"))

    @property
    def _world_size(self) -> int:
        return self.expected.world_size

    def run(self) -> Ending:
        """Watch the trainer to its end; no process of it is left afterwards."""
        while not self.start.trainer.wait(_POLL_S):
            self._look()
        self._look(at_end=True)
        # ranks that outlived torchrun would keep their GPU
        left = process.kill_run(self.folder.marker)
        self._mask.apply()
        if left:
            self.events.finding(Finding("unkillable", f"processes {left} can't be killed"))
        return self._ending(self.start.trainer.returncode())

    def _look(self, *, at_end: bool = False) -> None:
        """One round: take in the log, prove, watch, answer a stop request."""
        self.events.flush()
        arrived = self.recorder.take(self.log.read(at_end=at_end))
        self._mask.apply()
        saving = not self.folder.node_rank and self._note_checkpoints()
        for metrics in arrived:
            if (sentence := self._nan.see(metrics)) and self.fault is None:
                self._fail("nan", sentence, fix=f"{self._kept_text()} is kept; {_NAN_FIX}")
        self._note_warnings(at_end=at_end)
        if not self.proven and self.fault is None:
            self._prove(at_end=at_end)
        if self.fault is None and not at_end and (lost := self._nodes.lost()) is not None:
            self._fail(lost.id, lost.message, fix=lost.fix, passing=True)
        if self.fault is not None:
            process.kill(process.processes_of_run(self.folder.marker))
            return
        waiting = "saving" if saving else "evaluating" if self.log.evaluating else "training"
        self.phase = waiting if self.recorder.last else "loading"
        if not at_end:
            self._watch(moved=bool(arrived) or (self.phase == "loading" and self.log.grew))
        if (taken := self._power.look(at_end=at_end)) is not None:
            self.events.append("power", **taken)
        self._answer_stop_request(at_end=at_end)

    def _watch(self, *, moved: bool) -> None:
        median, total = self.recorder.median_step_s, self.log.summary.get("total_steps", 0)
        if sentence := self._hang.look(
            self.phase, moved=moved, median_step_s=median, total_steps=total
        ):
            seen = watchdogs.gpu_use()
            stacks = watchdogs.collect_stacks(self.folder)
            fix = watchdogs.likely_causes(self.record)
            self._fail(
                "hang", f"{sentence} at step {self.step}{seen}; {stacks}", fix=fix, passing=True
            )
        for finding in (self._disk.look(), self._thermal.look()):
            if finding is not None:
                self.events.finding(finding)

    def _prove(self, *, at_end: bool) -> None:
        """Compare what was reported as soon as it was.

        What is missing counts only where it should be there: after a step, or when the trainer
        ended well. One that died before had no time to report: its crash is what there is to say.
        """
        if self._nothing_left_to_train():
            self.proven = True
            return
        first_node = self.folder.node_rank == 0
        reported = len(self.log.proofs) >= self.record.ranks and (
            not first_node or len(self.log.summary) == 4
        )
        # an evaluation before the first step is logged as well
        trained = self.step > self.start.from_step
        complete = (
            reported or trained or (at_end and self.log.training_started and self._ended_well())
        )
        found = differences(
            self.expected,
            Observed(self.log.proofs, self.log.summary),
            self.record.ranks,
            is_first_node=first_node,
            complete=complete,
        )
        if not complete and not found:
            return
        strange, tokens = loading.first_tokens(self.folder, self.record, self.log.proofs)
        found += strange
        observed = Observed(self.log.proofs, self.log.summary, tokens, self._repeated_rows)
        if first_node:
            try:
                self.folder.update_record(observed=observed.as_json())
            except OSError:
                # a full disk: without the record there is no proof, so the next round tries again
                return
        self.events.append("observed", **observed.as_json())
        if found:
            self._fail("not-as-preset", "this run is not what its preset says: " + "; ".join(found))
        else:
            self.proven = True

    def _note_warnings(self, *, at_end: bool) -> None:
        """What the libraries said until the first step, once it was made."""
        if self.log.warnings and (at_end or not self.log.listening):
            said, self.log.warnings = self.log.warnings, []
            for finding in loading.warned(self.folder, self.record, said):
                self.events.finding(finding)

    def _ended_well(self) -> bool:
        """Ended by itself and without an error; of an adopted trainer, its last file tells."""
        returncode = self.start.trainer.returncode()
        return returncode == 0 or (returncode is None and self.folder.trainer_state.exists())

    def _nothing_left_to_train(self) -> bool:
        """The checkpoint was of the last step: no forward comes that could prove anything.

        Earlier lives did.
        """
        total = self.log.summary.get("total_steps")
        return total is not None and self.start.from_step >= total and bool(self.record.observed)

    def _fail(self, finding: str, message: str, *, fix: str = "", passing: bool = False) -> None:
        step, total = self.progress()
        self.fault = Ending("failed", message, step, total, fix=fix, passing=passing, cause=finding)
        self.events.finding(Finding(finding, message, fix=fix))

    def _note_checkpoints(self) -> bool:
        """Seal what has become whole; whether one is being written now."""
        writing = False
        for saved in checkpoints.checkpoints(self.folder.output, self._world_size):
            if saved.step <= self.start.from_step:
                continue
            if not saved.complete:
                writing = writing or (
                    not saved.folder.name.startswith("torn-") and saved.step >= self.step
                )
            elif checkpoints.is_sealed(saved) or self._seal(saved):
                self.kept = saved.step
                self._disk.needed = checkpoints.sealed_size(saved)
        return writing

    def _seal(self, saved: checkpoints.Saved) -> bool:
        try:
            checkpoints.seal(saved, self._world_size)
        except OSError:
            return False  # rotated away meanwhile, or a full disk: the next round looks again
        self.events.append("checkpoint", step=saved.step)
        return True

    def _answer_stop_request(self, *, at_end: bool) -> None:
        request = files.read_json_object(self.folder.stop_request)
        if request is None and not self.told_to_end:
            return
        now = bool((request or {}).get("now"))
        # they train, so they look for the request
        if self.stop_deadline is None and not now and self.log.proofs:
            if request is None:
                with contextlib.suppress(OSError):  # a full disk: the deadline will end it
                    files.write_json_atomically(
                        self.folder.stop_request, {"now": False, "time": time.time()}
                    )
            self.stop_deadline = time.monotonic() + watchdogs.stop_grace_s(
                self.recorder.median_step_s, self._hang.min_s
            )
            self.events.append(
                "state", state="stopping", message="asked for a checkpoint after this step"
            )
        elif now or self.stop_deadline is None or time.monotonic() > self.stop_deadline:
            self.stop_deadline = self.stop_deadline or time.monotonic()
            if not at_end:
                self._killed = True
                process.kill(process.processes_of_run(self.folder.marker))

    def _ending(self, returncode: int | None) -> Ending:
        """How it ended, from everything but the trainer's own word: a stopped run ends with 0 as
        well.
        """
        step, total = self.progress()
        if self.fault is not None:
            return self.fault
        if self._did_all(returncode, step, total):
            twice = self._repeated_rows
            said = f"all {total} steps" if total else "node done"
            said += f"; {twice} of {self.log.summary['rows']} rows came twice" if twice else ""
            return Ending("finished", said, step, total, returncode)
        if self.stop_deadline is not None and not self._failed_meanwhile():
            asked = "told to end, as at a shutdown," if self.told_to_end else "stopped on request"
            state: Literal["lost", "stopped"] = "lost" if self.told_to_end else "stopped"
            return Ending(
                state,
                f"{asked} at step {step}; {self._kept_text()} is kept",
                step,
                total,
                returncode,
            )
        return self._crash(returncode, step, total)

    def _failed_meanwhile(self) -> bool:
        """Asked to stop, it died by itself of what comes again: a resume would only meet that."""
        if self._killed or self._ended_well():
            return False
        from iisft.llamafactory import failures

        known = failures.diagnose(last_lines(self.folder.train_log, self.start.begin.log_offset))
        return known is not None and not known.passing

    def _crash(self, returncode: int | None, step: int, total: int) -> Ending:
        training = self.phase == "loading" and self.log.training_started
        ending, finding = Crash(
            lines=last_lines(self.folder.train_log, self.start.begin.log_offset),
            returncode=returncode,
            step=step,
            total_steps=total,
            phase="training" if training else self.phase,
            went_on=self.step > self.start.from_step,
            forecast=self.record.forecast,
        ).ending()
        if finding is not None:
            self.events.finding(finding)
        return ending

    def _did_all(self, returncode: int | None, step: int, total: int) -> bool:
        if not self.proven or returncode not in (0, None):
            return False
        # only node 0 sees the trainer's state: a trainer that ended unasked did its part
        if self.folder.node_rank:
            return returncode == 0 and self.stop_deadline is None
        # The trainer writes this file after the adapter; an earlier one was removed before this
        # start.
        return bool(total) and step == total and self.folder.trainer_state.exists()

    def _kept_text(self) -> str:
        return f"checkpoint-{self.kept}" if self.kept is not None else "no checkpoint"

    def progress(self) -> tuple[int, int]:
        """Step and total, from the trainer's state when it wrote one, else from the
        last metrics.
        """
        state = files.read_json_object(self.folder.trainer_state) or {}
        try:
            return int(state["global_step"]), int(state["max_steps"])
        except (KeyError, TypeError, ValueError, OverflowError):
            last = self.recorder.last
            total = last.total_steps if last else self.log.summary.get("total_steps", 0)
            return self.step, total
