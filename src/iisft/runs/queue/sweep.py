"""The runs of a sweep: every combination of the values that are asked for, all of them checked
before one is queued.
"""

import contextlib
import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iisft.errors import CheckFailed, ExitCode, Finding, IisftError, RunStateError, UsageError
from iisft.estimate.memory import GIB
from iisft.presets.documents import describe_override, parse_override
from iisft.runs.plan.plan import Plan
from iisft.runs.plan.request import Request
from iisft.runs.queue import changes
from iisft.runs.record.families import members_of
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace

MOST = 200
_NAMED = 5
_BRACKETS = {"[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the family: its name, the values by which it differs, as typed, and every
    --set of it.
    """

    name: str
    values: Mapping[str, str]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """A point with its plan, None where not even that could be made, and what was found."""

    point: Point
    plan: Plan | None
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        return self.plan is not None and not any(one.severity == "error" for one in self.findings)


def points(
    overrides: Sequence[str], family: str, *, drawn: int | None = None, seed: int = 0
) -> list[Point]:
    """Every combination, in the order of the command line; with `drawn` so many of them at random.

    Raises:
        UsageError: no --set has several values, one is empty, two are the same, or they are too
        many.
    """
    keys = [text.partition("=")[0].strip() for text in overrides]
    choices = [_choices(text) for text in overrides]
    varied = [number for number, found in enumerate(choices) if len(found) > 1]
    if not varied:
        raise UsageError(
            "sweep-single",
            "a sweep needs a --set with several values",
            fix="--set lora.rank=16,64; a list is one value: --set lora.target=[q_proj,v_proj]",
        )
    for number in varied:
        if keys.count(keys[number]) > 1:
            raise UsageError("sweep-twice", f"--set {keys[number]} is given twice")
    total = math.prod(len(choices[number]) for number in varied)
    if drawn is not None and not 0 < drawn <= total:
        raise UsageError(
            "sweep-random", f"--random takes 1 to {total} of {total} combinations, not {drawn}"
        )
    if (drawn or total) > MOST:
        text = f"a sweep has at most {MOST} runs, this would be {total}"
        raise UsageError("sweep-size", text, fix=f"--random {MOST}, or fewer values")
    numbers = sorted(random.Random(seed).sample(range(total), drawn)) if drawn else range(total)
    width = len(str(len(numbers)))
    return [
        Point(
            f"{family}-{place:0{width}}",
            {keys[number]: chosen[number] for number in varied},
            tuple(f"{key}={value}" for key, value in zip(keys, chosen, strict=True)),
        )
        for place, chosen in enumerate((_combination(choices, number) for number in numbers), 1)
    ]


def _combination(choices: Sequence[Sequence[str]], number: int) -> list[str]:
    """The one of that number, the last key counting fastest."""
    chosen = []
    for found in reversed(choices):
        number, place = divmod(number, len(found))
        chosen.append(found[place])
    return chosen[::-1]


def _choices(override: str) -> list[str]:
    """The values of one --set. A comma inside of brackets, braces or quotes belongs to a value, and
    so does every comma of a variable, whose text is taken as it stands.
    """
    key, separator, text = override.partition("=")
    section = key.strip().partition(".")[0]
    if not separator or not section:
        parse_override(override)  # which says what is missing
    found = [text] if section == "env" else list(_parts(text))
    if len(found) > 1 and "" in found:
        raise UsageError("sweep-empty", f"an empty value in {describe_override(override)}")
    if len(set(found)) < len(found):
        text = f"{describe_override(override)} names a value twice"
        raise UsageError("sweep-twice", text)
    if len(found) > 1 and section == "notify":
        text = f"notices don't change what is trained: {key} takes one value"
        raise UsageError("sweep-key", text, fix=f"--set {key}=[A,B]")
    return found


def _parts(text: str) -> Iterator[str]:
    begin, open_until = 0, ""
    for place, letter in enumerate(text):
        if open_until.endswith(letter):
            open_until = open_until[:-1]
        elif open_until.endswith(("'", '"')):
            continue
        elif letter in _BRACKETS:
            open_until += _BRACKETS[letter]
        elif letter in "'\"" and (open_until or not text[begin:place].strip()):
            open_until += letter
        elif letter == "," and not open_until:
            yield text[begin:place].strip()
            begin = place + 1
    yield text[begin:].strip()


def check(
    found: Sequence[Point],
    request: Request,
    plan_of: Callable[[Request], Plan],
    say: Callable[[str], None],
) -> list[Checked]:
    """Plan every point; nothing is written."""
    checked = []
    for number, point in enumerate(found, 1):
        say(f"checking {point.name} ({number} of {len(found)}): {shown(point)}")
        try:
            plan = plan_of(replace(request, overrides=point.overrides, name=point.name))
        except CheckFailed as error:
            checked.append(Checked(point, None, error.findings))
        except IisftError as error:
            checked.append(Checked(point, None, (error.finding,)))
        else:
            checked.append(Checked(point, plan, plan.findings))
    return checked


def shown(point: Point) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.values.items())


def together(checked: Sequence[Checked], runs: Path) -> list[Finding]:
    """Every finding once, with the points that it is about, and what concerns all of them."""
    about: dict[Finding, list[Point]] = {}
    for one in checked:
        for finding in one.findings:
            about.setdefault(finding, []).append(one.point)
    found = []
    for finding, named in about.items():
        if len(named) < len(checked):
            names = ", ".join(point.name for point in named[:_NAMED])
            names += ", ..." if len(named) > _NAMED else ""
            label = f"{names} ({shown(named[0])})" if len(named) == 1 else names
            finding = replace(finding, message=f"{label}: {finding.message}")
        found.append(finding)
    return [*found, *_of_family(checked, runs)]


def _of_family(checked: Sequence[Checked], runs: Path) -> Iterator[Finding]:
    varied = checked[0].point.values.keys()
    if "train.seed" in varied:
        text = "train.seed is varied: the rows come in another order in each run"
        yield Finding("sweep-seed", text, severity="info")
    if "data.eval" in varied:
        text = "data.eval is varied: evaluation losses on different rows can't be compared"
        yield Finding("sweep-eval", text, where="data.eval", severity="warn")
    plans = [one.plan for one in checked if one.plan is not None]
    if plans and not any(plan.preset.data.eval for plan in plans):
        yield Finding(
            "sweep-unevaluated",
            "no evaluation loss will rank these runs: compare takes the predictions of each",
            where="data.eval",
            fix="--set data.eval=NAME --set save.eval_every_steps=N",
            severity="warn",
        )
    needed = sum(plan.forecast.disk_gib for plan in plans if plan.forecast is not None)
    place = next((one for one in (runs, *runs.parents) if one.exists()), runs)
    free = shutil.disk_usage(place).free / GIB
    if len(plans) == len(checked) and needed > free:
        yield Finding(
            "sweep-disk",
            f"all {len(plans)} runs together need {needed:.1f} GiB, {free:.1f} GiB are free",
            where=str(runs),
            fix="free some space, or --set save.keep=1, or --random with fewer runs",
            exit_code=ExitCode.ENVIRONMENT,
        )


def check_free(family: str, workspace: Workspace) -> None:
    """
    Raises:
        RunStateError: a run or a family has that name.
    """
    taken = [RunFolder(workspace.runs / family)] if (workspace.runs / family).exists() else []
    if taken or (taken := members_of(workspace, family)):
        raise RunStateError(
            "sweep-taken",
            f"the name {family} is taken by {taken[0].id}",
            where=str(taken[0].path),
            fix="another --name, or leave it out",
        )


def queue(checked: Sequence[Checked], workspace: Workspace, family: str) -> list[RunFolder]:
    """Put every run at the end of the queue, or none: afterwards somebody has to start it.

    Raises:
        IisftError: as changes.add.
    """
    added: list[RunFolder] = []
    try:
        for one in checked:
            assert one.plan is not None
            added.append(changes.add(one.plan, workspace, family))
    except BaseException:
        for folder in added:
            with contextlib.suppress(IisftError):
                changes.remove(workspace, [folder.id])
        raise
    return added
