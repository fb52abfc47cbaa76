"""Findings about rows: all are counted, the first of each kind are kept, so that a hopeless file
fills no memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft.data.check.rowchecks import Problem
from iisft.errors import Finding, Severity

KEPT = 5_000
"""Findings of one code that are kept with their row; more are only counted."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RowFinding:
    """One thing about one row. `line` is 0 where the file has no lines."""

    file: Path
    row: int
    line: int
    problem: Problem

    def as_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "row": self.row,
            "line": self.line or None,
            "field": self.problem.field,
            "code": self.problem.code,
            "severity": self.problem.severity,
            "message": self.problem.message,
            "excerpt": self.problem.excerpt,
        }

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else str(self.file)

    @property
    def text(self) -> str:
        shown = f": {self.problem.excerpt}" if self.problem.excerpt else ""
        place = f"row {self.row}: " + (
            f"{self.problem.field}: " if self.problem.field != "row" else ""
        )
        return f"{place}{self.problem.message}{shown}"


@dataclass(slots=True)
class Group:
    """All findings of one code: `count` of them, the first ones kept."""

    severity: str
    count: int = 0
    kept: list[RowFinding] = field(default_factory=list)


class Findings:
    """Collects what a pass over rows finds."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}

    def add(self, file: Path, row: int, line: int, problem: Problem) -> None:
        group = self.groups.get(problem.code)
        if group is None:
            group = self.groups[problem.code] = Group(problem.severity)
        group.count += 1
        if len(group.kept) < KEPT:
            group.kept.append(RowFinding(file, row, line, problem))

    def add_many(self, found: Iterable[RowFinding], count: int) -> None:
        """Add the kept ones of a code that was counted elsewhere.

        `count` is how many there are in all.
        """
        kept = list(found)
        if kept:
            group = self.groups.setdefault(kept[0].problem.code, Group(kept[0].problem.severity))
            group.count += count
            group.kept += kept

    @property
    def errors(self) -> int:
        return sum(group.count for group in self.groups.values() if group.severity == "error")

    @property
    def warnings(self) -> int:
        return sum(group.count for group in self.groups.values() if group.severity == "warn")

    def __iter__(self) -> Iterator[RowFinding]:
        """Those that are kept, file by file in the order of the rows."""
        kept = [finding for group in self.groups.values() for finding in group.kept]
        files = {
            file: index
            for index, file in enumerate(dict.fromkeys(finding.file for finding in kept))
        }
        yield from sorted(kept, key=lambda finding: (files[finding.file], finding.row))

    def as_findings(self, only: Severity | None = None) -> list[Finding]:
        """For an error or for talk: the first rows of each code, and how many more there are."""
        shown = []
        for group in self._by_severity():
            if only is not None and group.severity != only:
                continue
            first = group.kept[0]
            severity: Severity = "error" if group.severity == "error" else "warn"
            for one in group.kept[:_SHOWN]:
                fix = first.problem.fix if one is first else ""
                shown.append(
                    Finding(one.problem.code, one.text, where=one.where, fix=fix, severity=severity)
                )
            if group.count > _SHOWN:
                more = group.count - _SHOWN
                text = f"and {more:,} more of the same kind ({first.problem.code})"
                shown.append(Finding("data-more", text, severity=severity))
        return shown

    def _by_severity(self) -> list[Group]:
        return sorted(self.groups.values(), key=lambda group: group.severity != "error")
