"""iisft compare: several sets of predictions for the same rows, and which is best."""

from pathlib import Path
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
    from iisft.evaluation.family import Family


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="PREDICTIONS",
            help="Files of predictions, RUN@CHECKPOINT, or RUN for the base model and every "
            "checkpoint of it that has predicted; or one SWEEP, whose runs are ranked.",
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
      iisft compare SWEEP
    """
    from iisft.evaluation import locate
    from iisft.evaluation.compare import compare as judge
    from iisft.evaluation.reading import parse_columns

    chosen = options(label, classes, None, error_marker, text_rows)
    workspace = Workspace.current()
    if len(what) == 1 and _is_family(workspace, what[0]):
        from iisft.evaluation import family

        ranked = family.find(workspace, what[0], chosen, parse_columns(columns), data)
        console.out_json(ranked.as_json()) if as_json else _print_family(ranked)
        return
    found = [
        source for name in what for source in locate.find(workspace, name, data, with_base=True)
    ]
    comparison = judge(found, chosen, parse_columns(columns))
    if as_json:
        from iisft.evaluation.explain import verdict

        console.out_json(comparison.as_json() | {"sentences": verdict(comparison)})
        return
    _print(comparison)


def _is_family(workspace: Workspace, name: str) -> bool:
    """A file or a run of that name comes first, as everywhere."""
    from iisft.runs.record.families import members_of

    if Path(name).is_file() or "/" in name or (workspace.runs / name).is_dir():
        return False
    return bool(members_of(workspace, name))


def _print_family(found: "Family") -> None:
    from iisft.cli.evaluate import NAMES
    from iisft.evaluation.family import sentences

    console.findings(found.findings)
    ranked = found.ranked
    keys = list(found.members[0].values)
    by_score = found.comparison is not None
    rows = []
    for member in found.members:
        score, pair = found.score(member), found.pair(member)
        scored = [f"{100 * score:.1f}" if score is not None else "-"]
        scored.append(
            f"{100 * pair.interval[0]:.1f} to {100 * pair.interval[1]:.1f}" if pair else "-"
        )
        rows.append(
            (
                str(ranked.index(member) + 1) if member in ranked else "-",
                member.id,
                *("-" if value is None else str(value) for value in member.values.values()),
                f"{member.eval_loss:.4f}" if member.eval_loss is not None else "-",
                str(member.eval_step if member.eval_step is not None else "-"),
                *(scored if by_score else ()),
                member.status.state,
            )
        )
    score_names = (
        (NAMES[found.figure].upper(), "BEHIND (95 %)") if by_score and found.figure else ()
    )
    console.table(rows, ("", "RUN", *keys, "EVAL LOSS", "STEP", *score_names, "STATE"))
    console.out()
    for sentence in sentences(found):
        console.out(sentence)


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
