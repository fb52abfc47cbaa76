"""Bringing a run back: what it has become unlike since it began, and a new supervisor for it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from iisft import files, process
from iisft.errors import EnvironmentFault, Finding, RunStateError
from iisft.llamafactory.environment import inherited, of_record
from iisft.llamafactory.interpreter import training_interpreter
from iisft.machine.facts.gpus import MASKS
from iisft.models.view.build import renew_code
from iisft.quoting import shell_word
from iisft.runs.record import given_cards
from iisft.runs.record.checkpoints import newest_complete
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.given_cards import GivenCards
from iisft.runs.record.run_record import RunRecord
from iisft.runs.record.state import QUEUED, RunStatus, brief_of, is_live, status_of
from iisft.runs.supervise import drift, nodes, trainer
from iisft.runs.supervise.spawn import start_supervisor
from iisft.secrets import HIDDEN

_DYING_S = 10.0


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a resume did. `step` is the checkpoint that it goes on from, 0 for the beginning;
    `note`: why what follows need not be what an unbroken run would have done, to the last bit.
    """

    folder: RunFolder
    attached: bool
    step: int
    note: str = ""


def begin(folder: RunFolder, cards: GivenCards | None) -> None:
    """Start a run that waited in the queue, on the GPUs that it is given.

    Raises:
        RunStateError: it waits no more, or something has changed since it was queued.
        EnvironmentFault, RunFailed: as resume.
    """
    with only_one(folder):
        if brief_of(folder).state != QUEUED:
            raise _running(folder)
        record = folder.whole_record()
        env = environment_of(folder, record)
        _accept(drift.differences(folder, record), folder, accept_drift=False)
        if cards is not None:
            given_cards.write(folder, cards)
        start_supervisor(folder, env)


def resume(
    folder: RunFolder,
    *,
    accept_drift: bool = False,
    from_start: bool = False,
    ordered: bool = False,
    cards: GivenCards | None = None,
) -> Resumed:
    """Go on from the last complete checkpoint; a trainer that still runs gets a new supervisor
    instead.

    Args:
        folder: the run.
        accept_drift: go on though something has changed.
        from_start: start over when no complete checkpoint is left.
        ordered: node 0 was resumed before, and this node follows.
        cards: GPUs that the queue gives it. Left out, it gets those that it had, unless this shell
            chooses some.

    Raises:
        RunStateError: it is running, finished or being resumed by someone else; it drifted (with
            the list of what differs); its folder was moved; or it has lost the checkpoints that it
            had.
        EnvironmentFault: its interpreter or a secret of its environment is missing.
        RunFailed: the supervisor died at once.
    """
    status = status_of(folder)
    if status.live and not status.supervised:
        if attach(folder):
            return Resumed(folder, attached=True, step=int(status.metrics.get("step", 0)))
        status = status_of(folder)
    _require_ended(status)
    with only_one(folder):
        if is_live(folder):  # another resume was faster
            raise _running(folder)
        record = folder.whole_record()
        env = environment_of(folder, record)
        _accept(drift.differences(folder, record), folder, accept_drift=accept_drift)
        if from_start:
            _begin_again(folder, record)
        trainer.whole_checkpoint(folder, record, thorough=False)
        _give(folder, cards)
        for name in (folder.exit,) if ordered else (folder.stop_request, folder.exit):
            name.unlink(missing_ok=True)
        if record.nodes > 1 and not folder.node_rank:
            nodes.give_order(folder, accept_drift=accept_drift, from_start=from_start)
        start_supervisor(folder, env)
    step = int(folder.read_processes().get("from_step", 0))
    if note := not_to_the_bit(record) if step else "":
        folder.append_event("finding", **Finding("resume-inexact", note, severity="info").as_json())
    return Resumed(folder, attached=False, step=step, note=note)


def not_to_the_bit(record: RunRecord) -> str:
    """On a CPU, and with rows in random order, a resumed run is the unbroken one bit for bit."""
    reasons = []
    if record.gpus and not record.train_yaml.get("full_determinism"):
        reasons.append(
            "a GPU may add in another order (llamafactory.full_determinism: true forbids that)"
        )
    order = record.train_yaml.get("train_sampling_strategy", "random")
    if order != "random":
        reasons.append(f"rows are ordered by {order}, and the order is made again")
    if not reasons:
        return ""
    return f"what follows need not be an unbroken run's to the last bit: {'; '.join(reasons)}"


def _running(folder: RunFolder) -> RunStateError:
    return RunStateError(
        "already-running", f"{folder.id} is running", fix=f"iisft watch {folder.id}"
    )


def _require_ended(status: RunStatus) -> None:
    folder = status.folder
    if status.state == QUEUED:
        text = f"{folder.id} has not begun: it waits in the queue"
        fix = f"iisft queue move {shell_word(folder.id)} 1"
        raise RunStateError("queued", text, where=str(folder.path), fix=fix)
    if status.live:
        raise RunStateError(
            "already-running",
            f"{folder.id} is {status.state}",
            where=str(folder.path),
            fix=f"iisft watch {folder.id}",
        )
    if status.state == "finished":
        text = f"{folder.id} is finished ({status.reason}): nothing to resume"
        fix = f"to go on with its adapter: {longer(folder)}train.epochs=N"
        raise RunStateError("nothing-to-resume", text, where=str(folder.path), fix=fix)


def longer(folder: RunFolder) -> str:
    """The beginning of the command that trains the same for another number of steps: with the
    adapter of a run that is finished, else from the beginning.
    """
    command = f"iisft train --preset {shell_word(str(folder.preset))} "
    record = folder.read_record()
    if record and not record.gpus and record.setting("hardware.vendor") != "cpu":
        command += f"--gpus {record.ranks} "  # it was tried on the CPU
    command += "--set "
    if status_of(folder).state == "finished":
        command += f"lora.start={shell_word(folder.id)} --set "
    return command


def _accept(found: list[str], folder: RunFolder, *, accept_drift: bool) -> None:
    """Drift is refused, or recorded."""
    if found and not accept_drift:
        text = f"{folder.id} is not what it was when it began: " + "; ".join(found)
        fix = f"undo it, or go on with it: iisft resume {folder.id} --accept-drift"
        raise RunStateError("drift", text, where=str(folder.path), fix=fix)
    if found:
        said = Finding("drift", "resumed with " + "; ".join(found), severity="warn")
        folder.append_event("finding", **said.as_json())
        renew_code(folder.model)


def _begin_again(folder: RunFolder, record: RunRecord) -> None:
    """Let the run begin from its first step, which only a run without a whole checkpoint may."""
    if saved := newest_complete(folder.output, record.world_size or 1):
        text = (
            f"{folder.id} has a whole checkpoint-{saved.step}: it goes on from there, or "
            "make a new run"
        )
        raise RunStateError("checkpoint-left", text, fix=f"iisft resume {folder.id}")
    trainer.allow_from_start(folder)


def _give(folder: RunFolder, cards: GivenCards | None) -> None:
    if cards is not None:
        given_cards.write(folder, cards)
    elif not MASKS.isdisjoint(os.environ):
        folder.cards.unlink(missing_ok=True)


def attach(folder: RunFolder) -> bool:
    """Give a running trainer whose supervisor died a new one; False when that trainer has just
    ended.

    Raises:
        RunStateError: someone else is doing that.
        RunFailed: the supervisor died at once.
    """
    with only_one(folder):
        trainer, supervisor = folder.live_trainer(), folder.live_supervisor()
        if trainer is None or supervisor is not None or folder.exit.exists():
            return is_live(folder)
        # A later restart must meet what the trainer met, secrets included; only its own environment
        # has them all.
        env = process.environment_of(trainer.pid)
        # killed this moment: it has no memory any more, but is not gone yet
        if process.RUN_MARKER not in env:
            process.Adopted(trainer).wait(_DYING_S)
            return False
        del env[process.RUN_MARKER]  # by which a trainer's processes are known, and killed
        start_supervisor(folder, env)
        return True


@contextlib.contextmanager
def only_one(folder: RunFolder) -> Iterator[None]:
    """Keep every other command from bringing back or removing this run meanwhile.

    Raises:
        RunStateError: another one is at it.
        EnvironmentFault: the folder can't be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.exclusive_lock(folder.resume_lock))
        except BlockingIOError:
            raise _already_resuming(folder) from None
        except OSError as error:
            text = f"the run folder can't be written: {error.strerror}"
            raise EnvironmentFault("output-unwritable", text, where=str(folder.path)) from error
        yield


def _already_resuming(folder: RunFolder) -> RunStateError:
    text = f"{folder.id} is being resumed or removed by another command"
    return RunStateError(
        "already-resuming", text, where=str(folder.path), fix=f"iisft watch {folder.id}"
    )


def environment_of(folder: RunFolder, record: RunRecord) -> dict[str, str]:
    """What the run was started with; values that are secret stand in no file, so they come from the
    shell.

    Raises:
        EnvironmentFault: its interpreter or a secret is missing.
    """
    python = training_interpreter()
    if not python.exists():
        raise EnvironmentFault(
            "interpreter-missing",
            "the training interpreter is not there",
            where=str(python),
            fix="set IISFT_PYTHON to the Python that trains, or unset it",
        )
    recorded, _ = of_record(record.env, folder.path)
    own = {name: value for name, value in recorded.items() if HIDDEN not in value}
    missing = [name for name in recorded if name not in own and name not in os.environ]
    if missing:
        text = (
            f"{folder.id} was started with {', '.join(missing)}, which is secret and stands in "
            "no file"
        )
        raise EnvironmentFault(
            "secret-missing", text, where=str(folder.record), fix=f"export {missing[0]}=..."
        )
    if folder.node_rank:
        own |= {"NODE_RANK": str(folder.node_rank)} | folder.caches
    own = folder.caches | own  # a run of an earlier iisft has not all of them
    own["PATH"] = f"{python.parent}{os.pathsep}{own.get('PATH', os.environ.get('PATH', ''))}"
    shell, _ = of_record(record.shell, folder.path)
    shell = {name: value for name, value in shell.items() if HIDDEN not in value}
    return shell | inherited(os.environ) | own
