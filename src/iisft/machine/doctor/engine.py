"""The doctor: rules over a machine and what will run on it.

Its rules are the decorated functions in iisft.machine.doctor.rules, found by being there, and those
of a preset alone in iisft.presets.rules.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from iisft import rules
from iisft.errors import Finding
from iisft.gpu_table import is_of
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.machine import Machine
from iisft.presets import case as preset_case
from iisft.rules import Rule

SMALLEST_GIB = 3.5
_NUMBER = re.compile(r"\d+")


def training_gpus(visible: Sequence[Gpu], vendor: str) -> list[Gpu]:
    """Those of the vendor, if there are any.

    A processor's own graphics, which has a few hundred MiB, is not a GPU to train on.
    """
    large = [gpu for gpu in visible if not 0 < gpu.memory_gib < SMALLEST_GIB]
    return [gpu for gpu in large if gpu.vendor == vendor] or large


@dataclass(frozen=True)
class Case(preset_case.Case):
    """A machine and, where it is known, what will run on it.

    Args:
        machine: the facts.
        fits: the plan's verdict for these GPUs (yes, tight, no); None without one.
        need_gib: what the plan says that a GPU's memory will hold at most; None without one.
    """

    machine: Machine = field(default_factory=Machine)
    fits: str | None = None
    need_gib: float | None = None

    @property
    def looked_at(self) -> bool:
        return True

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The GPUs that would train: of the preset's vendor, else of the one that torch is built
        for, if there are any.
        """
        if self.on_cpu or (self.preset is not None and self.preset.hardware.vendor == "cpu"):
            return []
        built_for = "amd" if self.hip else "nvidia" if self.torch.get("cuda") else ""
        vendor = self.preset.hardware.vendor if self.preset else built_for
        own = self.preset.env if self.preset else {}
        return training_gpus(self.machine.visible_under(own), vendor)

    @property
    def amd(self) -> list[Gpu]:
        return [gpu for gpu in self.gpus if gpu.vendor == "amd"]

    @property
    def nvidia(self) -> list[Gpu]:
        return [gpu for gpu in self.gpus if gpu.vendor == "nvidia"]

    @property
    def several(self) -> bool:
        """Whether more than one GPU would work together."""
        return (self.ranks or len(self.gpus)) > 1 and len(self.gpus) > 1

    @cached_property
    def archs(self) -> list[str]:
        return list(dict.fromkeys(gpu.arch for gpu in self.gpus if gpu.arch))

    @property
    def main_arch(self) -> str:
        """The architecture that trains: the preset's where it is here, else the one of most cards,
        then most memory.
        """
        wanted = self.preset.hardware.arch if self.preset else ""
        if wanted and (named := next((arch for arch in self.archs if is_of(arch, wanted)), "")):
            return named
        sums = {
            arch: [gpu.memory_gib for gpu in self.gpus if gpu.arch == arch] for arch in self.archs
        }
        return max(sums, key=lambda arch: (len(sums[arch]), sum(sums[arch])), default="")

    @cached_property
    def env(self) -> Mapping[str, str]:
        """The trainer's variables: the shell's, then the preset's."""
        return {**self.machine.answers.environment, **(self.preset.env if self.preset else {})}

    @property
    def torch(self) -> Mapping[str, Any]:
        """What torch said about itself; empty when it was not asked or can't be imported."""
        return self.machine.capabilities.torch if self.machine.capabilities else {}

    @property
    def packages(self) -> Mapping[str, str]:
        own = self.machine.interpreter.packages if self.machine.interpreter else {}
        return {**(self.machine.capabilities.versions if self.machine.capabilities else {}), **own}

    def version(self, package: str) -> tuple[int, ...] | None:
        """The leading numbers of a package's version: (2, 4, 1) for 2.4.1+rocm6.1.

        None without it.
        """
        return numbers(self.packages.get(package, "").partition("+")[0])

    @property
    def hip(self) -> tuple[int, ...] | None:
        """The ROCm release that torch was built for; None for another build."""
        return numbers(str(self.torch.get("hip") or ""))

    def rates(self) -> dict[str, dict[str, float]]:
        """Measured TFLOP/s of products, by device and dtype."""
        found: dict[str, dict[str, float]] = {}
        for one in self.deep_results("matmul"):
            if isinstance(one.get("tflops"), int | float):
                found.setdefault(str(one.get("device")), {})[str(one.get("dtype"))] = one["tflops"]
        return found

    def deep_results(self, check: str) -> list[Mapping[str, Any]]:
        """What --deep found in a check."""
        results = (self.machine.deep or {}).get("results", [])
        return [one for one in results if one.get("check") == check]

    @property
    def computes(self) -> bool:
        """Whether --deep multiplied matrices on these GPUs, all of them well: that decides,
        whatever a version or a list of architectures says.
        """
        done = self.deep_results("matmul")
        return bool(done) and all(
            isinstance(one.get("tflops"), int | float) and not (one.get("error") or one.get("died"))
            for one in done
        )

    @property
    def measured_bf16(self) -> str:
        found = self.rates().get("cuda:0", {})
        if not {"bfloat16", "float16"} <= set(found):
            return ""
        return f"measured {found['bfloat16']:.3g} TFLOP/s in bf16, {found['float16']:.3g} in fp16"


@cache
def all_rules() -> tuple[Rule, ...]:
    """Every rule, the preset's own too."""
    from iisft.machine.doctor import rules as of_machines
    from iisft.presets import rules as of_presets

    return rules.collect(of_presets, of_machines)


def find_rule(name: str) -> Rule | None:
    """The rule of that id or name, capitals or not."""
    key = name.lower()
    return next(
        (
            one
            for one in all_rules()
            if key in map(str.lower, filter(None, (one.id, one.name, one.preset_id)))
        ),
        None,
    )


def diagnose(case: Case) -> list[Finding]:
    """Every finding of every rule: errors first, then warnings, then notes, each in the order of
    the rules.
    """
    return rules.judge(all_rules(), case)


def causes_of_hang(case: Case) -> list[Finding]:
    """What on this machine is known to let several GPUs hang at their first all-reduce."""
    case = replace(case, machine=replace(case.machine, deep=None))
    return rules.judge((one for one in all_rules() if one.hang), case)


def numbers(version: str) -> tuple[int, ...] | None:
    """(2, 4, 1) for 2.4.1.post2; None for text without a number in front."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in _NUMBER.findall(match[0])) if match else None
