"""Builds the report: one run with all its checkpoints, or several runs side by side, as one HTML
file with data compressed into it, scripts and styles inlined, and everything else forbidden.

Nothing from a run or a dataset is ever HTML or script: it is in the file as gzip in base64, and the
page's own script reads it as JSON and inserts it as text. Nothing else runs, and nothing is asked
for (report/page.py).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iisft import __version__, files
from iisft.errors import EnvironmentFault, Finding, IisftError, RunStateError
from iisft.evaluation import locate
from iisft.evaluation.compare import compare
from iisft.evaluation.evaluate import Options
from iisft.evaluation.explain import verdict_with_tone
from iisft.evaluation.locate import Source
from iisft.evaluation.texts import LANGUAGES
from iisft.report.answers import MOST_ROWS, Judged, answers_of, judged
from iisft.report.page import report_page
from iisft.report.provenance import facts_of
from iisft.report.series import series_of
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.selection import BASE
from iisft.workspace import Workspace

_SAME_START = 100  # bytes, before anything that differs from report to report
_MOST_BYTES = 9_500_000
_FEWEST_ROWS = 20


@dataclass(frozen=True)
class Report:
    """A report that was written, and what was found on the way."""

    path: Path
    size: int
    rows_shown: int
    findings: list[Finding]


def write(
    names: Sequence[str],
    folders: Sequence[RunFolder],
    workspace: Workspace,
    options: Options,
    data: str | None,
    to: Path,
) -> Report:
    """Make the report of one run, or of several side by side.

    Args:
        names: as typed for each folder, RUN or RUN@CHECKPOINT.
        folders: the runs.
        options: how predictions are judged.
        data: only predictions of this dataset; without it every dataset of a single run, and
            of several runs the one predicted last.
        to: the file.

    Raises:
        RunStateError: a run has no predictions of the named dataset.
        EnvironmentFault: the file can't be written.
    """
    findings: list[Finding] = []
    groups = _groups(names, folders, workspace, data, findings)
    found = [judged(group, options) for group in groups]
    findings += [finding for each in found for finding in each.findings]
    found = [each for each in found if each.sources]
    document = {
        "made": time.time(),
        "iisft": __version__,
        "runs": [
            {"facts": facts_of(folder, workspace), "series": series_of(folder)}
            for folder in folders
        ],
        "comparisons": [
            _comparison([source for source, _, _ in each.sources], options, findings)
            for each in found
        ],
    }
    page, rows_shown = _page(document, found)
    _write(to, page)
    return Report(to, len(page), rows_shown, list(dict.fromkeys(findings)))


def _write(to: Path, page: bytes) -> None:
    try:
        files.write_named(to, page, replace=_is_report(to, page))
    except FileExistsError as error:
        raise RunStateError(
            "file-exists",
            "the file exists and is not a report of iisft",
            where=str(to),
            fix="-o FILE with another name",
        ) from error
    except OSError as error:
        message = f"the report can't be written: {error.strerror}"
        raise EnvironmentFault(
            "output-unwritable", message, where=str(to), fix="-o FILE in a writable folder"
        ) from error


def _page(document: dict[str, Any], found: Sequence[Judged]) -> tuple[bytes, int]:
    """The page and how many rows it shows: fewer where very long prompts would make it too big."""
    most_rows = MOST_ROWS
    while True:
        shown = [answers_of(each, most_rows) for each in found]
        page = report_page(document | {"answers": shown})
        if len(page) <= _MOST_BYTES or most_rows < _FEWEST_ROWS:
            return page, sum(len(each["rows"]) for each in shown)
        most_rows = int(0.9 * most_rows * _MOST_BYTES / len(page))


def _is_report(file: Path, page: bytes) -> bool:
    """A report is made again and again; anything else of that name is not replaced."""
    try:
        with files.open_regular(file) as stream:
            return stream.read(_SAME_START) == page[:_SAME_START]
    except OSError:
        return False


def _groups(
    names: Sequence[str],
    folders: Sequence[RunFolder],
    workspace: Workspace,
    data: str | None,
    findings: list[Finding],
) -> list[list[Source]]:
    """Predictions to show side by side: those of one dataset."""
    if len(folders) == 1:
        known = [source for source in locate.of_run(folders[0]) if source.checkpoint != BASE]
        if data is not None or locate.split(workspace, names[0])[1] is not None:
            # its error says what there is, if the named ones are missing
            known = locate.find(workspace, names[0], data)
        by_data: dict[str, list[Source]] = {}
        for source in known:
            by_data.setdefault(source.data or "", []).append(source)
        return list(by_data.values())
    found = []
    for name in names:
        try:
            found.append(locate.last(locate.find(workspace, name, data)))
        except RunStateError as error:
            if data is not None or "@" in name:
                raise
            findings.append(replace(error.finding, severity="warn"))
    datasets = sorted({source.data or "" for source in found})
    if len(datasets) > 1:
        message = (
            f"the runs predicted different datasets ({', '.join(datasets)}): their answers "
            "are not compared"
        )
        findings.append(
            Finding(
                "other-datasets",
                message,
                fix="name one that all of them predicted: --data NAME",
                severity="warn",
            )
        )
        return [[source] for source in found]
    return [found] if found else []


def _comparison(
    group: Sequence[Source], options: Options, findings: list[Finding]
) -> dict[str, Any] | None:
    if len(group) < 2:
        return None
    try:
        found = compare(group, options, {})
    except IisftError as error:
        findings.append(replace(error.finding, severity="warn"))
        return None
    return {
        "data": group[0].data,
        "figure": found.figure,
        "best": found.best,
        "scores": found.scores,
        "rows": found.rows,
        "pairs": [pair.as_json() for pair in found.pairs],
        "sentences": {language: verdict_with_tone(found, language) for language in LANGUAGES},
    }
