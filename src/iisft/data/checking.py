"""`data check`: one pass over the rows of one file or more, everything that is wrong with them, and what repeats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from iisft.data.findings import KEPT, Findings, RowFinding
from iisft.data.messagechecks import message_checker
from iisft.data.repeats import Repeats, answer_of
from iisft.data.rowchecks import Checker, Problem, alpaca_checker, excerpt
from iisft.data.rows import Row
from iisft.data.source import Progress, Source, read_rows


@dataclass(frozen=True)
class Report:
    """`rows` counts those that were read, `sound` those that could be staged; `findings` has the reasons."""

    sources: tuple[Source, ...]
    rows: int
    sound: int
    findings: Findings

    def as_json(self) -> dict[str, Any]:
        groups = self.findings.groups
        return {
            "rows": self.rows,
            "sound": self.sound,
            "files": [{"file": str(source.file), "format": source.describe()} for source in self.sources],
            "counts": {code: group.count for code, group in groups.items()},
            "findings": [finding.as_json() for finding in self.findings],
        }


class Pass:
    """A pass over the rows of one source that collects findings; `rows` and `sound` count what went through."""

    def __init__(self, source: Source, findings: Findings, progress: Progress | None = None) -> None:
        self.source = source
        self.rows = 0
        self.sound = 0
        self._findings = findings
        self._progress = progress

    def sound_rows(self) -> Iterator[Row]:
        """The rows that can be staged, in their staged form; the others become findings."""
        check = checker_for(self.source)
        findings, file = self._findings, self.source.file
        for row in read_rows(self.source, self._progress):
            self.rows += 1
            staged, problems = check(row)
            for problem in problems:
                findings.add(file, row.number, row.line, problem)
            if staged is not None:
                self.sound += 1
                yield Row(row.number, row.line, staged)


def checker_for(source: Source) -> Checker:
    """The checker for the source's layout."""
    return alpaca_checker(source.layout) if source.layout.name == "alpaca" else message_checker(source.layout)


def check(sources: Sequence[Source], *, repeats: bool = True, progress: Progress | None = None) -> Report:
    """Read every row of every source once. Without `repeats` rows are not compared with each other."""
    findings = Findings()
    rows = sound = 0
    with Repeats([source.file for source in sources]) as seen:
        for index, source in enumerate(sources):
            one = Pass(source, findings, progress)
            answers = JsonAnswers(source)
            for row in one.sound_rows():
                if repeats:
                    seen.add(index, row.number, row.line, row.value)
                    answers.add(row)
            answers.report(findings)
            rows, sound = rows + one.rows, sound + one.sound
        seen.report(findings)
    return Report(tuple(sources), rows, sound, findings)


class JsonAnswers:
    """Answers that are no JSON in a file where most are."""

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
            problem = Problem(
                self._source.layout.answer_field,
                "answer-no-json",
                "no JSON, unlike most answers",
                excerpt(answer),
                "warn",
            )
            self._kept.append(RowFinding(Path(self._source.file), row.number, row.line, problem))

    def report(self, findings: Findings) -> None:
        if self._parsed > self._broken:
            findings.add_many(self._kept, self._broken)
