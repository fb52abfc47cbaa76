"""From runs to the report's document: one run with all its checkpoints, or several runs side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import __version__, files
from iisft.errors import EnvironmentFault, Finding, IisftError, RunStateError
from iisft.evaluation import sources
from iisft.evaluation.evaluate import Options
from iisft.evaluation.sources import Source
from iisft.report.answers import MOST_ROWS, answers_of
from iisft.report.facts import facts_of
from iisft.report.page import render
from iisft.report.series import series_of
from iisft.runs.folder import RunFolder
from iisft.workspace import Workspace

_MOST_BYTES = 9_500_000


@dataclass(frozen=True)
class Report:
    """A written report: where it lies, how large it is, and what was seen on the way."""

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
        names: what the person typed for each folder, RUN or RUN@CHECKPOINT.
        folders: the runs.
        options: how predictions are judged.
        data: only predictions of this dataset; without it every dataset of one run, and for several runs the one that
            was predicted last.
        to: the file.

    Raises:
        RunStateError: a run's predictions of that dataset are asked for and not there.
        EnvironmentFault: the file can't be written.
    """
    groups = _groups(names, folders, workspace, data)
    findings: list[Finding] = []
    most_rows = MOST_ROWS
    runs = [{"facts": facts_of(folder, workspace), "series": series_of(folder)} for folder in folders]
    while True:
        collected = [answers_of(group, options, most_rows) for group in groups]
        document = {
            "made": time.time(),
            "iisft": __version__,
            "runs": runs,
            "answers": [each.as_json() for each in collected if each.sets],
            "comparisons": [_comparison(group, options, findings) for group in groups],
        }
        page = render(document)
        if len(page) <= _MOST_BYTES or most_rows < 10:
            break
        most_rows //= 2  # very long prompts
    findings += [finding for each in collected for finding in each.findings]
    try:
        files.write_bytes_atomically(to, page)
    except OSError as error:
        message = f"the report can't be written: {error.strerror}"
        raise EnvironmentFault(
            "output-unwritable", message, where=str(to), fix="-o FILE in a writable folder"
        ) from error
    return Report(to, len(page), sum(len(each.rows) for each in collected), _once(findings))


def _groups(
    names: Sequence[str], folders: Sequence[RunFolder], workspace: Workspace, data: str | None
) -> list[list[Source]]:
    """Predictions that belong side by side: those of one dataset."""
    if len(folders) > 1:
        found = []
        for name in names:
            try:
                found.append(sources.last(sources.find(workspace, name, data)))
            except RunStateError:
                if data is not None:
                    raise
        shared = {source.data for source in found}
        return [found] if len(shared) == 1 else [[source] for source in found]
    known = [source for source in sources.of_run(folders[0]) if source.checkpoint != sources.BASE]
    by_data: dict[str, list[Source]] = {}
    for source in known:
        if data in (None, source.data):
            by_data.setdefault(source.data or "", []).append(source)
    if data is not None and not by_data:
        sources.find(workspace, names[0], data)  # says what is there instead
    return list(by_data.values())


def _comparison(group: Sequence[Source], options: Options, findings: list[Finding]) -> dict[str, Any] | None:
    from iisft.evaluation.compare import compare
    from iisft.evaluation.verdict import with_tone
    from iisft.evaluation.wording import LANGUAGES

    if len(group) < 2:
        return None
    try:
        found = compare(group, options, {})
    except IisftError as error:
        findings.append(Finding(error.code, error.message, error.where, error.fix, "warn"))
        return None
    return {
        "data": group[0].data,
        "figure": found.figure,
        "best": found.best,
        "scores": found.scores,
        "rows": found.rows,
        "pairs": [pair.as_json() for pair in found.pairs],
        "sentences": {language: with_tone(found, language) for language in LANGUAGES},
    }


def _once(findings: Sequence[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))
