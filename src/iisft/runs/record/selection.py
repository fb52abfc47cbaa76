"""Which adapter of a run is meant: the final one, a checkpoint, the best one, or none."""

from dataclasses import dataclass
from pathlib import Path

from iisft import files
from iisft.errors import RunStateError, UsageError
from iisft.models.folder import adapter
from iisft.models.folder.safetensors import read_header
from iisft.quoting import is_count
from iisft.runs.record.checkpoints import Saved, best_of, checkpoints
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import RunStatus, status_of

FINAL, BASE, BEST, ALL = "final", "base", "best", "all"
ADAPTER = adapter.WEIGHTS


@dataclass(frozen=True, slots=True)
class Chosen:
    """An adapter of a run.

    `which`: "final", a checkpoint's step, or "base" (no adapter). `reason` is for people.
    """

    which: str
    step: int | None
    adapter: Path | None
    reason: str = ""


def choose(folder: RunFolder, wanted: str | None) -> list[Chosen]:
    """What `--checkpoint` means for this run: one adapter, or with `all` every different one.

    Raises:
        UsageError: it is neither a step nor a known word.
        RunStateError: the run has no such checkpoint, or it is torn.
    """
    if wanted == ALL:
        return _all(folder)
    return [choose_one(folder, wanted)]


def choose_one(folder: RunFolder, wanted: str | None) -> Chosen:
    """The same for commands that take one adapter.

    Without a word: the final adapter of a finished run, else the newest complete checkpoint.
    """
    if wanted == BASE:
        return Chosen(BASE, None, None)
    if wanted == BEST:
        return _best(folder)
    if wanted == ALL:
        raise UsageError("checkpoint-all", "--checkpoint all is only for predict")
    if wanted is not None and wanted != FINAL:
        if not is_count(wanted):
            words = f"{FINAL}, {BEST}, {BASE} or {ALL}"
            raise UsageError("checkpoint-word", f"--checkpoint is a step, {words}, not {wanted!r}")
        return _numbered(folder, int(wanted))
    status = status_of(folder)
    if status.state == "finished":
        return _final(folder, status)
    newest = _some(folder, status)[-1]
    if wanted == FINAL:
        way_on = f", or iisft resume {folder.id}" if status.can_go_on else ""
        raise RunStateError(
            "not-finished",
            f"{folder.id} is {status.state}: it has no final adapter yet",
            fix=f"--checkpoint {newest.step}{way_on}",
        )
    return _checkpoint(
        newest,
        f"{folder.id} is {status.state}: its newest complete checkpoint-{newest.step} is taken",
    )


def _final(folder: RunFolder, status: RunStatus) -> Chosen:
    _require_whole(folder.output / ADAPTER, folder)
    return Chosen(FINAL, status.metrics.get("step"), folder.output)


def _numbered(folder: RunFolder, step: int) -> Chosen:
    saved = [
        one for one in checkpoints(folder.output, status_of(folder).ranks or 1) if one.step == step
    ]
    if not saved:
        kept = [str(one.step) for one in _some(folder)]
        raise RunStateError(
            "no-such-checkpoint",
            f"{folder.id} has no checkpoint-{step}; kept: {', '.join(kept)}",
            where=str(folder.output),
            fix=f"--checkpoint {kept[-1]}",
        )
    _require_whole(saved[-1].folder / ADAPTER, folder)  # the optimizer's state doesn't matter here
    return _checkpoint(saved[-1])


def _some(folder: RunFolder, status: RunStatus | None = None) -> list[Saved]:
    """The complete checkpoints, one at least."""
    status = status or status_of(folder)
    if whole := _whole(folder, status):
        return whole
    raise RunStateError(
        "no-checkpoint",
        f"{folder.id} is {status.state} and has no complete checkpoint",
        where=str(folder.output),
        fix="--checkpoint final" if status.state == "finished" else f"iisft status {folder.id}",
    )


def _best(folder: RunFolder) -> Chosen:
    status = status_of(folder)
    losses = status.eval_losses
    best = best_of(_some(folder, status), losses)
    if best is None:
        known = (
            f"evaluated at {', '.join(map(str, losses))}"
            if losses
            else "no evaluation loss was recorded"
        )
        raise RunStateError(
            "no-best",
            f"no kept checkpoint of {folder.id} has an evaluation loss ({known})",
            fix=f"iisft predict {folder.id} --checkpoint all, then iisft compare {folder.id}; or "
            "train with data.eval and save.eval_every_steps",
        )
    loss = losses[best.step]
    reason = f"checkpoint-{best.step} has the lowest evaluation loss of those kept, {loss:.4f}"
    lowest = min(losses, key=lambda at: losses[at])
    if losses[lowest] < loss:
        reason += (
            f" (step {lowest} had {losses[lowest]:.4f}, but its checkpoint is gone; save.best "
            "keeps it)"
        )
    return _checkpoint(best, reason)


def _all(folder: RunFolder) -> list[Chosen]:
    """Every complete checkpoint in order, then the final adapter unless it equals the last."""
    status = status_of(folder)
    found = [_checkpoint(saved) for saved in _whole(folder, status)]
    if status.state == "finished":
        final = _final(folder, status)
        if not found or not _same_file(folder.output / ADAPTER, found[-1].adapter):
            found.append(final)
    return found or [_checkpoint(saved) for saved in _some(folder, status)]


def _whole(folder: RunFolder, status: RunStatus | None = None) -> list[Saved]:
    ranks = (status or status_of(folder)).ranks or 1
    return [saved for saved in checkpoints(folder.output, ranks) if saved.complete]


def _checkpoint(saved: Saved, reason: str = "") -> Chosen:
    return Chosen(str(saved.step), saved.step, saved.folder, reason)


def _require_whole(weights: Path, folder: RunFolder) -> None:
    try:
        read_header(weights)
    except (OSError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read: {error}"
        fix = f"another checkpoint: iisft status {folder.id}"
        raise RunStateError(
            "adapter-torn", f"the adapter {what}", where=str(weights), fix=fix
        ) from error


def _same_file(one: Path, folder: Path | None) -> bool:
    return folder is not None and files.sha256_of(one) == files.sha256_of(folder / ADAPTER)
