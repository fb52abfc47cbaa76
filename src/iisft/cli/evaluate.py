"""iisft evaluate: figures of predictions beside what trivial answers would get."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, complete_runs
from iisft.errors import UsageError
from iisft.quoting import is_count
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.evaluation.evaluate import Evaluation, Options
    from iisft.evaluation.locate import Source

_LARGE = 100_000_000  # bytes: some seconds
LabelOption = Annotated[
    str | None,
    typer.Option(
        "--label",
        metavar="KEY",
        help="What the class is: a key, a /json/pointer, answer-shape (its keys), answer (all of "
        "it), or none. "
        "Without it classes are found where there are some.",
    ),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes", metavar="NAME=VALUE,...", help="Names for classes: drop=UUID,keep=*."
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="ROLE=NAME,...",
        help="The file's names for prediction, reference, prompt; usual names are known.",
    ),
]
MarkerOption = Annotated[
    str,
    typer.Option(
        "--error-marker",
        metavar="TEXT",
        help="A prediction that is this text is a generation error.",
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        "--text-rows",
        metavar="N|all|none",
        help="Rows for BLEU, ROUGE, chrF. Without it: where the answers are text, a sample that "
        "takes 20 s at most.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME", help="With a run: its predictions for this dataset."),
]
_SchemaOption = Annotated[
    Path | None, typer.Option("--schema", metavar="FILE", help="A JSON Schema for the answers.")
]
_WhatArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE_OR_RUN",
        help="A file of predictions, RUN, or RUN@CHECKPOINT; default: the newest run.",
        autocompletion=complete_runs,
    ),
]
_BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base", metavar="FILE", help="The base model's predictions, as one more baseline."
    ),
]


def evaluate(
    what: _WhatArgument = None,
    data: DataOption = None,
    columns: ColumnsOption = None,
    label: LabelOption = None,
    classes: ClassesOption = None,
    schema: _SchemaOption = None,
    error_marker: MarkerOption = "ERROR_GENERATION",
    text_rows: TextOption = None,
    base: _BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score predictions beside trivial baselines.

    Figures with 95 % intervals, and sentences that say what they mean.

    \b
    Examples:
      iisft evaluate RUN
      iisft evaluate answers.jsonl --columns reference=truth,prediction=output
      iisft evaluate RUN --label answer-shape --classes drop=UUID,keep=*
    """
    from iisft.evaluation import locate
    from iisft.evaluation.evaluate import evaluate as judge
    from iisft.evaluation.reading import PredictionFile, parse_columns

    named, chosen = parse_columns(columns), options(label, classes, schema, error_marker, text_rows)
    found = locate.find(Workspace.current(), what, data)
    source = locate.last(found)
    _say_what(source, found)
    base_source = locate.base_of(source)
    base_path = base or (base_source.path if base_source else None)
    evaluation = judge(
        PredictionFile(source.path, named),
        chosen,
        PredictionFile(base_path, named) if base_path else None,
    )
    evaluation.findings[:0] = source.findings
    if as_json:
        from iisft.evaluation.explain import sentences

        about = {
            "sentences": sentences(evaluation),
            "run": source.run.id if source.run else None,
            "checkpoint": source.checkpoint,
            "data": source.data,
        }
        console.out_json(evaluation.as_json() | about)
        return
    _print(evaluation)


def _say_what(source: "Source", found: "list[Source]") -> None:
    if len(found) > 1:
        others = " ".join(other.name for other in found if other is not source)
        console.say(
            f"{source.name} (also predicted: {others}; iisft compare "
            f"{source.run.id if source.run else ''})"
        )
    if source.path.stat().st_size > _LARGE:
        console.say(f"reading {source.path.stat().st_size / 1e6:.0f} MB of predictions")


def options(
    label: str | None,
    classes: str | None,
    schema: Path | None,
    error_marker: str,
    text_rows: str | None,
) -> "Options":
    """The options of evaluate, compare and report as `Options`.

    Raises:
        UsageError: one of them is invalid.
    """
    from iisft.evaluation.classes import parse_classes
    from iisft.evaluation.evaluate import Options
    from iisft.evaluation.similarity import ALL_ROWS

    rows = {"all": ALL_ROWS, "none": 0}.get(text_rows or "")
    if text_rows is not None and rows is None:
        if not is_count(text_rows) or not int(text_rows):
            raise UsageError(
                "text-rows", f"--text-rows can't be {text_rows!r}", fix="a number, all, or none"
            )
        rows = int(text_rows)
    return Options(label, parse_classes(classes), schema, error_marker, rows)


def _print(found: "Evaluation") -> None:
    from iisft.evaluation.explain import sentences

    console.findings(found.findings)
    if found.task.found_labels:
        console.say(
            f"classes found by --label {found.label_by}; --label names another key, --label none "
            "turns them off"
        )
    rows = [(name, *_cells(found, key)) for key, name in NAMES.items() if key in found.metrics]
    if rows:
        console.table(rows, ("", "MODEL", "95 %", *map(_heading, found.baselines)))
        console.out()
    if "confusion" in found.metrics:
        _print_confusion(found.metrics["confusion"])
    if found.metrics.get("fields"):
        _print_fields(found.metrics["fields"])
    if found.sources:
        _print_sources(found.sources)
    for sentence in sentences(found):
        console.out(sentence)


def _print_sources(sources: dict[str, dict[str, Any]]) -> None:
    shown = [key for key in NAMES if any(key in source["metrics"] for source in sources.values())]
    rows = [
        (name, str(source["rows"]), *(_hundred(source["metrics"].get(key)) for key in shown))
        for name, source in sources.items()
    ]
    console.table(rows, ("SOURCE", "ROWS", *(NAMES[key].upper() for key in shown)))
    console.out()


NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
    "valid_json": "valid JSON",
    "schema_valid": "fits the schema",
    "bleu4": "BLEU-4",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougel": "ROUGE-L",
    "chrf": "chrF",
}


def _heading(baseline: str) -> str:
    from iisft.evaluation.classes import shown

    constant = baseline.removeprefix("always ")
    return baseline.upper() if constant == baseline else f"ALWAYS {shown(constant)}"


def _cells(found: "Evaluation", key: str) -> list[str]:
    low, high = found.metrics["intervals"][key]
    others = [
        f"{100 * metrics[key]:.1f}" if key in metrics else "-"
        for metrics in found.baselines.values()
    ]
    return [f"{100 * found.metrics[key]:.1f}", f"{100 * low:.1f} - {100 * high:.1f}", *others]


def _print_confusion(confusion: dict[str, dict[str, int]]) -> None:
    from iisft.evaluation.classes import shown

    columns = sorted({column for row in confusion.values() for column in row} | confusion.keys())
    rows = [
        (shown(name), *(str(row.get(column, 0)) for column in columns))
        for name, row in confusion.items()
    ]
    console.table(rows, ("REFERENCE \\ ANSWER", *map(shown, columns)))
    console.out()


def _print_fields(fields: dict[str, dict[str, Any]]) -> None:
    rows = []
    for pointer, figures in fields.items():
        distance = figures.get("mean_abs_error")
        rows.append(
            (
                pointer.lstrip("/"),
                str(figures["rows"]),
                str(figures["missing"]),
                _hundred(figures["exact"]),
                _hundred(figures["exact_when_present"]),
                _hundred(figures["majority"]),
                _hundred(figures.get("list_f1")),
                f"{distance:.2f}" if distance is not None else "-",
            )
        )
    console.table(
        rows, ("FIELD", "ROWS", "MISSING", "EXACT", "IF THERE", "MAJORITY", "LIST F1", "ERROR")
    )
    console.out()


def _hundred(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}"
