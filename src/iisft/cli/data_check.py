"""iisft data check: everything that is wrong with the rows of one file or several."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.cli.options import ColumnsOption, FormatOption, JsonOption
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.data.checking import Report
    from iisft.data.findings import Group
    from iisft.data.source import Source

_SHOWN_ROWS = 5


def check(
    file: Annotated[
        list[Path], typer.Argument(help="A data file, or a staged dataset's name. Several: leaks between them too.")
    ],
    formats: FormatOption = None,
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every row: what is wrong with it, where, and what repeats. Exit code 3 when a row can't be trained on."""
    from iisft.cli.progress import bytes_bar
    from iisft.data import checking
    from iisft.errors import ExitCode, InputError

    sources = [open_file_or_dataset(one, formats, columns) for one in file]
    with bytes_bar("checking") as progress:
        report = checking.check(sources, progress=progress)
    if not report.rows:
        raise InputError("data-empty", "there is no row in it", where=", ".join(map(str, file)))
    if as_json:
        console.out_json(report.as_json())
    else:
        _print(report)
    if report.findings.errors:
        raise typer.Exit(ExitCode.INPUT)


def open_file_or_dataset(file: Path, formats: str | None, columns: list[str] | None) -> "Source":
    """The source that a person means: a file, else the staged dataset of that name."""
    from iisft.data.source import open_source
    from iisft.data.staged import load, staged_names

    workspace = Workspace.current()
    if not file.exists() and str(file) in staged_names(workspace):
        return open_source(load(str(file), workspace).file)
    return open_source(file, formats, columns or ())


def _print(report: "Report") -> None:
    for source in report.sources:
        console.out(f"{source.file}: {source.describe()}")
        if source.layout.unused:
            console.out(f"  not read: {', '.join(source.layout.unused)}")
    groups = sorted(report.findings.groups.items(), key=lambda item: item[1].severity != "error")
    for code, group in groups:
        console.out()
        _print_group(code, group)
    console.out()
    unsound = report.rows - report.sound
    verdict = (
        f"all {report.rows:,} rows can be staged" if not unsound else f"{unsound:,} of {report.rows:,} rows can't be"
    )
    console.out(verdict if not unsound else f"{verdict} staged")


def _print_group(code: str, group: "Group") -> None:
    word = "error" if group.severity == "error" else "warning"
    console.out(f"{word}: {code}, {group.count:,} {'row' if group.count == 1 else 'rows'}")
    for finding in group.kept[:_SHOWN_ROWS]:
        console.out(f"  {finding.where}  {finding.text}")
    if group.count > _SHOWN_ROWS:
        console.out(f"  and {group.count - _SHOWN_ROWS:,} more; --json lists them")
    if fix := group.kept[0].problem.fix:
        console.out(f"  fix: {fix}")
