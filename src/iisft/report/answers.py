"""Predictions as the page shows them: each row once, with every answer to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iisft.errors import Finding, IisftError
from iisft.evaluation.classes import NO_LABEL, shown
from iisft.evaluation.evaluate import Evaluation, Options, evaluate
from iisft.evaluation.explain import sentences_with_tone
from iisft.evaluation.locate import Source, base_of, losses_at
from iisft.evaluation.outcome import NO_JSON, Outcome, judge, parse
from iisft.evaluation.reading import PredictionFile, Row
from iisft.evaluation.task import Task
from iisft.evaluation.texts import LANGUAGES

MOST_ROWS = 1000
_MOST_CHARACTERS = 20_000
_CUT = " ... [+{} characters]"


@dataclass
class Judged:
    """One dataset's predictions, with an evaluation of each source that could be read."""

    data: str
    options: Options
    sources: list[tuple[Source, PredictionFile, Evaluation]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def judged(sources: Sequence[Source], options: Options) -> Judged:
    """Evaluate predictions of one dataset; a file that can't be read becomes a finding.

    Args:
        sources: checkpoints of one run, or one from each of several runs.
        options: how to judge.
    """
    found = Judged(sources[0].data or sources[0].path.name, options)
    for source in sources:
        try:
            file, base = PredictionFile(source.path), base_of(source)
            evaluation = evaluate(file, options, PredictionFile(base.path) if base else None)
        except IisftError as error:
            message = f"{source.name}: {error.message}"
            found.findings.append(replace(error.finding, message=message, severity="warn"))
            continue
        evaluation.findings[:0] = source.findings
        found.findings += evaluation.findings
        found.sources.append((source, file, evaluation))
    return found


def answers_of(found: Judged, most_rows: int) -> dict[str, Any]:
    """The rows with each source's answers.

    Args:
        found: what was evaluated.
        most_rows: at most so many rows are shown, the same for every source; figures cover all.

    Returns:
        `data`; `rows` {row, prompt, reference, label}, each once; `sets`, one per source, whose
        `answers` are {place of the row: [prediction, words to filter by, class]}.
    """
    rows: list[dict[str, Any]] = []
    index: dict[int, int] = {}
    sets = []
    for source, file, evaluation in found.sources:
        chosen = _sample(evaluation.counts["rows"], most_rows)
        answers = _collect(file, evaluation.task, found.options, rows, index, chosen)
        sets.append(_set(source, evaluation) | {"answers": answers})
    return {"data": found.data, "rows": rows, "sets": sets}


def _set(source: Source, evaluation: Evaluation) -> dict[str, Any]:
    labels = evaluation.task.labels
    return {
        "name": source.name,
        "run": source.run.id if source.run else None,
        "checkpoint": source.checkpoint,
        "counts": evaluation.counts,
        "metrics": evaluation.metrics,
        "baselines": evaluation.baselines,
        "sources": evaluation.sources,
        "sentences": {
            language: sentences_with_tone(evaluation, language) for language in LANGUAGES
        },
        "label": labels.by if labels else None,
        "json": evaluation.task.json,
        "generation": source.facts.get("generation"),
        "losses": losses_at(source),
        "findings": [[finding.severity, finding.message] for finding in evaluation.findings],
    }


def _sample(rows: int, most: int) -> set[int] | None:
    """Places in the file (from 0) to show, evenly spread; None = all."""
    return None if rows <= most else {number * rows // most for number in range(most)}


def _collect(
    file: PredictionFile,
    task: Task,
    options: Options,
    rows: list[dict[str, Any]],
    index: dict[int, int],
    chosen: set[int] | None,
) -> dict[int, list[Any]]:
    """Place among `rows` -> [prediction, words to filter by, class of the answer].

    New rows are added to `rows`. A row with a known number and another reference is left out.
    """
    answers: dict[int, list[Any]] = {}
    for number, row in enumerate(file):
        if chosen is not None and number not in chosen:
            continue
        reference = NO_JSON if row.reference is None else parse(row.reference)
        place = index.get(row.row)
        if place is None:
            label = (
                task.labels.of(row.reference, reference)
                if task.labels and row.reference is not None
                else None
            )
            place = index[row.row] = len(rows)
            rows.append(
                {"row": row.row, "prompt": _cut(row.prompt), "reference": _cut(row.reference)}
            )
            if label is not None:
                rows[-1]["label"] = shown(label)
        elif rows[place]["reference"] != _cut(row.reference):
            continue  # another dataset's row of the same number
        answers[place] = _answer(row, reference, task, options)
    return answers


def _answer(row: Row, reference: Any, task: Task, options: Options) -> list[Any]:
    outcome = judge(row, options.error_marker)
    label = None
    if task.labels is not None and not outcome.error:
        label = task.labels.of(row.prediction, outcome.value) or NO_LABEL
    text = _cut(row.error) if outcome.error and row.error else _cut(row.prediction)
    words = _words(row, reference, outcome, label, task)
    return [text, words, shown(label) if label is not None else None]


def _words(row: Row, reference: Any, outcome: Outcome, label: str | None, task: Task) -> list[str]:
    """The words that the page filters by: error, right or wrong, and other faults.

    Without a reference an answer is neither right nor wrong.
    """
    if outcome.error:
        return ["error"]
    words = []
    if row.reference is not None:
        expected = task.labels.of(row.reference, reference) if task.labels else None
        if expected is not None:
            right = label == expected
        elif task.json:
            right = outcome.valid_json and outcome.value == reference
        else:
            right = outcome.exact
        words.append("right" if right else "wrong")
        if right and expected is not None and not (outcome.exact or outcome.value == reference):
            words.append("differs")
    flags = {
        "invalid_json": task.json and not outcome.valid_json,
        "empty": outcome.empty,
        "cut_off": outcome.cut_off,
        "repeated": outcome.loop,
    }
    return words + [name for name, is_so in flags.items() if is_so]


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _MOST_CHARACTERS:
        return text
    return text[:_MOST_CHARACTERS] + _CUT.format(len(text) - _MOST_CHARACTERS)
