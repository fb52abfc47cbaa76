"""iisft compare: several sets of predictions for the same rows, and which is best."""

from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.cli.evaluate import (
    ClassesOption,
    ColumnsOption,
    DataOption,
    LabelOption,
    MarkerOption,
    TextOption,
    options,
)
from iisft.cli.options import JsonOption, complete_runs
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.evaluation.compare import Comparison


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="PREDICTIONS",
            help="Files of predictions, RUN@CHECKPOINT, or RUN for the base model and every "
            "checkpoint of it that has predicted.",
            autocompletion=complete_runs,
        ),
    ],
    data: DataOption = None,
    columns: ColumnsOption = None,
    label: LabelOption = None,
    classes: ClassesOption = None,
    error_marker: MarkerOption = "ERROR_GENERATION",
    text_rows: TextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare predictions of the same rows, pair by pair.

    Differences with intervals and tests, the rows that flipped, and which checkpoint is best.

    \b
    Examples:
      iisft compare RUN
      iisft compare RUN@base RUN@150 other.jsonl
    """
    from iisft.evaluation import locate
    from iisft.evaluation.compare import compare as judge
    from iisft.evaluation.reading import parse_columns

    chosen = options(label, classes, None, error_marker, text_rows)
    workspace = Workspace.current()
    found = [
        source for name in what for source in locate.find(workspace, name, data, with_base=True)
    ]
    comparison = judge(found, chosen, parse_columns(columns))
    if as_json:
        from iisft.evaluation.explain import verdict

        console.out_json(comparison.as_json() | {"sentences": verdict(comparison)})
        return
    _print(comparison)


def _print(found: "Comparison") -> None:
    from iisft.cli.evaluate import NAMES
    from iisft.evaluation.explain import verdict

    console.findings(found.findings)
    figures = [
        key for key in NAMES if any(key in each.metrics for each in found.evaluations.values())
    ]
    rows = []
    for name in found.names:
        metrics, losses, counts = (
            found.evaluations[name].metrics,
            found.losses[name],
            found.evaluations[name].counts,
        )
        rows.append(
            (
                name + (" *" if name == found.best else ""),
                str(losses["step"] or "-"),
                *(
                    f"{losses[key]:.4f}" if losses[key] is not None else "-"
                    for key in ("train_loss", "eval_loss")
                ),
                str(counts["generation_errors"]),
                *(f"{100 * metrics[key]:.1f}" if key in metrics else "-" for key in figures),
            )
        )
    headers = ("", "STEP", "LOSS", "EVAL LOSS", "ERRORS", *(NAMES[key].upper() for key in figures))
    console.table(rows, headers)
    console.out()
    for pair in found.pairs:
        for winner, loser, flipped in (
            (pair.best, pair.other, pair.won),
            (pair.other, pair.best, pair.lost),
        ):
            if flipped:
                shown = ", ".join(map(str, flipped[:15])) + (", ..." if len(flipped) > 15 else "")
                console.out(f"right in {winner}, not in {loser}: {len(flipped)} rows ({shown})")
    if found.pairs:
        console.out()
    for sentence in verdict(found):
        console.out(sentence)
