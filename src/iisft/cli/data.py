"""iisft data: stage, list, show; check and split have files of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console, data_tokens, options
from iisft.cli.data_check import check, open_all
from iisft.cli.data_show import show
from iisft.cli.data_split import split
from iisft.cli.data_tokens import ExactOption, ModelOption, OverlongOption, PresetOption
from iisft.cli.options import (
    ColumnsOption,
    FormatOption,
    IgnoreOption,
    JsonOption,
    QuietOption,
    RolesOption,
    SetOption,
)
from iisft.errors import UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.data.read.source import Source
    from iisft.data.stage.staging import Policy, Staging
    from iisft.data.tokens.target import Target

data_app = options.group("""Check, split and stage datasets.

\b
Examples:
  iisft data check rows.jsonl --preset mi50
  iisft data stage rows.jsonl --name triage --preset mi50
""")
data_app.command()(check)
data_app.command()(show)
data_app.command()(split)


_Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="JSON array, JSON lines, CSV or Parquet, gzipped or not; or a staged dataset's name.",
    ),
]
_DropUnfit = Annotated[
    bool,
    typer.Option("--drop-unfit", help="With fit: leave out rows that can't be shortened enough."),
]
_DropBad = Annotated[
    bool,
    typer.Option("--drop-bad", help="Leave out rows that are wrong, and list them."),
]
_Tokenize = Annotated[
    bool,
    typer.Option(
        "--tokenize",
        help="Tokenise too, so that the preset's runs start and resume without doing it.",
    ),
]


@data_app.command()
def stage(
    file: _Files,
    name: Annotated[str, typer.Option("--name", help="The dataset's name, as presets call it.")],
    formats: FormatOption = None,
    columns: ColumnsOption = None,
    ignore: IgnoreOption = None,
    roles: RolesOption = None,
    preset: PresetOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    overlong: OverlongOption = None,
    exact: ExactOption = False,
    drop_unfit: _DropUnfit = False,
    drop_bad: _DropBad = False,
    tokenize: _Tokenize = False,
    as_json: JsonOption = False,
) -> None:
    """Check every row and copy the file to data/NAME for training.

    Of several files, or staged datasets, all rows. With a preset or model the tokens of each row
    are counted, and rows over cutoff_len are refused, fitted, dropped or let through.

    \b
    Examples:
      iisft data stage rows.jsonl --name triage
      iisft data stage rows.jsonl --name triage -p mi50 --overlong fit
      iisft data stage triage chat.jsonl --name both
    """
    from iisft.cli.progress import bytes_bar
    from iisft.data.stage import staging

    target = data_tokens.target(preset, model, overrides, overlong)
    if tokenize:
        _require_preset(target)
    with bytes_bar("staging") as progress:
        staged = staging.stage_all(
            _opened(file, formats, columns=columns or (), ignore=ignore or (), roles=roles or ()),
            name,
            Workspace.current(),
            drop_bad=drop_bad,
            policy=_policy(target, drop_unfit=drop_unfit, exact=exact),
            progress=progress,
        )
    tokens = data_tokens.tokenize(target, name) if tokenize else None
    console.findings(staged.findings.first_of_each("warn" if drop_bad else None))
    console.out_json(_document(name, staged, tokens)) if as_json else _print(name, staged, tokens)


def _opened(given: list[Path], formats: str | None, **told: Sequence[str]) -> dict[str, "Source"]:
    """By the names that a person knows them by, each of its own."""
    sources = zip(given, open_all(given, formats, **told), strict=True)
    names = [file.name.partition(".")[0] or file.name for file in given]
    return {
        name if names.count(name) == 1 else str(file): source
        for name, (file, source) in zip(names, sources, strict=True)
    }


def _require_preset(target: "Target") -> None:
    if target.preset is None or target.limit is None:
        raise UsageError(
            "tokenize-preset",
            "--tokenize needs --preset, and its model",
            fix="--preset NAME --model DIR",
        )


def _policy(target: "Target", *, drop_unfit: bool, exact: bool) -> "Policy | None":
    """What is done with rows over the limit; None where nothing says what the limit is."""
    from iisft.data.stage.policy import OverlongStep

    if not target.limit:
        return None
    return OverlongStep(
        target.limit,
        target.policy,
        batch_size=target.batch_size,
        drop_unfit=drop_unfit,
        exact=exact,
    ).as_policy


def _document(name: str, staged: "Staging", tokens: Path | None) -> dict[str, Any]:
    dataset = staged.dataset
    return {
        "name": name,
        "dir": str(dataset.folder),
        "file": str(dataset.file),
        "rows": dataset.rows,
        "parts": dataset.record.get("parts"),
        "sha256": dataset.sha256,
        "keys": dataset.keys,
        "format": dataset.record["format"],
        "unchanged": staged.unchanged,
        "warnings": dataset.record["warnings"],
        "left_out": dataset.record["left_out"],
        "tokens": dataset.record.get("tokens"),
        "tokenized": str(tokens) if tokens else None,
        "overlong": dataset.record.get("overlong"),
    }


def _print(name: str, staged: "Staging", tokens: Path | None) -> None:
    dataset = staged.dataset
    not_read = dataset.record["not_read"]
    console.say(
        f"read as {dataset.record['format']}"
        + (f"; not read: {', '.join(not_read)}" if not_read else "")
    )
    done = "were staged already, nothing is changed" if staged.unchanged else f"in {dataset.folder}"
    console.out(f"{name}: {dataset.rows} rows {done}")
    for part in dataset.record.get("parts") or ():
        console.out(f"  {part['rows']:,} of {part['name']}")
    if left := dataset.record["left_out"]:
        kinds = ", ".join(f"{count:,} {code}" for code, count in left["counts"].items())
        console.out(f"  {left['rows']:,} rows left out: {kinds}")
        console.out(f"  why each: {dataset.folder / left['report']}")
    data_tokens.print_staged(dataset)
    if tokens:
        console.out(f"  tokenised: {tokens}")


@data_app.command("list")
def list_datasets(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the staged datasets.

    \b
    Examples:
      iisft data list
    """
    from iisft.data.stage import staging
    from iisft.errors import InputError

    rows = []
    for name in staging.staged_names(Workspace.current()):
        try:
            staged = staging.load(name, Workspace.current())
            rows.append({"name": name, "rows": staged.rows, "dir": str(staged.folder), "fault": ""})
        except InputError as error:
            rows.append({"name": name, "rows": None, "dir": error.where, "fault": error.message})
    if as_json:
        console.out_json(rows)
    elif quiet:
        for row in rows:
            console.out(str(row["name"]))
    else:
        shown = ((str(r["name"]), str(r["rows"] or r["fault"]), str(r["dir"])) for r in rows)
        console.table(shown, ("DATASET", "ROWS", "FOLDER"))


@data_app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Datasets.", autocompletion=options.complete_datasets
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Delete staged datasets.

    Runs that used them keep their rows.

    \b
    Examples:
      iisft data rm intelligence
    """
    from iisft.data.stage import staged, staging
    from iisft.errors import InputError

    workspace = Workspace.current()
    chosen = list(dict.fromkeys(names))
    known = staging.staged_names(workspace)
    for name in chosen:
        if name not in known:
            text = f"no staged dataset {name!r}"
            where = str(workspace.data / name)
            raise InputError("data-missing", text, where=where, fix="iisft data list")
    console.require_yes(yes, f"delete {', '.join(chosen)}?", "iisft data rm --yes NAME...")
    for name in chosen:
        staged.remove(name, workspace)
        console.out(name)
