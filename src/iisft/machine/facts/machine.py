"""A whole machine as facts: what the probes read below a root, and what only the running machine
can answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iisft.llamafactory.capabilities import Capabilities
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.facts import host as hosts
from iisft.machine.facts.gpus import Gpu, amd_gpus, masked, nvidia_gpus
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

    `gpus` are all GPUs with a driver, whatever *_VISIBLE_DEVICES says; `cards` the PCI functions of
    AMD and NVIDIA GPUs, with or without one. What was not asked is None: no interpreter, no report
    of its packages, no deep checks.
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

    @property
    def visible(self) -> list[Gpu]:
        """The GPUs that a process with this machine's environment sees."""
        return masked(list(self.gpus), self.answers.environment)

    def card(self, gpu: Gpu) -> Card | None:
        """The PCI function of a GPU."""
        return next((card for card in self.cards if card.bus and card.bus == gpu.bus), None)

    def describe_gpu(self, gpu: Gpu) -> str:
        card = self.card(gpu)
        name = (card.name if card else "") or gpu.name or gpu.vendor.upper()
        return f"{name} ({gpu.arch})" if gpu.arch else name


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
