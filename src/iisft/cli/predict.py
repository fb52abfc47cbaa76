"""iisft predict: answers of a run's model to staged rows."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.cli.options import (
    BaseModelOption,
    CpuOption,
    JsonOption,
    MaxTokensOption,
    RunArgument,
    complete_datasets,
)
from iisft.errors import UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from iisft.inference.headroom import Need
    from iisft.inference.predict import Outcome, Progress, Request
    from iisft.runs.record.folder import RunFolder


_CheckpointOption = Annotated[
    str | None,
    typer.Option(
        metavar="STEP|final|best|all|base",
        help="A step; final; best = lowest eval loss; all; base = no adapter. Default: "
        "final, or the newest.",
    ),
]
_DataOption = Annotated[
    str | None,
    typer.Option(
        help="Staged dataset; default: the run's data.eval.", autocompletion=complete_datasets
    ),
]
_LimitOption = Annotated[int | None, typer.Option(help="Only the first N rows.")]
_BatchSizeOption = Annotated[
    int, typer.Option(help="Rows answered at once; halved where memory runs out.")
]
_BackendOption = Annotated[
    str, typer.Option(metavar="local|api", help="api: an OpenAI-compatible server.")
]
_UrlOption = Annotated[str | None, typer.Option(help="With api: the server, http://HOST:PORT/v1.")]
_ApiModelOption = Annotated[str | None, typer.Option(help="With api: the model's name there.")]
_ParallelOption = Annotated[int, typer.Option(help="With api: requests at once.")]
_FromStartOption = Annotated[bool, typer.Option("--from-start", help="Discard earlier answers.")]


def predict(
    run: RunArgument = None,
    checkpoint: _CheckpointOption = None,
    data: _DataOption = None,
    limit: _LimitOption = None,
    batch_size: _BatchSizeOption = 8,
    max_tokens: MaxTokensOption = None,
    backend: _BackendOption = "local",
    url: _UrlOption = None,
    api_model: _ApiModelOption = None,
    parallel: _ParallelOption = 8,
    from_start: _FromStartOption = False,
    model: BaseModelOption = None,
    cpu: CpuOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a dataset with the run's model.

    Greedy, and on disk batch by batch: after a kill the same command goes on.

    \b
    Examples:
      iisft predict RUN --data triage_test
      iisft predict RUN --data triage_test --checkpoint all
    """
    from iisft.inference.predict import request_for
    from iisft.runs.record.state import find_run

    _require_backend(backend, checkpoint)
    workspace = Workspace.current()
    folder = find_run(workspace, run)
    request = request_for(
        folder.whole_record(),
        workspace,
        data=data,
        limit=limit,
        batch_rows=batch_size,
        max_new_tokens=max_tokens,
        restart=from_start,
    )
    if backend == "api":
        outcomes = _by_api(folder, request, url, api_model, parallel)
    else:
        outcomes = _locally(folder, workspace, request, checkpoint, model, cpu=cpu)
    if as_json:
        console.out_json([outcome.as_json() for outcome in outcomes])
    _say_end(folder, request, outcomes, as_json=as_json)


def _require_backend(backend: str, checkpoint: str | None) -> None:
    if backend not in ("local", "api"):
        raise UsageError("backend", f"--backend is local or api, not {backend!r}")
    if backend == "api" and checkpoint is not None:
        raise UsageError(
            "api-checkpoint", "--checkpoint is for the local model; a server has its own"
        )


def _by_api(
    folder: "RunFolder", request: "Request", url: str | None, api_model: str | None, parallel: int
) -> "list[Outcome]":
    from iisft.inference import api

    endpoint = api.endpoint_for(url, api_model, parallel)
    with _Display() as display:
        display.begin("asking the server")
        return [api.predict(folder, endpoint, request, display.show)]


def _locally(
    folder: "RunFolder",
    workspace: Workspace,
    request: "Request",
    checkpoint: str | None,
    model: str | None,
    *,
    cpu: bool,
) -> "list[Outcome]":
    from iisft.inference import base_model as sources
    from iisft.inference import predict as predicting
    from iisft.runs.record import selection

    chosen = selection.choose(folder, checkpoint)
    source = sources.find(folder, workspace, model=model, cpu=cpu)
    for one in chosen:
        if one.reason:
            console.say(one.reason)
    with _Display() as display:
        return predicting.predict(
            source, chosen, request, display.show, lambda need: display.load(folder.id, need)
        )


def _say_end(
    folder: "RunFolder", request: "Request", outcomes: "list[Outcome]", *, as_json: bool
) -> None:
    from iisft.inference.predict import warnings

    for outcome in outcomes:
        if not as_json:
            console.out(str(outcome.file))
        before = outcome.rows - outcome.generated
        there = f", {before} were there already" if before else ""
        console.say(
            f"{request.data.name}@{outcome.which}: {outcome.generated} rows answered{there}"
        )
        for warning in warnings(outcome, request.cutoff_len):
            console.say(f"  {warning}")
    console.say(f"  next: iisft evaluate {folder.id}")


class _Display:
    """A bar on a terminal, else a line for each tenth of the work."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._said: tuple[str, int] = ("", 0)

    def __enter__(self) -> "_Display":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            console.say(
                "interrupted; finished rows are kept, and the same command continues after them"
            )

    def begin(self, first: str) -> None:
        if not sys.stderr.isatty():
            console.say(first)
            return
        from iisft.cli.progress import facts_bar

        self._bar, self._task = facts_bar(first, counted=True)

    def load(self, run: str, need: "Need") -> None:
        console.say(f"{run} {need.sentence}")
        self.begin("loading the model")

    def show(self, progress: "Progress") -> None:
        eta = (
            f"ETA {console.duration(progress.eta_s)}  "
            if progress.eta_s is not None and progress.share < 1
            else ""
        )
        facts = f"{eta}{progress.tokens_per_s:.0f} tokens/s" if progress.share else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                description=progress.which,
                completed=progress.done,
                total=progress.rows,
                facts=facts,
            )
            return
        tenth = (progress.which, int(progress.share * 10))
        if tenth != self._said and progress.share:
            self._said = tenth
            console.say(f"{progress.which}: {progress.done}/{progress.rows}  {facts}")
