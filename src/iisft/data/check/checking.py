"""`data check`: one pass over the rows of one file or more, everything that is wrong with them, and
what repeats.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from iisft.data.check.findings import KEPT, Findings, RowFinding, excerpt, flaw
from iisft.data.check.messagechecks import message_checker
from iisft.data.check.repeats import Repeats, answer_of
from iisft.data.check.rowchecks import Checker, alpaca_checker
from iisft.data.read.rows import Row, Unreadable
from iisft.data.read.source import Progress, Source, read_rows


@dataclass(frozen=True)
class Report:
    """`rows` counts those that were read, `sound` those that could be staged.

    `findings` has the reasons.
    """

    sources: tuple[Source, ...]
    rows: int
    sound: int
    findings: Findings

    def as_json(self) -> dict[str, Any]:
        groups = self.findings.groups
        return {
            "rows": self.rows,
            "sound": self.sound,
            "files": [
                {"file": str(source.file), "format": source.describe()} for source in self.sources
            ],
            "counts": {code: group.count for code, group in groups.items()},
            "findings": [finding.as_row_json() for finding in self.findings],
        }


class Check:
    """One pass over the rows of the sources, in turn. Iterate sound_rows() to its end; `report`
    then has everything.

    Without `repeats` rows are not compared with each other. `torn`: what comes after the last row
    can't be read.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        repeats: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self._sources = tuple(sources)
        self._repeats = repeats
        self._progress = progress
        self._rows = self._sound = 0
        self.torn = False
        self.findings = Findings()

    @property
    def report(self) -> Report:
        return Report(self._sources, self._rows, self._sound, self.findings)

    def sound_rows(self) -> Iterator[Row]:
        """The rows that can be staged, in their staged form; the others become findings."""
        with Repeats([source.file for source in self._sources]) as seen:
            for index, source in enumerate(self._sources):
                rows = self._rows_of(index, source)
                yield from self._compared(index, source, rows, seen) if self._repeats else rows
            seen.report(self.findings)

    def _rows_of(self, index: int, source: Source) -> Iterator[Row]:
        check, add, file = checker_for(source), self.findings.add, source.file
        for row in read_rows(source, self._progress):
            self._rows += 1
            staged, problems = check(row)
            if staged is None and isinstance(row.value, Unreadable) and row.value.last:
                self.torn = True
            for problem in problems:
                add(file, row.number, row.line, problem)
            if staged is not None:
                self._sound += 1
                yield Row(row.number, row.line, staged, None, index)

    def _compared(
        self, index: int, source: Source, rows: Iterator[Row], seen: Repeats
    ) -> Iterator[Row]:
        answers = JsonAnswers(source)
        for row in rows:
            seen.add(index, row.number, row.line, row.value)
            answers.add(row)
            yield row
        answers.report(self.findings)


def checker_for(source: Source) -> Checker:
    """The checker for the source's layout."""
    return (
        alpaca_checker(source.layout)
        if source.layout.name == "alpaca"
        else message_checker(source.layout)
    )


def check(
    sources: Sequence[Source], *, repeats: bool = True, progress: Progress | None = None
) -> Report:
    """Read every row of every source once and tell what is wrong with them."""
    one = Check(sources, repeats=repeats, progress=progress)
    deque(one.sound_rows(), maxlen=0)
    return one.report


class JsonAnswers:
    """Answers that are not JSON in a file where most are."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parsed = 0
        self._broken = 0
        self._kept: list[RowFinding] = []

    def add(self, row: Row) -> None:
        answer = answer_of(row.value)
        if answer[0] in "{[ \n":
            try:
                orjson.loads(answer)
            except ValueError:
                pass
            else:
                self._parsed += 1
                return
        self._broken += 1
        if len(self._kept) < KEPT:
            problem = flaw(
                self._source.layout.answer_field,
                "answer-no-json",
                "no JSON object or list, unlike most answers",
                excerpt(answer),
                "warn",
            )
            self._kept.append(problem.at(Path(self._source.file), row.number, row.line))

    def report(self, findings: Findings) -> None:
        if self._parsed > self._broken:
            findings.add_many(self._kept, self._broken)
