"""What the command line asks for, and the checked preset and placement that it becomes."""

import re
from dataclasses import dataclass

from iisft.errors import Finding, InputError, UsageError
from iisft.llamafactory.environment import Placement
from iisft.machine.facts.gpus import Gpu
from iisft.presets import checking, documents
from iisft.presets.checking import LoadedPreset
from iisft.presets.documents import Document
from iisft.presets.schema import Preset
from iisft.workspace import Workspace

_NAME = re.compile(r"\w[\w.-]{0,99}")
_LONGEST_NAME = 200  # bytes; a folder's name has 255, and some are put around it


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the command line asked for."""

    preset: str
    overrides: tuple[str, ...] = ()
    model: str | None = None
    data: str | None = None
    name: str | None = None
    gpus: int | None = None
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None


@dataclass(frozen=True)
class Resolved:
    """A request's preset, checked, with the command line's values in it, and where its ranks run.

    `notes` say what was made of the command line's counts.
    """

    loaded: LoadedPreset
    placement: Placement
    notes: tuple[Finding, ...]

    @property
    def preset(self) -> Preset:
        return self.loaded.preset

    @property
    def document(self) -> Document:
        return self.loaded.document


def resolve(
    request: TrainRequest, workspace: Workspace, gpus: list[Gpu], *, judge: bool = True
) -> Resolved:
    """Read the preset that a request names and fit it to so many GPUs. `judge`: see
    presets.checking.check.

    Raises:
        IisftError: the request or its preset can't be read or is wrong.
    """
    _check_request(request)
    document = documents.read_document(request.preset, workspace)
    _apply(request, document)
    notes: list[Finding] = []
    loaded, placement = _place(request, document, gpus, notes, judge=judge)
    return Resolved(loaded, placement, tuple(notes))


def _check_request(request: TrainRequest) -> None:
    if request.name is not None and not _NAME.fullmatch(request.name):
        raise UsageError(
            "run-name", f"a run's name has letters, digits, '.', '_' and '-', not {request.name!r}"
        )
    if request.name is not None and len(request.name.encode()) > _LONGEST_NAME:
        raise UsageError(
            "run-name", f"a run's name has at most {_LONGEST_NAME} bytes: {request.name}"
        )
    if request.gpus is not None and request.gpus < 1:
        raise UsageError("gpus", f"--gpus must be at least 1, not {request.gpus}")
    if request.nodes < 1 or not 0 <= request.node_rank < request.nodes:
        raise UsageError(
            "nodes", f"--node-rank {request.node_rank} is not one of {request.nodes} nodes (from 0)"
        )


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"\S+:([0-9]{1,5})", text)
    return match is not None and 0 < int(match[1]) < 2**16


def check_nodes(request: TrainRequest) -> None:
    """The whole request; several machines must find each other and share one folder.

    Raises:
        UsageError: a run can't be started as asked.
    """
    _check_request(request)
    if request.nodes > 1:
        if request.rendezvous is None or not _is_address(request.rendezvous):
            raise UsageError("rendezvous", "several nodes need --rendezvous HOST:PORT of node 0")
        if request.name is None:
            raise UsageError(
                "nodes-name",
                "several nodes need the same --name on each, it is the folder they share",
            )


def _apply(request: TrainRequest, document: Document) -> None:
    """Put the command line's values into the document."""
    for text in request.overrides:
        document.override(*documents.parse_override(text), documents.describe_override(text))
    if request.model is not None:
        document.override(("model", "id"), request.model, "--model")
    if request.data is not None:
        document.override(("data", "name"), request.data, "--data")


def _place(
    request: TrainRequest, document: Document, gpus: list[Gpu], notes: list[Finding], *, judge: bool
) -> tuple[LoadedPreset, Placement]:
    """Where the ranks run; the accumulation is rescaled so that the global batch stays."""
    asked = document.values.get("hardware")
    asked = asked if isinstance(asked, dict) else {}
    preset_ranks = asked.get("gpus") if isinstance(asked.get("gpus"), int) else 1
    preset_ranks = max(preset_ranks or 0, 1)
    ranks = request.gpus or preset_ranks
    on_cpu = asked.get("vendor") == "cpu" or (request.gpus is not None and not gpus)
    placement = Placement(ranks, request.nodes, request.node_rank, request.rendezvous, on_cpu)
    literal = [
        text
        for text in request.overrides
        if re.match(r"\s*train\.(accumulation|batch_size)\s*=", text)
    ]
    train = document.values.get("train")
    accumulation = train.get("accumulation") if isinstance(train, dict) else None
    if placement.world_size != preset_ranks and isinstance(accumulation, int):
        if literal:
            notes.append(
                Finding(
                    "global-batch-literal",
                    f"{' '.join(literal)} is taken as it is",
                    severity="info",
                )
            )
        else:
            notes.append(
                _rescaled(document, accumulation, preset_ranks, placement.world_size, judge=judge)
            )
    return checking.check(document, nodes=request.nodes, ranks=ranks, judge=judge), placement


def _rescaled(
    document: Document, accumulation: int, before: int, after: int, *, judge: bool
) -> Finding:
    """Change the accumulation.

    Without `judge` ranks that can't keep the global batch are only said to be so.
    """
    try:
        scaled = _rescale(accumulation, before, after)
    except InputError as error:
        if judge:
            raise
        return error.finding
    document.override(
        ("train", "accumulation"), scaled, document.source(("train", "accumulation")).text
    )
    text = (
        f"{after} ranks instead of {before}: accumulation {accumulation} -> {scaled}, the "
        "global batch stays"
    )
    return Finding("accumulation-rescaled", text, severity="info")


def _rescale(accumulation: int, before: int, after: int) -> int:
    total = accumulation * before
    if total % after == 0:
        return total // after
    counts = [count for count in range(1, total + 1) if total % count == 0]
    near = sorted(counts, key=lambda count: (abs(count - after), count))[:2]
    raise InputError(
        "accumulation-indivisible",
        f"{after} ranks can't keep the global batch: accumulation x ranks = {total} is not "
        f"divisible by {after}",
        where="--gpus/--nodes",
        fix=f"take {' or '.join(map(str, sorted(near)))} ranks, or say the batch yourself: --set "
        "train.accumulation=N",
    )
