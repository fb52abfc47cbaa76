"""Which predictions are meant: a file, or those of a run and a checkpoint; and the training and
evaluation loss there, from the run's events.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import Finding, InputError, RunStateError
from iisft.quoting import is_count
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.selection import BASE, FINAL
from iisft.runs.record.state import find_run
from iisft.workspace import Workspace

_FILES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class Source:
    """A file of predictions, with the run and the checkpoint that made it, if known."""

    path: Path
    run: RunFolder | None = None
    checkpoint: str | None = None
    data: str | None = None

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.run.id}@{self.checkpoint}" if self.run else self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """What `predict` recorded beside the file; empty when that is missing or torn."""
        return files.read_json_object(self.path.with_suffix(".json")) or {}

    @property
    def findings(self) -> list[Finding]:
        """A warning where predicting has not finished."""
        if self.run is None or self.facts.get("ended", True) is not None:
            return []
        message = f"{self.name} has not predicted every row yet: the figures cover the rows so far"
        fix = f"iisft predict {self.run.id} --checkpoint {self.checkpoint} --data {self.data}"
        return [
            Finding("predict-unfinished", message, where=str(self.path), fix=fix, severity="warn")
        ]


def of_run(folder: RunFolder) -> list[Source]:
    """All predictions of a run, the base model's too, in the order of their steps."""
    found = []
    for path in folder.predictions.glob("*.jsonl"):
        data, at, checkpoint = path.stem.rpartition("@")
        if at:
            found.append(Source(path, folder, checkpoint, data))
    return sorted(found, key=lambda source: (source.data or "", _order(source.checkpoint)))


def find(
    workspace: Workspace, name: str | None, data: str | None = None, *, with_base: bool = False
) -> list[Source]:
    """The predictions that `name` means: a file, a run, or RUN@CHECKPOINT; None = the newest run.

    Args:
        workspace: where the runs are.
        name: an existing file wins over a run of the same name.
        data: only predictions of this dataset; without it, of the dataset that was predicted last.
        with_base: the base model's too, where a run is named.

    Returns:
        One source for a file or a checkpoint; for a run all of its checkpoints.

    Raises:
        InputError: the name looks like a file, and there is no such file.
        RunStateError: no such run, or it has no such predictions.
    """
    if name is not None and Path(name).is_file():
        return [Source(Path(name))]
    if name is not None and (Path(name).suffix in _FILES or "/" in name):
        fix = "name a file of predictions, or a run: iisft runs"
        raise InputError(
            "predictions-missing",
            f"there is no file {name}",
            where=str(Path(name).absolute()),
            fix=fix,
        )
    run, checkpoint = split(workspace, name)
    folder = _run(workspace, run, name)
    known = of_run(folder)
    fitting = [
        source
        for source in known
        if checkpoint in (None, source.checkpoint) and data in (None, source.data)
    ]
    if checkpoint is None and not with_base:
        fitting = [source for source in fitting if source.checkpoint != BASE]
    if not fitting:
        raise _no_predictions(folder, checkpoint, data, known)
    if data is None:
        newest = max(fitting, key=lambda source: source.path.stat().st_mtime)
        fitting = [source for source in fitting if source.data == newest.data]
    return fitting


def _no_predictions(
    folder: RunFolder, checkpoint: str | None, data: str | None, known: list[Source]
) -> RunStateError:
    what = f"{folder.id} has no predictions" + (f" of {data}" if data else "")
    what += f" by {checkpoint}" if checkpoint else ""
    there = ", ".join(f"{source.data}@{source.checkpoint}" for source in known)
    option = f" --checkpoint {checkpoint}" if checkpoint else ""
    return RunStateError(
        "no-predictions",
        f"{what}; there are {there}" if there else what,
        where=str(folder.predictions),
        fix=f"iisft predict {folder.id}{option} --data {data or 'NAME'}",
    )


def last(sources: list[Source]) -> Source:
    """The one to evaluate when none is named: the final state, else the last checkpoint."""
    return max(sources, key=lambda source: _order(source.checkpoint))


def base_of(source: Source) -> Source | None:
    """The base model's predictions for the same data, if there are any."""
    if source.run is None or source.checkpoint == BASE:
        return None
    found = (
        other
        for other in of_run(source.run)
        if other.data == source.data and other.checkpoint == BASE
    )
    return next(found, None)


def _order(checkpoint: str | None) -> tuple[int, int]:
    if checkpoint == FINAL:
        return 2, 0
    return (1, int(checkpoint)) if checkpoint and is_count(checkpoint) else (0, 0)


def split(workspace: Workspace, name: str | None) -> tuple[str | None, str | None]:
    if name is None or "@" not in name or (workspace.runs / name).is_dir():
        return name, None
    run, _, checkpoint = name.rpartition("@")
    return run, checkpoint.removeprefix("checkpoint-")


def _run(workspace: Workspace, run: str | None, name: str | None) -> RunFolder:
    try:
        return find_run(workspace, run)
    except RunStateError as error:
        if name is None:
            raise
        message = f"{name} is neither a file nor a run" + (
            f": {error.message}" if "mean" in error.message else ""
        )
        raise RunStateError.of(replace(error.finding, message=message, fix="iisft runs")) from error


_STEPS_IN_MEAN = 10  # one batch's loss says little
_Point = tuple[int, float]


def losses_at(source: Source) -> dict[str, Any]:
    """`step`, `train_loss` (mean of the last ten logged up to it), `eval_loss`; None if unknown."""
    checkpoint = source.checkpoint or ""
    if source.run is None or not (checkpoint == FINAL or is_count(checkpoint)):
        return {"step": None, "train_loss": None, "eval_loss": None}
    size = source.run.events.stat().st_size if source.run.events.exists() else 0
    trained, evaluated = _history(source.run, size)
    last = math.inf if checkpoint == FINAL else int(checkpoint)
    recent = [loss for step, loss in trained if step <= last][-_STEPS_IN_MEAN:]
    known = [loss for step, loss in evaluated if step <= last]
    final_step = trained[-1][0] if trained else None
    return {
        "step": final_step if checkpoint == FINAL else last,
        "train_loss": sum(recent) / len(recent) if recent else None,
        "eval_loss": known[-1] if known else None,
    }


def finite(value: Any) -> float | None:
    """A number that can be drawn and averaged; None for NaN, infinities and anything else."""
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:  # a whole number that no float holds
        return None


@lru_cache(maxsize=4)
def _history(folder: RunFolder, size: int) -> tuple[list[_Point], list[_Point]]:
    """Steps and losses of training and of evaluation.

    Cached, so that the events are read once for all checkpoints; `size` tells a grown file apart.
    """
    trained: list[_Point] = []
    evaluated: list[_Point] = []
    for event in folder.read_events():
        step = event.get("step")
        if event["kind"] != "metrics" or not isinstance(step, int):
            continue
        for points, name in ((trained, "loss"), (evaluated, "eval_loss")):
            if (loss := finite(event.get(name))) is not None:
                points.append((step, loss))
    return trained, evaluated
