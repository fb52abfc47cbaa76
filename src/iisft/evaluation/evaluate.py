"""One pass over the predictions: counts and figures with intervals, beside trivial answers'."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iisft.errors import EnvironmentFault, Finding, InputError
from iisft.evaluation.classes import NO_LABEL
from iisft.evaluation.fields import FieldTally, SchemaCheck
from iisft.evaluation.outcome import DEFAULT_ERROR_MARKER, NO_JSON, Outcome, judge, parse
from iisft.evaluation.reading import PredictionFile, Row
from iisft.evaluation.similarity import LONGEST, LONGEST_ALL, Scorer, TextSample, measure
from iisft.evaluation.statistics import class_metrics, constant_classes, rate_interval
from iisft.evaluation.task import Task, scan
from iisft.json_values import DEEPEST

_MOST_SOURCES = 20  # a column of that name with more values is something else
_TEXTS_OF_SOURCE = 200  # rows for its text figures
MODEL, MAJORITY, COPY, BASE = "model", "most frequent answer", "copy of the input", "base model"


@dataclass(frozen=True)
class Options:
    """How to evaluate.

    Args:
        label: as task.scan takes it.
        classes: as Labels.names.
        schema: a JSON Schema's file.
        error_marker: a prediction that is exactly this is a generation error.
        text_rows: most rows for the text figures; 0 = none; None = where the answers are text, as
            many as take about 20 s.
    """

    label: str | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    schema: Path | None = None
    error_marker: str = DEFAULT_ERROR_MARKER
    text_rows: int | None = None


@dataclass
class Tally:
    """Counts of one system's answers (the model's, or a baseline's)."""

    task: Task
    rows: int = 0
    valid_json: int = 0
    exact: int = 0
    referenced: int = 0
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, row: Row, label: str | None, prediction: str, value: Any) -> None:
        """Count an answer, given as text and as parsed value; `label`: its reference's class."""
        self.rows += 1
        self.valid_json += value is not NO_JSON
        if row.reference is not None:
            self.referenced += 1
            self.exact += prediction.strip() == row.reference.strip()
        if label is not None and self.task.labels is not None:
            self.confusion[label, self.task.labels.of(prediction, value) or NO_LABEL] += 1

    def metrics(self) -> dict[str, Any]:
        """Rates from 0 to 1, with `intervals`."""
        found: dict[str, Any] = {}
        intervals: dict[str, Any] = {}
        if self.task.json and self.rows:
            found["valid_json"] = self.valid_json / self.rows
            intervals["valid_json"] = rate_interval(self.valid_json, self.rows)
        if self.referenced:
            found["exact_match"] = self.exact / self.referenced
            intervals["exact_match"] = rate_interval(self.exact, self.referenced)
        if self.confusion:
            classes = class_metrics(self.confusion)
            intervals |= classes.pop("intervals")
            found |= classes
        return found | {"intervals": intervals}


@dataclass
class Evaluation:
    """The result of an evaluation. `sources` has rows and metrics of each dataset that the rows
    come from, where there are several.
    """

    file: PredictionFile
    task: Task
    counts: dict[str, int]
    metrics: dict[str, Any]
    baselines: dict[str, dict[str, Any]]
    findings: list[Finding]
    label_by: str | None
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return self.counts | {
            "label": self.label_by,
            "metrics": self.metrics,
            "baselines": self.baselines,
            "sources": self.sources,
            "findings": [finding.as_json() for finding in self.findings],
            "file": str(self.file.path),
            "columns": dict(self.file.columns),
        }


class Evaluator:
    """The pass over one file for one task."""

    def __init__(
        self, file: PredictionFile, task: Task, options: Options, source: str | None = None
    ) -> None:
        """`source`: only the rows of that dataset."""
        self.file, self.task, self.options, self.source = file, task, options, source
        self.rows_of = Counter[str]()
        self.counts = Counter[str]()
        self.systems = {MODEL: Tally(task)}
        if task.majority is not None:
            self.systems[MAJORITY] = Tally(task)
            self._majority = task.majority, parse(task.majority)
        # a copied prompt is a rival only where answers are text: it is not the JSON asked for
        self._copies = bool(task.prompts) and not task.json
        if self._copies:
            self.systems[COPY] = Tally(task)
        self.fields = FieldTally() if task.json else None
        self.schema = SchemaCheck(options.schema) if options.schema else None
        rows = options.text_rows
        wanted = task.references and (rows != 0 if rows is not None else not task.json)
        self.sample = TextSample(rows) if wanted else None
        self.findings: list[Finding] = []

    def run(self) -> Evaluation:
        """Read every row.

        Raises:
            CheckFailed: broken lines.
            EnvironmentFault: a package that the requested figures need is missing.
        """
        for row in self.file:
            if self.source not in (None, row.source):
                continue
            if row.source is not None:
                self.rows_of[row.source] += 1
            self.counts["rows"] += 1
            outcome = judge(row, self.options.error_marker)
            if outcome.error:
                self.counts["generation_errors"] += 1
                continue
            self._take(row, outcome)
        names = (
            "rows",
            "generated",
            "generation_errors",
            "valid_json",
            "empty",
            "cut_off",
            "repeated",
            "fenced_json",
        )
        counts = {name: self.counts[name] for name in (*names, "without_reference")}
        if self.counts["thoughts"]:
            names_of_thoughts = ("thoughts", "empty_thoughts", "thought_characters")
            counts |= {name: self.counts[name] for name in names_of_thoughts}
        metrics = self.systems[MODEL].metrics()
        baselines = {
            name: tally.metrics()
            for name, tally in self.systems.items()
            if name != MODEL and tally.rows
        }
        self._add_text(metrics, baselines)
        if self.fields is not None and self.fields.fields:
            metrics |= self.fields.as_json()
        if self.schema is not None and self.counts["generated"]:
            metrics["schema_valid"] = self.schema.fits / self.counts["generated"]
            metrics["schema_faults"] = dict(self.schema.faults.most_common(10))
            metrics["intervals"]["schema_valid"] = rate_interval(
                self.schema.fits, self.counts["generated"]
            )
        baselines = constant_classes(self.systems[MODEL].confusion) | baselines
        label_by = self.task.labels.by if self.task.labels else None
        findings = [*self.file.findings, *self.findings, *_findings(self, counts)]
        return Evaluation(self.file, self.task, counts, metrics, baselines, findings, label_by)

    def _take(self, row: Row, outcome: Outcome) -> None:
        counts = self.counts
        counts["generated"] += 1
        counts["valid_json"] += outcome.valid_json
        counts["empty"] += outcome.empty
        counts["cut_off"] += outcome.cut_off
        counts["repeated"] += outcome.loop
        counts["fenced_json"] += outcome.fenced
        if row.thought is not None:
            counts["thoughts"] += 1
            counts["empty_thoughts"] += not row.thought
            counts["thought_characters"] += len(row.thought)
        counts["too_deep"] += outcome.deep
        counts["without_reference"] += row.reference is None
        if self.schema is not None and outcome.valid_json:
            self.schema.add(outcome.value)
        label = None
        if row.reference is not None:
            expected = parse(row.reference)
            if self.task.labels is not None:
                label = self.task.labels.of(row.reference, expected)
                counts["without_label"] += label is None
            if self.fields is not None and isinstance(expected, dict):
                self.fields.add(expected, outcome.value, row.prompt)
        self.systems[MODEL].add(row, label, row.prediction, outcome.value)
        texts = {MODEL: row.prediction}
        if MAJORITY in self.systems:
            self.systems[MAJORITY].add(row, label, *self._majority)
            texts[MAJORITY] = self._majority[0]
        if self._copies and row.prompt is not None:
            self.systems[COPY].add(row, label, row.prompt, NO_JSON)
            texts[COPY] = row.prompt
        if self.sample is not None and row.reference is not None:
            self.sample.add(row.row, row.reference, texts)

    def _add_text(self, metrics: dict[str, Any], baselines: dict[str, dict[str, Any]]) -> None:
        if self.sample is None:
            return
        try:
            scorer = Scorer(LONGEST_ALL if self.options.text_rows else LONGEST)
        except EnvironmentFault as fault:  # only an explicit --text-rows insists on the figures
            if self.options.text_rows is not None:
                raise
            message = f"BLEU, ROUGE and chrF are left out: {fault.message}"
            self.findings.append(replace(fault.finding, message=message, severity="warn"))
            return
        for name, found in {MODEL: metrics, **baselines}.items():
            text = measure(scorer, self.sample, name)
            found["intervals"] |= text.pop("intervals", {})
            found |= text
        self.findings += scorer.finding()


def evaluate(
    file: PredictionFile, options: Options, base: PredictionFile | None = None
) -> Evaluation:
    """Evaluate a file of predictions.

    Args:
        file: the predictions.
        options: how.
        base: what the base model predicts for the same rows; it becomes a baseline.

    Raises:
        InputError, CheckFailed: the file, the schema or the label is wrong.
        EnvironmentFault: a package is missing.
    """
    task = scan(file, options.label, options.classes)
    if options.label not in (None, "none") and not task.references:
        raise InputError(
            "no-references",
            "no row has a reference, so there is no class to compare with",
            where=str(file.path),
            fix="--columns reference=NAME,prediction=NAME",
        )
    whole = Evaluator(file, task, options)
    found = whole.run()
    if 1 < len(whole.rows_of) <= _MOST_SOURCES:
        found.sources = {
            name: _of_source(file, task, options, name) for name in sorted(whole.rows_of)
        }
    if base is not None:
        other = Evaluator(base, task, options).run()
        found.baselines[BASE] = {
            name: value for name, value in other.metrics.items() if name != "fields"
        }
    return found


def _of_source(file: PredictionFile, task: Task, options: Options, name: str) -> dict[str, Any]:
    """Rows and figures of one dataset: those by which the whole is judged, without its tables."""
    rows = options.text_rows
    if rows is None:
        rows = 0 if task.json else _TEXTS_OF_SOURCE
    said = list(file.findings)
    found = Evaluator(file, task, replace(options, text_rows=rows), name).run()
    file.findings[:] = said
    tables = ("confusion", "fields", "per_class", "schema_faults")
    metrics = {key: value for key, value in found.metrics.items() if key not in tables}
    return {"rows": found.counts["rows"], "metrics": metrics}


def _findings(evaluator: Evaluator, counts: Mapping[str, int]) -> list[Finding]:
    found = []
    where = str(evaluator.file.path)
    if counts["generated"] and counts["without_reference"] == counts["generated"]:
        message = "no row has a reference: only figures that need none are given"
        fix = "--columns reference=NAME names the column of the right answers"
        found.append(Finding("no-references", message, where=where, fix=fix, severity="warn"))
    elif counts["without_reference"]:
        message = (
            f"{counts['without_reference']} generated rows have no reference and are "
            "left out of comparisons"
        )
        found.append(Finding("rows-without-reference", message, where=where, severity="warn"))
    if evaluator.fields is not None and evaluator.fields.more:
        message = (
            f"the answers have more than {len(evaluator.fields.fields)} fields; the others "
            "are not compared"
        )
        found.append(Finding("many-fields", message, where=where, severity="warn"))
    if deep := evaluator.counts["too_deep"]:
        message = f"{deep} answers nest deeper than {DEEPEST} levels and count as no JSON"
        found.append(Finding("answers-too-deep", message, where=where, severity="warn"))
    if missing := evaluator.counts["without_label"]:
        message = (
            f"{missing} references have no class by --label "
            f"{evaluator.task.labels.by if evaluator.task.labels else ''}"
        )
        found.append(Finding("references-without-label", message, where=where, severity="warn"))
    return found
