"""The runs of a family, best first: by their predictions where there are some, else by their
evaluation losses; and whether the order can be chance.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iisft.errors import Finding, RunStateError
from iisft.evaluation import locate
from iisft.evaluation.compare import Comparison, Pair, compare
from iisft.evaluation.evaluate import Options
from iisft.evaluation.explain import verdict
from iisft.evaluation.locate import Source
from iisft.quoting import shell_word
from iisft.runs.record.checkpoints import eval_losses
from iisft.runs.record.families import members_of, varied
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.selection import BASE
from iisft.runs.record.state import RunStatus, brief_of
from iisft.workspace import Workspace

EVAL_LOSS = "eval_loss"


@dataclass(frozen=True)
class Member:
    """One run: the values that only it has, its lowest evaluation loss, its predictions."""

    status: RunStatus
    values: Mapping[str, Any]
    eval_loss: float | None
    eval_step: int | None
    source: Source | None

    @property
    def id(self) -> str:
        return self.status.folder.id


@dataclass(frozen=True)
class Family:
    """The members from best to worst, those that can't be ranked last.

    `figure` is what they are ranked by, None where nothing is known yet; `comparison` is that of
    the predictions, with p-values that count all its tests.
    """

    name: str
    members: tuple[Member, ...]
    figure: str | None
    comparison: Comparison | None
    findings: tuple[Finding, ...]

    def score(self, member: Member) -> float | None:
        if self.comparison is None or member.source is None:
            return None
        return self.comparison.scores.get(member.source.name)

    def pair(self, member: Member) -> Pair | None:
        """The best one against this one."""
        pairs = self.comparison.pairs if self.comparison else []
        name = member.source.name if member.source else None
        return next((pair for pair in pairs if pair.other == name), None)

    @property
    def ranked(self) -> list[Member]:
        if self.comparison is not None:
            return [member for member in self.members if self.score(member) is not None]
        return [member for member in self.members if member.eval_loss is not None]

    def as_json(self) -> dict[str, Any]:
        ranked = self.ranked
        return {
            "family": self.name,
            "figure": self.figure,
            "best": ranked[0].id if ranked else None,
            "runs": [self._run(member, ranked) for member in self.members],
            "sentences": sentences(self),
            "findings": [finding.as_json() for finding in self.findings],
        }

    def _run(self, member: Member, ranked: Sequence[Member]) -> dict[str, Any]:
        pair = self.pair(member)
        return {
            "rank": ranked.index(member) + 1 if member in ranked else None,
            "id": member.id,
            "state": member.status.state,
            "values": dict(member.values),
            "eval_loss": member.eval_loss,
            "eval_step": member.eval_step,
            "predictions": member.source.name if member.source else None,
            "score": self.score(member),
            "behind": pair and pair.difference,
            "interval": pair and pair.interval,
            "p_value": pair and pair.p_value,
            "chance": pair and pair.chance,
        }


def find(
    workspace: Workspace, name: str, options: Options, columns: Mapping[str, str], data: str | None
) -> Family:
    """Rank a family.

    Args:
        workspace: where its runs are.
        name: the family's.
        options, columns: how predictions are judged, as compare takes them.
        data: by the predictions of this dataset; without it, of the one that most runs predicted.

    Raises:
        RunStateError: there is no such family, or two of its runs can't be read.
        InputError: its predictions can't be compared.
    """
    folders = [folder for folder in members_of(workspace, name) if folder.read_record()]
    if not folders:
        raise RunStateError("no-such-family", f"no sweep named {name!r}", fix="iisft sweep")
    members = _members(folders, data)
    # of runs that answer alike the one with the lowest loss is named
    members.sort(key=lambda member: math.inf if member.eval_loss is None else member.eval_loss)
    predicted = [member.source for member in members if member.source is not None]
    comparison = _corrected(compare(predicted, options, columns)) if len(predicted) > 1 else None
    figure = comparison.figure if comparison else None
    if comparison is None and any(member.eval_loss is not None for member in members):
        figure = EVAL_LOSS
    found = Family(name, (), figure, comparison, ())
    order = {member.id: place for place, member in enumerate(members)}

    def rank(member: Member) -> tuple[bool, bool, float, int]:
        score = found.score(member)
        unknown = score is None if comparison else member.eval_loss is None
        best = member.source.name if member.source else None
        first = comparison is not None and comparison.best == best
        return (unknown, not first, -(score or 0.0), order[member.id])

    ranked = tuple(sorted(members, key=rank))
    findings = [*(comparison.findings if comparison else ()), *_findings(ranked, found, data)]
    return replace(found, members=ranked, findings=tuple(findings))


def _members(folders: Sequence[RunFolder], data: str | None) -> list[Member]:
    records = [record for folder in folders if (record := folder.read_record())]
    differing = varied(records)
    sources = [
        [source for source in locate.of_run(folder) if source.checkpoint != BASE]
        for folder in folders
    ]
    # of the dataset that most of them predicted; of several the first by its name
    counted = Counter(name for found in sources for name in {source.data for source in found})
    data = data or min(counted, key=lambda name: (-counted[name], name or ""), default=None)
    members = []
    for number, folder in enumerate(folders):
        losses = eval_losses(folder.read_events())
        step = min(losses, key=lambda at: (losses[at], at), default=None)
        fitting = [source for source in sources[number] if source.data == data]
        members.append(
            Member(
                brief_of(folder),
                {key: values[number] for key, values in differing.items()},
                losses[step] if step is not None else None,
                step,
                locate.last(fitting) if fitting else None,
            )
        )
    return members


def _corrected(found: Comparison) -> Comparison:
    """Holm's correction: with many runs one of them is far behind the best by chance alone."""
    least, corrected = 0.0, {}
    for place, pair in enumerate(sorted(found.pairs, key=lambda pair: pair.p_value)):
        least = max(least, min(1.0, (len(found.pairs) - place) * pair.p_value))
        corrected[pair.other] = least
    pairs = [replace(pair, p_value=corrected[pair.other]) for pair in found.pairs]
    return replace(found, pairs=pairs)


def _findings(members: Sequence[Member], found: Family, data: str | None) -> Iterator[Finding]:
    unfinished = [member for member in members if member.status.state != "finished"]
    if unfinished:
        names = ", ".join(f"{member.id} {member.status.state}" for member in unfinished)
        yield Finding(
            "family-unfinished",
            f"not finished, so ranked by what is there: {names}",
            fix="iisft queue",
            severity="warn",
        )
    finished = [member for member in members if member.status.state == "finished"]
    predicted = [member for member in members if member.source is not None]
    without = [member for member in finished if member.source is None]
    if predicted and without:
        name = data or next(member.source.data for member in predicted if member.source)
        yield Finding(
            "family-unpredicted",
            f"without predictions of {name}, so not ranked by them: "
            f"{', '.join(member.id for member in without)}",
            fix=f"iisft predict {shell_word(without[0].id)} --data {shell_word(name or 'NAME')}",
            severity="warn",
        )
    if finished and not found.ranked:
        yield Finding(
            "family-unranked",
            "predictions of the same rows by each run would rank them",
            fix=f"iisft predict {shell_word(finished[0].id)} --data NAME",
            severity="info",
        )
    if len({member.values.get("data.eval") for member in members}) > 1 and not found.comparison:
        text = "the runs evaluated different rows: their losses can't be compared"
        yield Finding("family-eval", text, where="data.eval", severity="warn")


def sentences(found: Family) -> list[str]:
    """Which is best, and how sure that is."""
    ranked = found.ranked
    if not ranked:
        return ["nothing to rank them by yet: no evaluation loss and no predictions"]
    if found.comparison is not None:
        said = verdict(found.comparison)
        if len(found.comparison.pairs) > 1:
            said.append(
                f"p counts all {len(found.comparison.pairs)} comparisons (Holm); it is about the "
                "rows: another seed may order the runs otherwise."
            )
        return said
    best = ranked[0]
    said = [
        f"{best.id} has the lowest evaluation loss, {best.eval_loss:.4f} at step {best.eval_step}."
    ]
    if len(ranked) > 1:
        second = ranked[1]
        assert second.eval_loss is not None and best.eval_loss is not None
        record = best.status.folder.read_record()
        rows = (record and record.setting("data.eval")) or "NAME"
        predict = f"iisft predict {shell_word(best.id)} --data {shell_word(str(rows))}"
        said.append(
            f"{second.id} follows with {second.eval_loss - best.eval_loss:.4f} more: whether that "
            f"is chance can't be told from the losses alone. Predict the same rows with each "
            f"({predict}, ...), and compare again for intervals and tests."
        )
    return said
