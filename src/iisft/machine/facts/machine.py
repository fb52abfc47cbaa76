"""A whole machine as facts: what the probes read below a root, and what only the running machine
can answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from iisft.llamafactory.capabilities import Capabilities
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.facts import host as hosts
from iisft.machine.facts.gpus import MASKS, Gpu, amd_gpus, masked, nvidia_gpus
from iisft.machine.facts.host import Host
from iisft.machine.facts.live import Answers
from iisft.machine.facts.pci import Card, cards
from iisft.machine.facts.reader import Reader

_CORE = re.compile(
    r"sys/class/kfd.*|proc/(cmdline|cpuinfo|meminfo)|sys/class/drm|sys/bus/pci/devices"
)


@dataclass(frozen=True)
class Machine:
    """Everything that the doctor's rules look at.

    `gpus` are all GPUs with a driver that the kernel and nvidia-smi tell, whatever
    *_VISIBLE_DEVICES says; `cards` the PCI functions of AMD and NVIDIA GPUs, with or without one.
    What was not asked is None: no interpreter, no report of its packages, no deep checks.
    """

    gpus: tuple[Gpu, ...] = ()
    cards: tuple[Card, ...] = ()
    host: Host = field(default_factory=Host)
    answers: Answers = field(default_factory=Answers)
    interpreter: Interpreter | None = None
    launcher_present: bool = True
    capabilities: Capabilities | None = None
    deep: Mapping[str, Any] | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def told(self) -> list[Gpu]:
        """The GPUs that *_VISIBLE_DEVICES leave of what the kernel and nvidia-smi tell."""
        return masked(list(self.gpus), self.answers.environment)

    @cached_property
    def torch_sees(self) -> list[tuple[Gpu, Gpu | None]]:
        """Each GPU that torch sees in the training interpreter, in its order, and which of `gpus`
        it is. Empty where torch was not asked, or sees none.
        """
        report = self.capabilities
        vendor = _vendor(report)
        if report is None or not vendor:
            return []
        shown = [gpu for gpu in self.told if gpu in self.gpus]
        left = [*shown, *(gpu for gpu in self.gpus if gpu not in shown)]
        left = [gpu for gpu in left if gpu.vendor == vendor]
        renamed = vendor == "amd" and "HSA_OVERRIDE_GFX_VERSION" in self.answers.environment
        found = []
        for device in report.devices or []:
            match = _match(device, left, renamed=renamed)
            if match is not None:
                left.remove(match)
            found.append((_as_torch_sees(device, vendor, match, renamed=renamed), match))
        return found

    @cached_property
    def visible(self) -> list[Gpu]:
        """The GPUs that a process with this machine's environment sees: torch's own word about its
        vendor's, for that is what trains; of others, and where it sees none, what `told` says.
        """
        seen = [gpu for gpu, _ in self.torch_sees]
        return [*seen, *(gpu for gpu in self.told if not seen or gpu.vendor != seen[0].vendor)]

    def visible_under(self, variables: Mapping[str, str]) -> list[Gpu]:
        """The visible GPUs where a preset's variables choose others than this shell does."""
        if MASKS.isdisjoint(variables):
            return self.visible
        of_torch = {match: gpu for gpu, match in self.torch_sees}
        shown = masked(list(self.gpus), {**self.answers.environment, **variables})
        return [of_torch.get(gpu, gpu) for gpu in shown]

    @property
    def everything(self) -> list[Gpu]:
        """The visible GPUs, and those that are hidden from torch."""
        seen = [match for _, match in self.torch_sees]
        shown = [*seen, *(gpu for gpu in self.visible if gpu in self.gpus)]
        return [*self.visible, *(gpu for gpu in self.gpus if gpu not in shown)]

    def card(self, gpu: Gpu) -> Card | None:
        """The PCI function of a GPU."""
        return next((card for card in self.cards if card.bus and card.bus == gpu.bus), None)

    def describe_gpu(self, gpu: Gpu) -> str:
        card = self.card(gpu)
        name = (card.name if card else "") or gpu.name or gpu.vendor.upper()
        return f"{name} ({gpu.arch})" if gpu.arch else name


def _vendor(report: Capabilities | None) -> str:
    """Whose GPUs torch was built for; "" for none, and where it was not asked."""
    torch = report.torch if report else {}
    return "amd" if torch.get("hip") else "nvidia" if torch.get("cuda") else ""


def _match(device: Mapping[str, Any], left: list[Gpu], *, renamed: bool) -> Gpu | None:
    """The GPU that torch means: by its bus, which not every torch tells, else the first like it.

    `renamed`: HSA_OVERRIDE_GFX_VERSION lets torch name another architecture than the card's.
    """
    bus, name, arch = (str(device.get(key) or "") for key in ("bus", "name", "arch"))
    if bus and any(gpu.bus for gpu in left):
        return next((gpu for gpu in left if gpu.bus == bus), None)
    if not arch or renamed:
        return next(iter(left), None)
    alike = [gpu for gpu in left if gpu.arch in (arch, "")]
    return next((gpu for gpu in alike if gpu.name == name), next(iter(alike), None))


def _as_torch_sees(
    device: Mapping[str, Any], vendor: str, match: Gpu | None, *, renamed: bool
) -> Gpu:
    arch, size = str(device.get("arch") or ""), float(device.get("memory_gib") or 0.0)
    if match is None:
        bus = str(device.get("bus") or "")
        return Gpu(vendor, arch, size, str(device.get("name") or ""), bus)
    kept = match.arch if renamed and match.arch else arch or match.arch
    return replace(match, arch=kept, memory_gib=size or match.memory_gib)


def probe(reader: Reader | None = None, answers: Answers | None = None) -> Machine:
    """Look at the machine below the reader's root. Never raises.

    Args:
        reader: where the files lie; left out, this machine.
        answers: what can't be read from files; left out, this machine is asked.
    """
    reader = reader or Reader()
    answers = answers if answers is not None else Answers.of_this_machine()
    gpus = [*amd_gpus(reader), *nvidia_gpus(reader, answers.nvidia_smi)]
    found = cards(reader, gpus, answers.nvidia_smi)
    host = hosts.probe(reader)
    core = {path: reason for path, reason in reader.unreadable.items() if _CORE.fullmatch(path)}
    return Machine(tuple(gpus), tuple(found), host, answers, unreadable=core)
