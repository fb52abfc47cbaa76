"""Starting a trainer from the right place, or adopting the one that still runs."""

import json
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

from iisft import files, process
from iisft.child.constants_iisft import PROOF_VARIABLE, STOP_VARIABLE
from iisft.errors import Finding, RunStateError
from iisft.llamafactory.interpreter import training_interpreter
from iisft.llamafactory.logs import Begin, TrainerLog
from iisft.process import Adopted, Child
from iisft.runs.record import checkpoints, given_cards
from iisft.runs.record.checkpoints import Saved
from iisft.runs.record.events import Events, Recorder
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord

_FROM_START = "from-start"


@dataclass(frozen=True, slots=True)
class Start:
    """A running trainer. `from_step` is the checkpoint it began with, 0 without one."""

    trainer: Child | Adopted
    begin: Begin
    proof_word: str
    from_step: int

    @property
    def adopted(self) -> bool:
        return isinstance(self.trainer, Adopted)


def adopt(folder: RunFolder, events: Events) -> Start | None:
    """Take over the trainer of a supervisor that died; None when there is no such trainer."""
    processes = folder.read_processes()
    identity = folder.live_trainer()
    if identity is None:
        return None
    begin = _begin_of(processes)
    word = process.environment_of(identity.pid).get(PROOF_VARIABLE, "")
    start = Start(Adopted(identity), begin, word, int(processes.get("from_step", 0)))
    _record(folder, start)
    events.append(
        "state", state="running", message="a new supervisor took over the running trainer"
    )
    return start


def whole_checkpoint(folder: RunFolder, record: RunRecord, *, thorough: bool) -> Saved | None:
    """Where the trainer goes on; None when the run has come to no checkpoint yet, so that nothing
    is lost again.

    Raises:
        RunStateError: there were whole checkpoints and none is left, or they are of a kind that
        iisft can't check.
    """
    if record.setting("sharding") == "fsdp" and folder.output.exists():
        text = (
            "fsdp's checkpoints are of a kind that iisft can't check: none of them was ever resumed"
        )
        raise RunStateError(
            "resume-unverified",
            text,
            where=str(folder.output),
            fix=f"use {folder.train_yaml} yourself",
        )
    saved = checkpoints.newest_complete(folder.output, record.world_size or 1, thorough=thorough)
    if saved is None and _had_checkpoint(folder):
        raise RunStateError(
            "no-whole-checkpoint",
            "every checkpoint that was whole once is torn or gone; iisft does not begin again by "
            "itself",
            where=str(folder.output),
            fix=f"iisft resume {folder.id} --from-start",
        )
    return saved


def allow_from_start(folder: RunFolder) -> None:
    """From here on the checkpoints that the run once had count no more."""
    folder.append_event("state", state=_FROM_START)


def _had_checkpoint(folder: RunFolder) -> bool:
    had = False
    for event in folder.read_events():
        had = event.get("state") != _FROM_START and (had or event["kind"] == "checkpoint")
    return had


def start(folder: RunFolder, record: RunRecord, events: Events) -> Start:
    """Start the trainer from the last complete checkpoint, from the beginning when there is none.

    Raises:
        OSError: the folder can't be written, or the trainer can't be started.
        RunStateError: as whole_checkpoint.
    """
    process.kill_run(folder.marker)  # ranks that outlived an earlier trainer
    saved = whole_checkpoint(folder, record, thorough=True)
    from_step = saved.step if saved else 0
    _record_unseen_steps(folder, events, from_step)
    # never the record's command: a run's folder is data
    argv = [str(training_interpreter().parent / "llamafactory-cli"), "train"]
    argv.append(folder.train_yaml.name)
    if not folder.node_rank:
        for name in checkpoints.put_torn_aside(folder.output, from_step):
            message = (
                f"{name} was not complete, so it was put aside; delete it when you need the room"
            )
            events.finding(Finding("torn-checkpoint", message, severity="warn"))
        folder.trainer_state.unlink(missing_ok=True)  # it tells how an earlier life ended
        if saved is None:
            # as the trainer does when it starts over, before it is followed
            folder.trainer_log.unlink(missing_ok=True)
    if folder.output.exists():
        argv[-1] = _resume_yaml(folder, saved)
    begin = Begin.here(folder.train_log, folder.trainer_log)
    word = secrets.token_hex(8)
    # The environment comes by inheritance, never from run.json: secrets stand in no file.
    env = dict(os.environ) | {
        process.RUN_MARKER: folder.marker,
        # its working directory is the run's folder: no `python -m` of it imports from there
        "PYTHONSAFEPATH": "1",
        PROOF_VARIABLE: word,
        STOP_VARIABLE: str(folder.stop_request),
    }
    env.pop(process.SUPERVISOR_MARKER, None)
    if cards := given_cards.read(folder):
        env = cards.applied(env)
    started = Start(
        Child(argv, cwd=folder.path, env=env, output=folder.train_log), begin, word, from_step
    )
    _record(folder, started)
    events.append("state", state="running", from_step=from_step)
    return started


def _record_unseen_steps(folder: RunFolder, events: Events, up_to: int) -> None:
    """What a trainer did after its supervisor had died, as far as it stands in the checkpoint:
    nobody does it again.
    """
    processes = folder.read_processes()
    if processes:
        word = str(processes.get("proof_word", ""))
        log = TrainerLog.follow(folder.train_log, folder.trainer_log, _begin_of(processes), word)
        unseen = [metrics for metrics in log.read(at_end=True) if metrics.step <= up_to]
        Recorder(events, adopted=True).take(unseen)


def _begin_of(processes: dict[str, Any]) -> Begin:
    return Begin(int(processes.get("log_offset", 0)), int(processes.get("metrics_offset", 0)))


def _resume_yaml(folder: RunFolder, saved: Saved | None) -> str:
    """The checkpoint is always named: LLaMA-Factory itself would take the highest number, torn or
    not.
    """
    own = ("overwrite_output_dir:", "resume_from_checkpoint:")
    lines = [
        line for line in files.read_text(folder.train_yaml).splitlines() if not line.startswith(own)
    ]
    if saved is None:
        # an earlier life reached no checkpoint: start over
        lines.append("overwrite_output_dir: true")
    else:
        # JSON is YAML
        lines.append(f"resume_from_checkpoint: {json.dumps(str(saved.folder), ensure_ascii=False)}")
    files.write_text_atomically(folder.resume_yaml, "\n".join(lines) + "\n")
    return folder.resume_yaml.name


def _record(folder: RunFolder, start: Start) -> None:
    supervisor, trainer = process.identity_of(os.getpid()), process.identity_of(start.trainer.pid)
    files.write_json_atomically(
        folder.processes,
        {
            "run": folder.marker,
            "supervisor": supervisor and supervisor.as_json(),
            "trainer": trainer and trainer.as_json(),
            "log_offset": start.begin.log_offset,
            "metrics_offset": start.begin.metrics_offset,
            "from_step": start.from_step,
            # it need not be secret: whatever a row of the data holds was written before the run
            "proof_word": start.proof_word,
            "started": time.time(),
        },
    )
