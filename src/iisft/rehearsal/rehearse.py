"""A rehearsal: the short run, killed once after its checkpoint, a prediction, and the verdict."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from iisft import files, notices, process
from iisft.child.constants_iisft import REHEARSED_FILE
from iisft.errors import CheckFailed, ExitCode, Finding, IisftError, RunStateError
from iisft.evaluation.reading import PredictionFile
from iisft.inference import base_model
from iisft.inference import predict as predicting
from iisft.rehearsal import verdict as verdicts
from iisft.rehearsal.figures import KILLED, Ended
from iisft.rehearsal.short import CHECKPOINT, KILLED_AFTER, STEPS, short_of
from iisft.rehearsal.verdict import VERDICT, Verdict
from iisft.runs.plan import create
from iisft.runs.plan.places import unwritable
from iisft.runs.plan.plan import Plan
from iisft.runs.record import measurements, selection
from iisft.runs.record.checkpoints import newest_complete
from iisft.runs.record.folder import RunFolder
from iisft.runs.supervise import control
from iisft.workspace import Workspace

Say = Callable[[str], None]

_LOCK = ".lock"
_ANSWER_TOKENS = 16
_KEPT = frozenset({VERDICT, "run.json", "events.jsonl", "logs"})  # small, and what explains it


def rehearse(plan: Plan, workspace: Workspace, say: Say) -> Verdict:
    """Rehearse a sound plan.

    What it keeps: the verdict with the run's record and logs below rehearsals/, and the measurement
    for the next plan.

    Raises:
        RunStateError: another rehearsal is running in this workspace.
        EnvironmentFault: the workspace can't be written.
        IisftError: the run could not be started at all.
    """
    with _only_one(workspace):
        short = _create(plan, workspace)
        folder = short.folder
        try:
            say(f"{STEPS} steps with the longest rows first, as {folder.path}; Ctrl-C ends it")
            ended = _run(short, say)
            if ended.state == "finished":
                say("asking the adapter for one answer")
                ended.findings += _answer(folder, workspace, short)
            for path in folder.path.iterdir():
                if path.name not in _KEPT:
                    _delete(path)
            found = verdicts.judge(plan, short, ended)
        except BaseException:
            _abandon(folder)
            raise
        files.write_json_atomically(folder.path / VERDICT, found.document)
        (workspace.rehearsals / measurements.FILE).unlink(missing_ok=True)  # the supervisor's
        if ended.state == "finished":
            measurements.keep(workspace.runs, folder, folder.whole_record(), found.measured)
    _tell(plan, found)
    return found


@contextlib.contextmanager
def _only_one(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace's rehearsals for the block; what a killed one left is ended and removed.

    Raises:
        RunStateError: another one is running.
        EnvironmentFault: the folder can't be written.
    """
    place = workspace.rehearsals
    with contextlib.ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            workspace.runs.mkdir(exist_ok=True)
            stack.enter_context(files.exclusive_lock(place / _LOCK))
            for path in place.iterdir():
                if path.is_dir() and not (path / VERDICT).exists():
                    _abandon(RunFolder(path))
        except BlockingIOError:
            raise RunStateError(
                "rehearsing-already",
                "another rehearsal is running in this workspace",
                where=str(place),
                fix="wait for it, or end it with Ctrl-C where it runs",
            ) from None
        except OSError as error:
            raise unwritable(place, error) from error
        yield


def _create(plan: Plan, workspace: Workspace) -> Plan:
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=workspace.rehearsals) as rows:
        try:
            short = short_of(plan, workspace.rehearsals, Path(rows))
        except OSError as error:
            raise unwritable(workspace.rehearsals, error) from error
        create.create(short)  # takes the rows by hard links
    return short


def _abandon(folder: RunFolder) -> None:
    """End what runs there, and leave nothing."""
    with contextlib.suppress(IisftError):
        control.request_stop(folder, now=True)
        control.wait_for_kill(folder)
    process.kill_run(folder.marker)
    _delete(folder.path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass
class _Killer:
    """Kills the trainer while it waits for that, once its checkpoint is whole."""

    folder: RunFolder
    ranks: int
    say: Say
    done: bool = False
    findings: list[Finding] = field(default_factory=list)

    def look(self) -> None:
        if self.done or not (self.folder.output / REHEARSED_FILE).exists():
            return
        events = list(self.folder.read_events())
        if not any(one.get("step") == KILLED_AFTER and "loss" in one for one in events):
            return
        saved = newest_complete(self.folder.output, self.ranks)
        if saved is None or saved.step != CHECKPOINT:
            self.findings.append(verdicts.no_checkpoint(self.folder))
            self.done = True
            control.request_stop(self.folder, now=True)
        elif any(one["kind"] == "checkpoint" for one in events):  # its bytes are on the disk
            trainer = self.folder.live_trainer()
            if trainer is not None:
                self.say(f"killing the trainer after step {KILLED_AFTER}; it must come back")
                self.folder.append_event(KILLED, step=KILLED_AFTER, pid=trainer.pid)
                process.kill([trainer.pid])
                self.done = True


def _run(short: Plan, say: Say) -> Ended:
    folder = short.folder
    killer = _Killer(folder, short.placement.world_size, say)
    create.start(short)
    status = control.wait(folder, killer.look)
    saved = folder.output / f"checkpoint-{CHECKPOINT}"
    return Ended(
        state=status.state,
        reason=status.reason,
        fix=status.fix,
        events=list(folder.read_events()),
        observed=dict(status.observed or {}),
        seconds=files.read_json_object(folder.output / REHEARSED_FILE) or {},
        checkpoint_bytes=_size(saved),
        findings=killer.findings,
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _answer(folder: RunFolder, workspace: Workspace, short: Plan) -> Iterator[Finding]:
    """What keeps one answer of the adapter from being written and read back."""
    data = short.preset.data
    try:
        record = folder.whole_record()
        request = predicting.request_for(
            record,
            workspace,
            data=",".join(data.evaluated or data.names),
            limit=1,
            batch_rows=1,
            max_new_tokens=_ANSWER_TOKENS,
            restart=True,
        )
        source = base_model.find(folder, workspace, model=None, cpu=False)
        chosen = selection.choose(folder, None)
        [outcome] = predicting.predict(source, chosen, request, lambda _: None, lambda _: None)
        rows = list(PredictionFile(outcome.file))
        if outcome.errors or [row.row for row in rows] != [1]:
            said = next((row.error for row in rows if row.error), "its row is not there")
            yield Finding(
                "prediction-unreadable",
                f"the answer that was written can't be read back: {said}",
                where=outcome.file.name,
                fix="iisft env-check --deep; if it finds nothing, please report it",
                exit_code=ExitCode.FAILED,
            )
    except CheckFailed as error:
        yield from error.errors
    except IisftError as error:
        yield error.finding


def _tell(plan: Plan, found: Verdict) -> None:
    """One notice of the end, where the preset has somebody to tell."""
    to, _ = notices.addresses(plan.preset.notify, os.environ)
    if to:
        well = "went well" if found.ok else "found what would fail"
        wrong = ", ".join(one.id for one in found.findings if one.severity == "error")
        text = f"{found.sentence}. {f'Found: {wrong}' if wrong else 'The run may start'}."
        title = f"iisft: the rehearsal of {plan.document.name} {well} ({found.document['machine']})"
        found.findings += notices.problems(notices.send(title, text, to))
