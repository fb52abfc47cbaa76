"""iisft data split: train, val and test files from one file."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.cli.options import (
    ColumnsOption,
    DataFileArgument,
    FormatOption,
    IgnoreOption,
    JsonOption,
    RolesOption,
)

if TYPE_CHECKING:
    from iisft.data.split.splitting import Split

_SHOWN_STRATA = 12
_SHOWN_NAME = 60


_To = Annotated[Path | None, typer.Option(help="Folder for the files; default: beside the file.")]
_Parts = Annotated[str, typer.Option(metavar="A:B[:C]", help="Shares of train, val and test.")]
_By = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="The same mix on every side: a key of the row, answer.KEY of a JSON answer, "
        "FIELD.KEY of a text with "
        "lines 'KEY: value', or answer-shape.",
    ),
]
_Stable = Annotated[
    bool,
    typer.Option("--stable", help="Split by hash: a row keeps its side when rows are added."),
]
_Ratio = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUE=SHARE",
        help="Leave rows out until this value of --by has this share of the rows.",
    ),
]
_Rows = Annotated[
    int | None, typer.Option(metavar="N", help="Draw N rows and leave the others out.")
]
_Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="With --rows: weight each row by the inverse frequency of its value.",
    ),
]


def split(
    file: DataFileArgument,
    to: _To = None,
    parts: _Parts = "8:1:1",
    by: _By = None,
    seed: Annotated[int, typer.Option(help="Seed of the random order.")] = 42,
    stable: _Stable = False,
    ratio: _Ratio = None,
    rows: _Rows = None,
    weights: _Weights = None,
    formats: FormatOption = None,
    columns: ColumnsOption = None,
    ignore: IgnoreOption = None,
    roles: RolesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Split a file into train, val and test.

    Rows with the same prompt stay on one side.

    \b
    Examples:
      iisft data split rows.jsonl --by answer-shape
      iisft data split rows.jsonl --parts 9:1 --stable
    """
    from iisft.cli.progress import bytes_bar
    from iisft.data.read.source import open_source
    from iisft.data.split import splitting

    shares = tuple(_number(part, "--parts") for part in parts.split(":"))
    ratios = dict(_pair(text) for text in ratio or ())
    request = splitting.SplitRequest(shares, by, seed, stable, ratios, rows, weights)
    source = open_source(file, formats, columns or (), ignore=ignore or (), roles=roles or ())
    with bytes_bar("splitting") as progress:
        result = splitting.split(source, request, to or file.parent, progress)
    if as_json:
        console.out_json(result.as_json())
        return
    _print(result)
    told = "".join(
        f" {option} {shlex.quote(text)}"
        for option, texts in (("--columns", columns), ("--ignore", ignore), ("--roles", roles))
        for text in texts or ()
    )
    for name, part in result.files.items():
        console.say(f"next: iisft data stage {shlex.quote(str(part))}{told} --name NAME-{name}")


def _print(result: "Split") -> None:
    if result.strata:
        shown = list(result.strata.items())[:_SHOWN_STRATA]
        console.table(
            (
                [_shortened(name), *(f"{count:,}" for count in sizes.values())]
                for name, sizes in shown
            ),
            ("STRATUM", *(name.upper() for name in result.files)),
        )
        if len(result.strata) > _SHOWN_STRATA:
            console.out(f"and {len(result.strata) - _SHOWN_STRATA:,} strata more")
        console.out()
    for name, part in result.files.items():
        console.out(f"{name}: {result.rows[name]:,} rows in {part}")
    if result.dropped:
        console.out(f"left out: {result.dropped:,} rows")
    for note in result.notes:
        console.say(f"note: {note}")


def _shortened(name: str) -> str:
    return name if len(name) <= _SHOWN_NAME else name[: _SHOWN_NAME - 3] + "..."


def _number(text: str, option: str) -> float:
    from iisft.errors import UsageError

    try:
        return float(text)
    except ValueError as error:
        raise UsageError("split-number", f"{option} takes numbers, not {text!r}") from error


def _pair(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    return name, _number(share, "--ratio VALUE=SHARE")
