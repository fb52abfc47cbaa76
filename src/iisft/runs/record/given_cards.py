"""cards.json: the GPUs that the queue gave to a run, read at each start of its trainer.

A file of the run and no variable of its supervisor, so that whoever brings the run back gives it
the same ones, and so that the proof knows what the trainer has to see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iisft import files
from iisft.child.constants_iisft import GPU_VARIABLES
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.proof import Expected

_LARGEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class GivenCards:
    """Variables that choose GPUs (None: it must not be set), and where those are plugged in.

    `keys` are what the queue knows them by.
    """

    variables: Mapping[str, str | None]
    buses: tuple[str, ...]
    keys: tuple[str, ...]

    def applied(self, env: Mapping[str, str]) -> dict[str, str]:
        """A trainer's environment in which it sees these GPUs alone."""
        kept = {name: value for name, value in env.items() if name not in self.variables}
        return kept | {name: value for name, value in self.variables.items() if value is not None}


def write(folder: RunFolder, cards: GivenCards) -> None:
    """Raises OSError: the disk is full."""
    files.write_json_atomically(
        folder.cards,
        {
            "run": folder.marker,
            "variables": dict(cards.variables),
            "buses": list(cards.buses),
            "keys": list(cards.keys),
        },
    )


def read(folder: RunFolder) -> GivenCards | None:
    """None where nobody gave any, and where the file is torn or was written for another folder."""
    said = files.read_json_object(folder.cards, _LARGEST) or {}
    variables = said.get("variables")
    if said.get("run") != folder.marker or not isinstance(variables, dict):
        return None
    known = {
        name: value
        for name, value in variables.items()
        if name in (*GPU_VARIABLES, "CUDA_DEVICE_ORDER") and isinstance(value, str | None)
    }
    return GivenCards(known, _texts(said.get("buses")), _texts(said.get("keys")))


def expected(folder: RunFolder, proof: Expected) -> Expected:
    """What every rank must report, with the GPUs that it was given."""
    cards = read(folder)
    if cards is None:
        return proof
    variables = {name: cards.variables[name] for name in cards.variables if name in GPU_VARIABLES}
    return replace(proof, cards={"variables": variables, "buses": list(cards.buses)})


def alone_on(folder: RunFolder, gpus: Sequence[str]) -> Sequence[str]:
    """The machine's GPUs, unless another run may be on some of them: the queue gave it fewer."""
    cards = read(folder)
    return gpus if cards is None or len(cards.keys) == len(gpus) else ()


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
