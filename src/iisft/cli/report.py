"""iisft report: a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from iisft.cli import console
from iisft.cli.evaluate import ClassesOption, DataOption, LabelOption, MarkerOption, options
from iisft.cli.options import JsonOption, complete_runs
from iisft.errors import UsageError
from iisft.workspace import Workspace

_RunsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run's id; default: the newest.",
        autocompletion=complete_runs,
        show_default=False,
    ),
]
_CompareOption = Annotated[
    bool, typer.Option("--compare", help="Put several runs, or those of a sweep, side by side.")
]
_OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The file to write; default: RUN.html in this folder.",
    ),
]


def report(
    runs: _RunsArgument = None,
    compare: _CompareOption = False,
    output: _OutputOption = None,
    data: DataOption = None,
    label: LabelOption = None,
    classes: ClassesOption = None,
    error_marker: MarkerOption = "ERROR_GENERATION",
    as_json: JsonOption = False,
) -> None:
    """Write a run as one HTML file that needs no network.

    It holds what ran, the curves, the evaluation, and every prediction beside its reference.

    \b
    Examples:
      iisft report RUN
      iisft report --compare A B -o both.html
      iisft report --compare SWEEP
    """
    from iisft.evaluation.locate import split
    from iisft.report import build
    from iisft.runs.record.state import find_run

    workspace = Workspace.current()
    names: list[str | None] = [*(runs or [])] or [None]
    family = names[0] if compare and len(names) == 1 else None
    if family is not None and not (workspace.runs / family).is_dir():
        names = [*_begun(workspace, family)] or names
    if compare != (len(names) > 1):
        raise UsageError(
            "report-runs", "one run, or --compare with several", fix="iisft report --compare A B"
        )
    folders = [find_run(workspace, split(workspace, name)[0]) for name in names]
    typed = [name or folder.id for name, folder in zip(names, folders, strict=True)]
    title = family or "-vs-".join(folder.id for folder in folders)
    target = output or Path(f"{title}.html")
    chosen = options(label, classes, None, error_marker, None)
    written = build.write(typed, folders, workspace, chosen, data, target)
    console.findings(written.findings)
    if as_json:
        facts = {
            "file": str(written.path.resolve()),
            "bytes": written.size,
            "rows_shown": written.rows_shown,
        }
        console.out_json(facts | {"findings": [finding.as_json() for finding in written.findings]})
        return
    if not written.rows_shown and not compare:
        console.say(
            f"no predictions yet: iisft predict {folders[0].id} --data NAME, then report again"
        )
    console.out(str(written.path))
    console.say(f"{written.size / 1e6:.1f} MB; opens in any browser, without a network")


def _begun(workspace: Workspace, family: str) -> list[str]:
    """The runs of a sweep that have something to show."""
    from iisft.runs.record.families import members_of

    return [folder.id for folder in members_of(workspace, family) if folder.events.exists()]
