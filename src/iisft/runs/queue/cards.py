"""Which GPUs a run of the queue gets: alike, nobody's, and not those of another run."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from iisft import process
from iisft.machine.doctor.engine import training_gpus
from iisft.machine.facts.gpus import Gpu, amd_gpus, masked, nvidia_gpus
from iisft.machine.facts.in_use import why_not_free
from iisft.runs.queue.entries import Entry
from iisft.runs.record import given_cards
from iisft.runs.record.given_cards import GivenCards
from iisft.runs.record.run_record import RunRecord
from iisft.runs.record.state import RunStatus

_SAME_SIZE = 0.98  # torch calls a card of 32 GiB one of 31.98
_LOOK_S = 5.0  # nvidia-smi takes up to half a second


class Cards:
    """The machine's GPUs and who is on them, looked at every few seconds."""

    def __init__(self) -> None:
        self.gpus: list[Gpu] = []
        self._why: dict[str, str] = {}
        self._own: frozenset[int] = frozenset()
        self._looked = float("-inf")

    def look(self, live: Sequence[RunStatus], *, now: bool = False) -> bool:
        """See who is on them, and whether that was looked at right `now` or some seconds ago.

        What the runs' own processes are on is told by `taken`.
        """
        of_runs = process.marked(process.RUN_MARKER)
        own = frozenset(pid for run in live for pid in of_runs.get(run.folder.marker, ()))
        if not now and own == self._own and time.monotonic() - self._looked < _LOOK_S:
            return False
        self.gpus = [*amd_gpus(), *nvidia_gpus()]
        why = why_not_free(self.gpus, own)
        self._why = {key_of(gpu): text for gpu, text in zip(self.gpus, why, strict=True)}
        self._own, self._looked = own, time.monotonic()
        return True

    def taken(self, live: Sequence[RunStatus]) -> dict[str, str]:
        """GPUs that runs of this workspace have, also before anything of them is to be seen there,
        and whose they are. One that the queue did not start has the first that it saw.
        """
        found: dict[str, str] = {}
        for run in live:
            given, record = given_cards.read(run.folder), run.folder.read_record()
            if given is not None:
                keys = list(given.keys)
            elif record is not None and record.gpus:
                vendor = str(record.setting("hardware.vendor"))
                shown = training_gpus(masked(self.gpus, _environment(record)), vendor)
                keys = [key_of(gpu) for gpu in shown[: record.ranks]]
            else:
                keys = []
            found |= dict.fromkeys(keys, run.folder.id)
        return found

    def choose(self, entry: Entry, live: Sequence[RunStatus]) -> GivenCards | str:
        """GPUs for a run, those that it had before if it can; why not, where it can't have any."""
        need, taken = entry.need, self.taken(live)
        shown = masked(self.gpus, _environment(entry.record))
        alike = [gpu for gpu in shown if gpu in self.gpus and key_of(gpu) and _is_like(gpu, entry)]
        if len(alike) < need.cards:
            return f"it needs {need.cards} GPUs {need.arch}, {len(alike)} are here"
        why = {
            key_of(gpu): f"run {taken[key_of(gpu)]} is on it"
            if key_of(gpu) in taken
            else self._why.get(key_of(gpu), "unknown: it was not looked at")
            for gpu in alike
        }
        free = [gpu for gpu in alike if not why[key_of(gpu)]]
        if len(free) < need.cards:
            busy = "; ".join(f"{key}: {text}" for key, text in why.items() if text)
            return f"it waits for {need.cards - len(free)} of its {need.cards} GPUs ({busy})"
        before = given_cards.read(entry.folder)
        free.sort(key=lambda gpu: before is None or key_of(gpu) not in before.keys)
        chosen = [gpu for gpu in self.gpus if gpu in free[: need.cards]]
        return GivenCards(
            self._variables(chosen, _environment(entry.record)),
            tuple(gpu.bus for gpu in chosen),
            tuple(map(key_of, chosen)),
        )

    def _variables(
        self, chosen: Sequence[Gpu], environment: Mapping[str, str]
    ) -> dict[str, str | None]:
        vendor = chosen[0].vendor
        own = [gpu for gpu in self.gpus if gpu.vendor == vendor]
        if vendor == "nvidia":
            # numbers count in the order that nvidia-smi has: CUDA's own is by speed
            named = all(gpu.uuid for gpu in chosen)
            order: dict[str, str | None] = {} if named else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            names = [gpu.uuid if named else str(own.index(gpu)) for gpu in chosen]
            return {"CUDA_VISIBLE_DEVICES": ",".join(names), **order}
        # HIP takes numbers alone, and counts within what ROCr leaves; torch refuses a
        # CUDA_VISIBLE_DEVICES that says otherwise
        rocr = "ROCR_VISIBLE_DEVICES"
        left = masked(own, {rocr: environment[rocr]}) if rocr in environment else own
        numbers = ",".join(str(left.index(gpu)) for gpu in chosen)
        return {"HIP_VISIBLE_DEVICES": numbers, "CUDA_VISIBLE_DEVICES": None}


def key_of(gpu: Gpu) -> str:
    """What tells it from every other one of the machine; "" where nothing does."""
    return gpu.bus or gpu.uuid


def _is_like(gpu: Gpu, entry: Entry) -> bool:
    need = entry.need
    return (
        gpu.vendor == need.vendor
        and gpu.arch in (need.arch, "")
        and (not gpu.memory_gib or gpu.memory_gib >= need.memory_gib * _SAME_SIZE)
    )


def _environment(record: RunRecord) -> Mapping[str, Any]:
    """What the run would have been started with: its shell's variables, then its preset's."""
    return {**record.shell, **record.env}
