"""What the command line asks for, and the checked preset and placement that it becomes."""

import re
from dataclasses import dataclass

from iisft.errors import Finding, IisftError, InputError, UsageError
from iisft.gpu_table import MEMORY_TOLERANCE, Device, is_of
from iisft.llamafactory.environment import Placement
from iisft.machine.doctor.inspect import visible_gpus
from iisft.presets import checking, documents
from iisft.presets.checking import LoadedPreset
from iisft.presets.documents import Document
from iisft.quoting import shell_words
from iisft.workspace import Workspace

_NAME = re.compile(r"\w[\w.-]{0,99}")
_FALLBACK = "mi50"
_BATCH = ("accumulation", "batch_size")
_MOST_GPUS = 128  # in one machine; without a GPU each would be a rank on the processor
_LONGEST_NAME = 200  # bytes; a folder's name has 255, and some are put around it


@dataclass(frozen=True, slots=True)
class Request:
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

    def command(self, name: str) -> str:
        """`iisft NAME` for the same preset with the same values; a secret's value is hidden."""
        values = {"model": self.model, "data": self.data, "gpus": self.gpus}
        words = ["iisft", name, "--preset", self.preset]
        for option, value in values.items():
            words += [] if value is None else [f"--{option}", str(value)]
        for override in self.overrides:
            words += ["--set", documents.describe_override(override).removeprefix("--set ")]
        return shell_words(words)


def resolve(
    request: Request, workspace: Workspace
) -> tuple[LoadedPreset, Placement, list[Finding]]:
    """The preset that a request names, checked, with the command line's values in it; where its
    ranks run; and what was made of the command line's counts.

    A rule's error is one of the preset's `warnings`.

    Raises:
        IisftError: the request or its preset can't be read or is wrong.
    """
    _check_request(request)
    document = documents.read_document(request.preset, workspace)
    document.change(request.overrides, model=request.model, data=request.data)
    notes: list[Finding] = []
    placement = _place(request, document, notes)
    loaded = checking.check(document, nodes=request.nodes, ranks=placement.ranks, judge=False)
    return loaded, placement, notes


def default_preset(workspace: Workspace, device: Device | None) -> str:
    """The first preset for the GPUs that are meant or here; mi50 without any."""
    if device is None:
        return next(iter(presets_for_here(workspace)), _FALLBACK)
    fitting = _presets_for(workspace, device.arch, device.memory_gib, None)
    return next(iter(fitting or _presets_for(workspace, device.arch, None, None)), _FALLBACK)


def presets_for_here(workspace: Workspace) -> list[str]:
    """The presets made for the GPUs of this machine, those for the most memory first."""
    gpus = visible_gpus()
    if not gpus:
        return _presets_for(workspace, "cpu", None, None)
    alike = [gpu.memory_gib for gpu in gpus if gpu.arch == gpus[0].arch]
    return _presets_for(workspace, gpus[0].arch, min(alike) or None, len(alike))


def _presets_for(
    workspace: Workspace, arch: str, memory_gib: float | None, gpus: int | None
) -> list[str]:
    """`memory_gib` of each of so many `gpus`; None of either asks for less."""
    found = []
    for name in documents.available(workspace):
        try:
            hardware = documents.read_document(name, workspace).values.get("hardware")
        except IisftError:  # somebody's broken preset is not the one that is looked for
            continue
        wanted = hardware if isinstance(hardware, dict) else {}
        memory, count = wanted.get("memory_gib"), wanted.get("gpus")
        memory = float(memory) if isinstance(memory, int | float) else 0.0
        if (
            is_of(arch, str(wanted.get("arch", "")))
            and (memory_gib is None or memory * MEMORY_TOLERANCE <= memory_gib)
            and (gpus is None or not isinstance(count, int) or count <= gpus)
        ):
            found.append((-memory, -count if isinstance(count, int) else 0, name))
    return [name for *_, name in sorted(found)]


def _check_request(request: Request) -> None:
    if request.name is not None and not _NAME.fullmatch(request.name):
        raise UsageError(
            "run-name", f"a run's name has letters, digits, '.', '_' and '-', not {request.name!r}"
        )
    if request.name is not None and len(request.name.encode()) > _LONGEST_NAME:
        raise UsageError(
            "run-name", f"a run's name has at most {_LONGEST_NAME} bytes: {request.name}"
        )
    if request.gpus is not None and not 1 <= request.gpus <= _MOST_GPUS:
        raise UsageError("gpus", f"--gpus must be from 1 to {_MOST_GPUS}, not {request.gpus}")
    if request.nodes < 1 or not 0 <= request.node_rank < request.nodes:
        raise UsageError(
            "nodes", f"--node-rank {request.node_rank} is not one of {request.nodes} nodes (from 0)"
        )


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"\S+:([0-9]{1,5})", text)
    return match is not None and 0 < int(match[1]) < 2**16


def check_nodes(request: Request) -> None:
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


def _place(request: Request, document: Document, notes: list[Finding]) -> Placement:
    """Where the ranks run; the accumulation is rescaled so that the global batch stays."""
    asked = document.values.get("hardware")
    asked = asked if isinstance(asked, dict) else {}
    preset_ranks = asked.get("gpus") if isinstance(asked.get("gpus"), int) else 1
    preset_ranks = max(preset_ranks or 0, 1)
    ranks = request.gpus or preset_ranks
    on_cpu = asked.get("vendor") == "cpu"
    placement = Placement(ranks, request.nodes, request.node_rank, request.rendezvous, on_cpu)
    literal = [text for text in request.overrides if _sets_the_batch(text)]
    train = document.values.get("train")
    accumulation = train.get("accumulation") if isinstance(train, dict) else None
    if placement.world_size != preset_ranks and isinstance(accumulation, int):
        notes.append(
            Finding(
                "global-batch-literal", f"{' '.join(literal)} is taken as it is", severity="info"
            )
            if literal
            else _rescaled(document, accumulation, preset_ranks, placement.world_size)
        )
    return placement


def _sets_the_batch(override: str) -> bool:
    path, value = documents.parse_override(override)
    if path == ("train",):
        return isinstance(value, dict) and not value.keys().isdisjoint(_BATCH)
    return path[0] == "train" and path[1] in _BATCH


def _rescaled(document: Document, accumulation: int, before: int, after: int) -> Finding:
    """Change the accumulation; ranks that can't keep the global batch are only said to be so."""
    try:
        scaled = _rescale(accumulation, before, after)
    except InputError as error:
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
