"""The registry of rules: a rule is a decorated function that yields what it sees.

Rules of a preset (iisft.presets.rules) and of a machine (iisft.machine.doctor.rules) are of one
kind; a room's Case is what its rules look at. Adding one is adding a function: rules are found in
these packages, and a test wants a machine where each fires and one where it is silent.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal, Self

from iisft.errors import ExitCode, Finding, Severity

Basis = Literal["documented", "reported", "inferred", "observed"]
# With the power off, as root, as root with a reboot or a new login after it, outside the container,
# a Python, packages, variables, the preset.
Stage = Literal[
    "hands", "root", "reboot", "login", "container", "python", "packages", "shell", "preset"
]
_IN_PRESET = "in-preset"
_SEVERITIES: tuple[Severity, ...] = ("error", "warn", "info")


class Fix(str):
    """How to fix a finding: the sentence that is printed, and lines of shell for --fix-plan.

    `commands` are empty where nothing can be typed. `done`: a shell test that holds once the reboot
    has done its part.
    """

    commands: tuple[str, ...]
    stage: Stage
    done: str

    def __new__(
        cls,
        text: str = "",
        commands: tuple[str, ...] = (),
        stage: Stage = "hands",
        done: str = "",
    ) -> Self:
        fix = super().__new__(cls, text)
        fix.commands, fix.stage, fix.done = commands, stage, done
        return fix


def change_preset(change: str, text: str = "") -> Fix:
    """The fix that is a --set."""
    return Fix(text or f"--set {change}", (f"# iisft train ... --set {change}",), "preset")


def seen(
    message: str,
    where: str = "",
    fix: str = "",
    severity: Severity = "error",
    *,
    in_preset: bool = False,
) -> Finding:
    """What a rule yields: the sentence, what it saw and where, and what fixes it.

    `in_preset`: the preset alone decides, whatever the machine is.
    """
    return Finding(_IN_PRESET if in_preset else "", message, where, fix, severity)


RuleFunction = Callable[[Any], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and what is known about it.

    `id` is the number in iisft's list of pitfalls, or the name where it has none. `basis`:
    documented by the vendor or the source, reported by users, inferred (then it only informs), or
    observed by iisft itself. `hang`: among the causes of a hanging all-reduce. `preset_id`:
    the id of what it says about a preset whatever the machine is.
    """

    id: str
    name: str
    applies: str
    source: str
    look: RuleFunction
    basis: Basis
    hang: bool = False
    exit_code: ExitCode = ExitCode.ENVIRONMENT
    preset_id: str = ""

    @property
    def explanation(self) -> str:
        text = inspect.getdoc(self.look) or ""
        return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))

    def findings(self, case: Any) -> Iterator[Finding]:
        """What the rule sees in this case, under its id."""
        for found in self.look(case):
            if found.id == _IN_PRESET:
                yield replace(found, id=self.preset_id, exit_code=ExitCode.INPUT)
            else:
                yield replace(found, id=self.id, exit_code=self.exit_code)


def rule(
    rule_id: str,
    name: str = "",
    *,
    applies: str,
    source: str,
    basis: Basis | None = None,
    hang: bool = False,
    exit_code: ExitCode = ExitCode.ENVIRONMENT,
    preset_id: str = "",
) -> Callable[[RuleFunction], RuleFunction]:
    """Mark a function as a rule; `collect` finds it by that.

    A numbered rule is documented unless it says otherwise.
    """
    known: Basis = basis or ("documented" if name else "observed")

    def mark(look: RuleFunction) -> RuleFunction:
        one = Rule(
            rule_id, name or rule_id, applies, source, look, known, hang, exit_code, preset_id
        )
        look.rule = one  # type: ignore[attr-defined]
        return look

    return mark


def preset_rule(
    rule_id: str, *, applies: str, source: str
) -> Callable[[RuleFunction], RuleFunction]:
    """Mark a rule about a preset that no machine changes."""
    return rule(rule_id, applies=applies, source=source, exit_code=ExitCode.INPUT)


def collect(*packages: ModuleType) -> tuple[Rule, ...]:
    """Every rule in the modules of the packages, by number, then the others by name."""
    found: dict[str, Rule] = {}
    names = [
        f"{package.__name__}.{module.name}"
        for package in packages
        for module in pkgutil.iter_modules(package.__path__)
    ]
    for name in names:
        for thing in vars(importlib.import_module(name)).values():
            one = getattr(thing, "rule", None)
            if isinstance(one, Rule) and found.setdefault(one.id, one) is not one:
                raise RuntimeError(f"two rules are called {one.id}")
    return tuple(sorted(found.values(), key=lambda one: (one.id == one.name, one.id)))


def judge(rules: Iterable[Rule], case: Any) -> list[Finding]:
    """Every finding of the rules: errors first, then warnings, then notes."""
    found = [finding for one in rules for finding in one.findings(case)]
    return sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity))
