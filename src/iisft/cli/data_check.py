"""iisft data check: everything that is wrong with the rows of one file or several."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console, data_tokens
from iisft.cli.data_tokens import ExactOption, ModelOption, OverlongOption, PresetOption
from iisft.cli.options import (
    ColumnsOption,
    FormatOption,
    IgnoreOption,
    JsonOption,
    RolesOption,
    SetOption,
)
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iisft.data.check.checking import Report
    from iisft.data.check.findings import Group
    from iisft.data.read.source import Source
    from iisft.data.tokens.account import Account
    from iisft.data.tokens.target import Target

_SHOWN_ROWS = 5
_HTML_FIX = "--model DIR, or a --preset whose model is there"


_File = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="A data file, or a staged dataset's name. Several: leaks between them too.",
    ),
]
_Page = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the token account as an HTML page."),
]


def check(
    file: _File,
    formats: FormatOption = None,
    columns: ColumnsOption = None,
    ignore: IgnoreOption = None,
    roles: RolesOption = None,
    preset: PresetOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    overlong: OverlongOption = None,
    exact: ExactOption = False,
    page: _Page = None,
    as_json: JsonOption = False,
) -> None:
    """Check every row: what is wrong, where, and what repeats.

    With a preset or model its tokens are counted too. Exit 3 when a row can't be trained on,
    or would be cut and the policy is fail.

    \b
    Examples:
      iisft data check rows.jsonl
      iisft data check train.jsonl val.jsonl
      iisft data check rows.jsonl -p mi50 --html account.html
    """
    from iisft.cli.progress import bytes_bar
    from iisft.data.check import checking
    from iisft.errors import ExitCode, InputError

    target = data_tokens.target(preset, model, overrides, overlong)
    sources = open_all(file, formats, columns=columns or (), ignore=ignore or (), roles=roles or ())
    with bytes_bar("checking") as progress:
        report = checking.check(sources, progress=progress)
    if not report.rows:
        raise InputError("data-empty", "there is no row in it", where=", ".join(map(str, file)))
    account = _count(sources, report, target, exact=exact)
    if page is not None:
        _write_page(page, account, target, sources[0].file)
    if as_json:
        tokens = data_tokens.account_json(account, target) if account else None
        console.out_json({**report.as_json(), "tokens": tokens})
    else:
        _print(report)
        _print_tokens(account, target, sources[0].file)
    refused = account is not None and account.refused is not None
    cut = account is not None and account.damaged and target.policy == "fail"
    if report.findings.errors or refused or cut:
        raise typer.Exit(ExitCode.INPUT)


def _count(
    sources: list["Source"], report: "Report", target: "Target", *, exact: bool
) -> "Account | None":
    from iisft.cli.progress import bytes_bar
    from iisft.data.tokens.counting import account_of

    if target.limit is None or not report.sound:
        return None
    with bytes_bar("counting tokens") as progress:
        return account_of(
            sources,
            report.sound,
            target.limit,
            exact=exact,
            batch_size=target.batch_size,
            progress=progress,
        )


def _write_page(page: Path, account: "Account | None", target: "Target", file: Path) -> None:
    from iisft.cli import console
    from iisft.data.tokens.html_account import render
    from iisft.errors import UsageError

    if account is None:
        reason = target.note or "neither --preset nor --model was given"
        raise UsageError(
            "html-no-account", f"--html needs the tokens counted; {reason}", fix=_HTML_FIX
        )
    verdict = "\n".join(data_tokens.verdict_lines(account, target, file))
    console.write(page, render(account, str(file), verdict), UsageError, "html-write")
    console.say(f"{page}: open it in a browser")


def open_all(given: list[Path], formats: str | None, **told: "Sequence[str]") -> "list[Source]":
    """Every file, or all that is wrong with those that can't be opened."""
    from iisft.errors import CheckFailed, InputError

    sources, refused = [], []
    for file in given:
        try:
            sources.append(open_file_or_dataset(file, formats, **told))
        except InputError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise CheckFailed([one.finding for one in refused])
    return sources


def open_file_or_dataset(file: Path, formats: str | None, **told: "Sequence[str]") -> "Source":
    """The source that a person means: a file, else the staged dataset of that name."""
    from iisft.data.read.source import open_source
    from iisft.data.stage.staged import load, staged_names

    workspace = Workspace.current()
    if not file.exists() and str(file) in staged_names(workspace):
        return open_source(load(str(file), workspace).file)
    return open_source(file, formats, **told)


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
        f"all {report.rows:,} rows can be staged"
        if not unsound
        else f"{unsound:,} of {report.rows:,} rows can't be"
    )
    console.out(verdict if not unsound else f"{verdict} staged")


def _print_tokens(account: "Account | None", target: "Target", file: Path) -> None:
    if account:
        console.out()
        data_tokens.print_account(account, target, file)


def _print_group(code: str, group: "Group") -> None:
    word = "error" if group.severity == "error" else "warning"
    console.out(f"{word}: {code}, {group.count:,} {'row' if group.count == 1 else 'rows'}")
    for finding in group.kept[:_SHOWN_ROWS]:
        console.out(f"  {finding.where}  {finding.text}")
    if group.count > _SHOWN_ROWS:
        console.out(f"  and {group.count - _SHOWN_ROWS:,} more; --json lists them")
    if fix := group.kept[0].fix:
        console.out(f"  fix: {fix}")
