"""Answers of a run's model to a staged dataset; a kill costs at most one batch."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from iisft import files
from iisft.data.stage import mixing, staging
from iisft.data.stage.staging import StagedDataset
from iisft.errors import UsageError
from iisft.inference.base_model import Source
from iisft.inference.headroom import Need
from iisft.inference.output import Predictions, Row
from iisft.inference.worker import Worker, require_proof, started
from iisft.presets.sections import names_of
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.proof import Observed
from iisft.runs.record.run_record import RunRecord
from iisft.runs.record.selection import ADAPTER, Chosen
from iisft.workspace import Workspace


@dataclass(frozen=True)
class Request:
    """What is asked for.

    `limit`: only the first so many rows. `restart`: throw older answers away.
    """

    data: StagedDataset
    cutoff_len: int
    limit: int | None
    batch_rows: int
    max_new_tokens: int
    restart: bool

    @cached_property
    def sources(self) -> mixing.Sources:
        return mixing.Sources(self.data)

    @property
    def count(self) -> int:
        return min(self.limit or self.data.rows, self.data.rows)

    def about(self, which: str, model: str, backend: str, **more: Any) -> dict[str, Any]:
        """The record beside the file: what was asked, and of which model."""
        return {
            "checkpoint": which,
            "data": self.data.name,
            "data_sha256": self.data.sha256,
            "backend": backend,
            "generation": {"do_sample": False, "max_new_tokens": self.max_new_tokens},
            "model": model,
            "rows": self.count,
            "started": time.time(),
            **more,
        }


@dataclass
class Progress:
    """Progress of one adapter's answers; `share` is of the work, as rows differ in length."""

    which: str
    rows: int
    done: int
    share: float = 0.0
    tokens: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, rows: list[Row], share: float) -> None:
        self.done += len(rows)
        self.tokens += sum(row["tokens"] or 0 for row in rows)
        self.share = share

    @property
    def eta_s(self) -> float | None:
        seconds = time.monotonic() - self.since
        return seconds / self.share * (1 - self.share) if self.share else None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(time.monotonic() - self.since, 1e-9)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A complete file. `generated`: rows of this call; the other counts cover the whole file."""

    which: str
    file: Path
    rows: int
    generated: int
    errors: int
    cut_off: int
    longer_than_cutoff: int

    def as_json(self) -> dict[str, Any]:
        counts = ("rows", "generated", "errors", "cut_off", "longer_than_cutoff")
        return {"checkpoint": self.which, "file": str(self.file)} | {
            name: getattr(self, name) for name in counts
        }


@dataclass
class Job:
    """One file to complete: which rows it had, and how many are new."""

    which: str
    predictions: Predictions
    request: Request
    done: set[int]
    new: int = 0

    @property
    def missing(self) -> bool:
        return not self.done.issuperset(range(1, self.request.count + 1))

    def progress(self) -> Progress:
        count = self.request.count
        return Progress(self.which, count, sum(number <= count for number in self.done))

    def add(self, rows: list[Row]) -> None:
        """Write finished rows, each with the dataset that it comes from where there are several."""
        sources = self.request.sources
        for row in rows if sources.several else ():
            row["source"] = sources.of(row["row"])
        self.predictions.append(rows)
        self.new += len(rows)

    def finish(self) -> Outcome:
        """Sort the rows, record the end, and count them."""
        rows = self.predictions.finish()
        return Outcome(
            which=self.which,
            file=self.predictions.path,
            rows=len(rows),
            generated=self.new,
            errors=sum(bool(row.get("error")) for row in rows),
            cut_off=sum(row.get("stop") == "length" for row in rows),
            longer_than_cutoff=sum(
                (row.get("prompt_tokens") or 0) > self.request.cutoff_len for row in rows
            ),
        )


def predict(
    source: Source,
    chosen: list[Chosen],
    request: Request,
    on_progress: Callable[[Progress], None],
    on_need: Callable[[Need], None],
) -> list[Outcome]:
    """Generate the missing rows, with one child for all adapters.

    Args:
        source: the run and its base model.
        chosen: the adapters.
        request: the rows and how they are answered.
        on_progress: called after each batch.
        on_need: called before a model is loaded; never if no row is missing.

    Raises:
        RunStateError: another command is writing there, or older answers had other settings.
        EnvironmentFault: too little memory or disk.
        RunFailed: the model does not compute as in training, or the child died.
    """
    with contextlib.ExitStack() as stack:  # all files are locked before the model is loaded
        jobs = []
        for one in chosen:
            about = request.about(
                one.which, source.record.model.id, "local", adapter_sha256=_digest(one)
            )
            jobs.append(stack.enter_context(begun(source.folder, one.which, request, about)))
        open_jobs = [(one, job) for one, job in zip(chosen, jobs, strict=True) if job.missing]
        if open_jobs:
            need = source.need(open_jobs[0][0])
            on_need(need)
            need.require()
            _generate(source, open_jobs, request, on_progress)
        return [job.finish() for job in jobs]


@contextlib.contextmanager
def begun(folder: RunFolder, which: str, request: Request, about: dict[str, Any]) -> Iterator[Job]:
    """A file of predictions, locked for the block and ready to continue.

    Raises:
        RunStateError: another command is writing there, or older answers had other settings.
        EnvironmentFault: the folder can't be written.
    """
    predictions = Predictions(folder.predictions_of(request.data.name, which))
    with predictions.locked():
        done = predictions.begin({"run": folder.id, **about}, restart=request.restart)
        yield Job(which, predictions, request, done)


def _generate(
    source: Source,
    jobs: list[tuple[Chosen, Job]],
    request: Request,
    on_progress: Callable[[Progress], None],
) -> None:
    with source.opened() as (view, env):
        spec = source.loading(view, jobs[0][0], max_new_tokens=request.max_new_tokens) | {
            "data": {
                "folder": str(request.data.folder),
                "name": request.data.name,
                "file": str(request.data.file),
            },
            "count": request.count,
            "batch_size": request.batch_rows,
            "max_new_tokens": request.max_new_tokens,
            "jobs": [
                {
                    "which": one.which,
                    "adapter": str(one.adapter) if one.adapter else None,
                    "done": sorted(job.done),
                }
                for one, job in jobs
            ],
        }
        with started(source, "predict_rows.py", spec, command="predict", env=env) as worker:
            proof = require_proof(source, worker)
            for _, job in jobs:
                job.predictions.note(observed=observed(proof))
            _take(worker, iter([job for _, job in jobs]), on_progress)


def observed(proof: dict[str, Any]) -> dict[str, Any]:
    """What the answers were computed in, in the terms of run.json."""
    facts = Observed({0: proof}, {}).as_json()
    return {
        name: facts[name]
        for name in ("weights_dtype", "compute_dtype", "attention", "autocast", "device")
    }


def _take(worker: Worker, coming: Iterator[Job], on_progress: Callable[[Progress], None]) -> None:
    """Write the rows that the child sends, job by job."""
    job, progress = None, None
    for message in worker.messages():
        if message["kind"] == "job":
            job = next(coming)
            progress = job.progress()
        elif job is not None and progress is not None:
            job.add(message["rows"])
            progress.add(message["rows"], message["share"])
        if progress is not None:
            on_progress(progress)


def _digest(chosen: Chosen) -> str | None:
    if chosen.adapter is None:
        return None
    with files.open_regular(chosen.adapter / ADAPTER) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def request_for(
    record: RunRecord,
    workspace: Workspace,
    *,
    data: str | None,
    limit: int | None,
    batch_rows: int,
    max_new_tokens: int | None,
    restart: bool,
) -> Request:
    """A request, completed from the run: its evaluation data, its cutoff_len.

    Raises:
        UsageError: no dataset is named anywhere, or a number is below 1.
        InputError: the dataset isn't staged, or its rows were changed.
    """
    for name, value in (
        ("limit", limit),
        ("batch-size", batch_rows),
        ("max-tokens", max_new_tokens),
    ):
        if value is not None and value < 1:
            raise UsageError(name, f"--{name} must be at least 1, not {value}")
    names = data.split(",") if data else names_of(record.setting("data.eval"))
    if not names:
        staged = ", ".join(staging.staged_names(workspace)) or "none"
        text = f"the run has no evaluation data, so --data says which rows; staged: {staged}"
        raise UsageError("predict-data", text, fix="--data NAME")
    cutoff_len = int(record.setting("train.cutoff_len"))
    return Request(
        mixing.whole([staging.load(name, workspace) for name in names]),
        cutoff_len,
        limit,
        batch_rows,
        max_new_tokens or cutoff_len,
        restart,
    )


def warnings(outcome: Outcome, cutoff_len: int) -> Iterator[str]:
    """What a person should know about a file before trusting it."""
    if outcome.errors:
        yield (
            f"{outcome.errors} rows have no answer (see their `error`); the same command tries "
            "them again"
        )
    if outcome.cut_off:
        yield f"{outcome.cut_off} answers were cut off at the limit (--max-tokens)"
    if outcome.longer_than_cutoff:
        longer = (
            f"{outcome.longer_than_cutoff} prompts are longer than the training's cutoff_len "
            f"{cutoff_len}"
        )
        yield f"{longer}: it saw none that long. They were not cut"
