"""iisft data: stage, list."""

from pathlib import Path
from typing import Annotated

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, QuietOption
from iisft.workspace import Workspace

data_app = typer.Typer(help="Datasets: check and stage them.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command()
def stage(
    file: Annotated[Path, typer.Argument(help="Alpaca rows (instruction, input, output), JSON array or JSON lines.")],
    name: Annotated[str, typer.Option("--name", help="The dataset's name, as presets call it.")],
    as_json: JsonOption = False,
) -> None:
    """Check every row and copy it to data/NAME, where presets find it."""
    from iisft.data import staging

    staged = staging.stage(file, name, Workspace.current())
    if as_json:
        console.out_json(
            {
                "name": name,
                "dir": str(staged.folder),
                "rows": staged.rows,
                "sha256": staged.sha256,
                "keys": staged.keys,
            }
        )
    else:
        console.out(f"{name}: {staged.rows} rows in {staged.folder}")


@data_app.command("list")
def list_datasets(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Staged datasets."""
    from iisft.data import staging
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
