"""The doctor: rules over a machine and what will run on it.

A rule is a decorated function in iisft.machine.doctor.rules.

Adding one is adding a function: rules are found in the modules of that package, and tests/machine
holds that each has a machine where it fires and one where it is silent.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal

from iisft.errors import ExitCode, Finding, Severity
from iisft.machine.doctor.fixes import NOTHING, Fix
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.machine import Machine
from iisft.presets.schema import Preset

Basis = Literal["documented", "reported", "inferred", "observed"]
_ORDER = {"error": 0, "warn": 1, "info": 2}
SMALLEST_GIB = 3.5
_NUMBER = re.compile(r"\d+")


def training_gpus(visible: Sequence[Gpu], vendor: str) -> list[Gpu]:
    """Those of the vendor, if there are any.

    A processor's own graphics, which has a few hundred MiB, is not a GPU to train on.
    """
    large = [gpu for gpu in visible if not 0 < gpu.memory_gib < SMALLEST_GIB]
    return [gpu for gpu in large if gpu.vendor == vendor] or large


@dataclass(frozen=True)
class Case:
    """A machine and, where it is known, what will run on it.

    Args:
        machine: the facts.
        preset: what will run.
        ranks: how many processes on this machine; 0 = one for each visible GPU.
        on_cpu: no GPU takes part.
        model: the model's config.json, {} when it isn't there.
        nodes: how many machines take part.
        fits: the plan's verdict for these GPUs (yes, tight, no); None without one.
        need_gib: what the plan says that a GPU's memory will hold at most; None without one.
    """

    machine: Machine
    preset: Preset | None = None
    ranks: int = 0
    on_cpu: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    nodes: int = 1
    fits: str | None = None
    need_gib: float | None = None

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The GPUs that would train: of the preset's vendor, else of the one that torch is built
        for, if there are any.
        """
        if self.on_cpu or (self.preset is not None and self.preset.hardware.vendor == "cpu"):
            return []
        built_for = "amd" if self.hip else "nvidia" if self.torch.get("cuda") else ""
        vendor = self.preset.hardware.vendor if self.preset else built_for
        return training_gpus(self.machine.visible, vendor)

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

    @property
    def archs(self) -> list[str]:
        """Each architecture among them once."""
        return list(dict.fromkeys(gpu.arch for gpu in self.gpus if gpu.arch))

    @property
    def main_arch(self) -> str:
        """The architecture that trains: the preset's where it is here, else the one of most cards,
        then most memory.
        """
        wanted = self.preset.hardware.arch if self.preset else ""
        if wanted and (named := next((arch for arch in self.archs if arch.startswith(wanted)), "")):
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
        """Versions in the training interpreter."""
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

    def argument(self, name: str) -> Any:
        """A LLaMA-Factory argument of the preset's free section."""
        return self.preset.llamafactory.get(name) if self.preset else None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rule says: the sentence, what it saw and where, what mends it."""

    message: str
    evidence: str
    fix: Fix = NOTHING
    severity: Severity = "error"


RuleFunction = Callable[[Case], Iterator[Seen]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and what is known about it.

    `id` is the number in iisft's list of pitfalls, or the name where it has none. `basis`:
    documented by the vendor or the source, reported by users, inferred (then it only informs), or
    observed by iisft itself on this machine. `hang`: among the causes of a hanging all-reduce.
    `replaces`: the preset's own objections that this rule, which knows the machine, says better.
    """

    id: str
    name: str
    applies: str
    source: str
    look: RuleFunction
    basis: Basis
    hang: bool = False
    replaces: tuple[str, ...] = ()
    exit_code: ExitCode = ExitCode.ENVIRONMENT

    @property
    def explanation(self) -> str:
        return inspect.getdoc(self.look) or ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding of a rule on a machine."""

    rule: Rule
    seen: Seen

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.rule.id,
            "name": self.rule.name,
            "severity": self.seen.severity,
            "message": self.seen.message,
            "fix": self.seen.fix.text,
            "evidence": self.seen.evidence,
            "basis": self.rule.basis,
        }

    def as_finding(self) -> Finding:
        """The same for a command that has findings of other kinds as well."""
        return Finding(
            self.rule.id,
            self.seen.message,
            where=self.seen.evidence,
            fix=self.seen.fix.text,
            severity=self.seen.severity,
            exit_code=self.rule.exit_code,
        )


def rule(
    rule_id: str,
    name: str = "",
    *,
    applies: str,
    source: str,
    basis: Basis | None = None,
    hang: bool = False,
    replaces: tuple[str, ...] = (),
    exit_code: ExitCode = ExitCode.ENVIRONMENT,
) -> Callable[[RuleFunction], RuleFunction]:
    """Mark a function as a rule; `rules()` finds it by that.

    A numbered rule is documented unless it says otherwise.
    """
    known: Basis = basis or ("documented" if name else "observed")

    def mark(look: RuleFunction) -> RuleFunction:
        one = Rule(
            rule_id, name or rule_id, applies, source, look, known, hang, replaces, exit_code
        )
        look.rule = one  # type: ignore[attr-defined]
        return look

    return mark


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, in the order of their numbers, those without one at the end in alphabetical
    order.
    """
    from iisft.machine.doctor import rules as package

    found: dict[str, Rule] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for thing in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(one := getattr(thing, "rule", None), Rule):
                if one.id in found and found[one.id] is not one:
                    raise RuntimeError(f"two rules are called {one.id}")
                found[one.id] = one
    return tuple(sorted(found.values(), key=lambda one: (one.id == one.name, one.id)))


def diagnose(case: Case) -> list[Diagnosis]:
    """Every finding of every rule: errors first, then warnings, then notes, each in the order of
    the rules.
    """
    found = [Diagnosis(one, seen) for one in rules() for seen in one.look(case)]
    return sorted(found, key=lambda diagnosis: _ORDER[diagnosis.seen.severity])


def causes_of_hang(case: Case) -> list[Diagnosis]:
    """What on this machine is known to let several GPUs hang at their first all-reduce."""
    case = replace(case, machine=replace(case.machine, deep=None))
    found = [Diagnosis(one, seen) for one in rules() if one.hang for seen in one.look(case)]
    return sorted(found, key=lambda diagnosis: _ORDER[diagnosis.seen.severity])


def numbers(version: str) -> tuple[int, ...] | None:
    """(2, 4, 1) for 2.4.1.post2; None for text without a number in front."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in _NUMBER.findall(match[0])) if match else None
