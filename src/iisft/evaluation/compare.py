"""Several sets of predictions for the same rows: which is best, by how much, and how surely.

Only rows that all of them generated are compared; failures are counted apart, as in an evaluation.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iisft.errors import Finding, InputError, UsageError
from iisft.evaluation import statistics
from iisft.evaluation.classes import Labels
from iisft.evaluation.evaluate import Evaluation, Options, evaluate
from iisft.evaluation.fields import leaves
from iisft.evaluation.locate import Source, losses_at
from iisft.evaluation.outcome import NO_JSON, Outcome, judge, parse
from iisft.evaluation.reading import PredictionFile, Row
from iisft.evaluation.similarity import LONGEST, LONGEST_ALL, Scorer, TextSample
from iisft.evaluation.task import Task

BALANCED, FIELDS, ROUGE = "balanced_accuracy", "fields_right", "rougel"
_SHOWN_ROWS = 20
_CHANCE = 0.05


@dataclass(frozen=True, slots=True)
class Score:
    """One generated row: how right it is (0 to 1), its reference's class, and a digest of that."""

    right: float
    label: str
    reference: int  # its hash: the texts of millions of rows would not fit


@dataclass
class Pair:
    """The best against another: difference (best - other), 95 % interval, test, flipped rows."""

    best: str
    other: str
    difference: float
    interval: statistics.Interval
    p_value: float
    test: str
    won: list[int]
    lost: list[int]

    @property
    def chance(self) -> bool:
        return self.p_value >= _CHANCE

    def as_json(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "other": self.other,
            "difference": self.difference,
            "interval": self.interval,
            "p_value": self.p_value,
            "test": self.test,
            "only_best_right": len(self.won),
            "only_other_right": len(self.lost),
            "rows_only_best_right": self.won[:_SHOWN_ROWS],
            "rows_only_other_right": self.lost[:_SHOWN_ROWS],
        }


@dataclass
class Comparison:
    """The result of a comparison.

    `figure` is what they are compared by; `scores` holds the mean of each on the common rows.
    """

    figure: str
    rows: int
    names: list[str]
    scores: dict[str, float]
    evaluations: dict[str, Evaluation]
    losses: dict[str, dict[str, Any]]
    best: str
    tied: list[str]
    pairs: list[Pair]
    findings: list[Finding] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "figure": self.figure,
            "rows": self.rows,
            "best": self.best,
            "compared": [
                {"name": name, "score": self.scores[name]}
                | self.losses[name]
                | self.evaluations[name].counts
                | {"metrics": self.evaluations[name].metrics}
                for name in self.names
            ],
            "pairs": [pair.as_json() for pair in self.pairs],
            "baselines": self.evaluations[self.best].baselines,
            "findings": [finding.as_json() for finding in self.findings],
        }


def compare(sources: Sequence[Source], options: Options, columns: Mapping[str, str]) -> Comparison:
    """Compare predictions of the same rows.

    Args:
        sources: two or more.
        options: how to judge; the classes come from the references of the first.
        columns: as PredictionFile takes them.

    Raises:
        UsageError: fewer than two, or one of them twice.
        InputError: they have no rows in common, or different references.
    """
    names = [source.name for source in sources]
    if len(names) < 2 or len({source.path.resolve() for source in sources}) < len(names):
        raise UsageError(
            "compare-two",
            "compare needs two different sets of predictions",
            fix="iisft compare A B",
        )
    if len(set(names)) < len(names):
        names = [str(source.path) for source in sources]
    files = [PredictionFile(source.path, columns) for source in sources]
    found = [evaluate(file, options) for file in files]
    task = found[0].task
    if not task.references:
        message = "without references there is nothing to compare with"
        raise InputError(
            "no-references", message, where=str(files[0].path), fix="--columns reference=NAME"
        )
    findings = [finding for source in sources for finding in source.findings]
    findings += [finding for evaluation in found for finding in evaluation.findings]
    scored = _scores(files, task, options, findings)
    common = sorted(set.intersection(*(set(rows) for rows in scored)))
    _check_same_rows(scored, common, files, findings)
    table = {
        name: {row: rows[row] for row in common} for name, rows in zip(names, scored, strict=True)
    }
    scores = {name: _mean(rows.values(), task.labels) for name, rows in table.items()}
    losses = {name: losses_at(source) for name, source in zip(names, sources, strict=True)}
    top = max(scores.values())
    tied = [name for name in names if scores[name] == top]
    # of equals the one trained least: it is the least overfitted
    best = min(tied, key=lambda name: losses[name]["step"] or 0)
    pairs = [_pair(best, name, table, task.labels) for name in names if name != best]
    figure = BALANCED if task.labels else FIELDS if task.json else ROUGE
    evaluations = dict(zip(names, found, strict=True))
    return Comparison(
        figure, len(common), names, scores, evaluations, losses, best, tied, pairs, findings
    )


def _scores(
    files: Sequence[PredictionFile], task: Task, options: Options, findings: list[Finding]
) -> list[dict[int, Score]]:
    """Every generated row's score in each file."""
    if task.labels or task.json:
        return [
            {row.row: score for row in file if (score := _score(row, task, options)) is not None}
            for file in files
        ]
    scorer, sample = (
        Scorer(LONGEST_ALL if options.text_rows else LONGEST),
        TextSample(options.text_rows or None),
    )
    texts: dict[int, tuple[str, dict[str, str]]] = {}
    digests: list[dict[int, int]] = [{} for _ in files]
    for number, file in enumerate(files):
        for row in file:
            if row.reference is not None and not judge(row, options.error_marker).error:
                texts.setdefault(row.row, (row.reference, {}))[1][str(number)] = row.prediction
                digests[number][row.row] = hash(row.reference)
    whole = {row: pair for row, pair in texts.items() if len(pair[1]) == len(files)}
    for key, (reference, predictions) in whole.items():
        sample.add(key, reference, predictions)
    chosen = [
        {row: pair for row, *pair in sample.chosen(str(number))} for number in range(len(files))
    ]
    shared = set.intersection(*map(set, chosen))
    if len(shared) < len(whole):
        message = f"compared by ROUGE-L on a random sample of {len(shared)} of {len(whole)} rows"
        findings.append(
            Finding("text-sample", message, fix="--text-rows all uses every row", severity="info")
        )
    scored = [
        {row: Score(scorer.score(*rows[row])[ROUGE], "", digests[number][row]) for row in shared}
        for number, rows in enumerate(chosen)
    ]
    findings += scorer.finding()
    return scored


def _score(row: Row, task: Task, options: Options) -> Score | None:
    outcome = judge(row, options.error_marker)
    if outcome.error or row.reference is None:
        return None
    reference = parse(row.reference)
    if task.labels is not None:
        label = task.labels.of(row.reference, reference)
        if label is None:
            return None
        right = float(task.labels.of(row.prediction, outcome.value) == label)
        return Score(right, label, hash(row.reference))
    return Score(_fields_right(reference, outcome), "", hash(row.reference))


def _fields_right(reference: Any, outcome: Outcome) -> float:
    """The share of the reference's fields that the answer gets exactly right.

    All or nothing where the reference is not an object.
    """
    expected = dict(leaves(reference))
    if not expected:
        return float(outcome.value == reference and reference is not NO_JSON)
    given = dict(leaves(outcome.value))
    right = sum(
        pointer in given and bool(given[pointer] == value) for pointer, value in expected.items()
    )
    return right / len(expected)


def _check_same_rows(
    scored: Sequence[Mapping[int, Score]],
    common: Sequence[int],
    files: Sequence[PredictionFile],
    findings: list[Finding],
) -> None:
    where = ", ".join(str(file.path) for file in files)
    if not common:
        message = "no row was generated by all of them, so there is nothing to compare"
        raise InputError(
            "no-common-rows", message, where=where, fix="predict the same dataset with each"
        )
    different = [row for row in common if len({rows[row].reference for rows in scored}) > 1]
    if different:
        shown = ", ".join(map(str, different[:5]))
        raise InputError(
            "other-rows",
            f"these are not predictions for the same rows: {len(different)} references differ "
            f"(row {shown})",
            where=where,
            fix="predict the same dataset with each",
        )
    left_out = len(set().union(*scored)) - len(common)
    if left_out:
        message = (
            f"{left_out} rows were not generated by all of them and are left out of the comparison"
        )
        findings.append(Finding("rows-left-out", message, where=where, severity="warn"))


def _mean(rows: Any, labels: Labels | None) -> float:
    """Balanced accuracy (the mean over classes) where there are classes, else the plain mean."""
    groups: dict[str, list[float]] = {}
    for score in rows:
        groups.setdefault(score.label if labels else "", []).append(score.right)
    return sum(sum(values) / len(values) for values in groups.values()) / len(groups)


def _pair(
    best: str, other: str, table: Mapping[str, Mapping[int, Score]], labels: Labels | None
) -> Pair:
    one, two = table[best], table[other]
    won = [row for row in one if one[row].right > two[row].right]
    lost = [row for row in one if one[row].right < two[row].right]
    difference = _mean(one.values(), labels) - _mean(two.values(), labels)
    if labels is None:
        differences = [one[row].right - two[row].right for row in one]
        interval, p_value = statistics.mean_interval(differences), statistics.sign_flip(differences)
        return Pair(
            best, other, difference, interval, p_value, "paired permutation test", won, lost
        )
    joint = Counter((one[row].label, bool(one[row].right), bool(two[row].right)) for row in one)
    interval = statistics.recall_difference_interval(joint)
    return Pair(
        best,
        other,
        difference,
        interval,
        statistics.mcnemar(len(won), len(lost)),
        "exact McNemar test",
        won,
        lost,
    )
