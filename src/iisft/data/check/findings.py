"""Findings about rows: all are counted, the first of each kind are kept, so that a hopeless file
fills no memory.
"""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iisft.errors import ExitCode, Finding, Severity

THE_FILE = "<the file>"
"""Stands in a fix for the file, which a check of one row doesn't know."""
KEPT = 5_000
"""Findings of one id that are kept with their row; more are only counted."""
_SHOWN = 5
EXCERPT = 60


@dataclass(slots=True, unsafe_hash=True)
class RowFinding(Finding):
    """One thing about one row.

    An error keeps the row from being staged, a warning doesn't. `line` is 0 where the file has no
    lines.
    """

    field: str = "row"
    excerpt: str = ""
    file: Path = Path()
    row: int = 0
    line: int = 0

    @property
    def text(self) -> str:
        shown = f": {self.excerpt}" if self.excerpt else ""
        place = f"row {self.row}: " + (f"{self.field}: " if self.field != "row" else "")
        return f"{place}{self.message}{shown}"

    def at(self, file: Path, row: int, line: int) -> "RowFinding":
        where = f"{file}:{line}" if line else str(file)
        fix = self.fix.replace(THE_FILE, shlex.quote(str(file)))
        return replace(self, file=file, row=row, line=line, where=where, fix=fix)

    def as_row_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "row": self.row,
            "line": self.line or None,
            "field": self.field,
            "code": self.id,
            "severity": self.severity,
            "message": self.message,
            "excerpt": self.excerpt,
        }


def flaw(
    field: str,
    id: str,
    message: str,
    excerpt: str = "",
    severity: Severity = "error",
    fix: str = "",
) -> RowFinding:
    """What a check of one row says; it learns its place when it is kept."""
    return RowFinding(id, message, "", fix, severity, ExitCode.INPUT, field, excerpt)


def excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "..."


def type_name(value: Any) -> str:
    names = {
        "str": "a text",
        "dict": "an object",
        "list": "a list",
        "int": "a number",
        "float": "a number",
        "bool": "true/false",
    }
    return "null" if value is None else names.get(type(value).__name__, type(value).__name__)


@dataclass(slots=True)
class Group:
    """All findings of one id: `count` of them, the first ones kept."""

    severity: Severity
    count: int = 0
    kept: list[RowFinding] = field(default_factory=list)


class Findings:
    """Collects what a pass over rows finds."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}

    def add(self, file: Path, row: int, line: int, found: RowFinding) -> None:
        group = self.groups.get(found.id)
        if group is None:
            group = self.groups[found.id] = Group(found.severity)
        group.count += 1
        if len(group.kept) < KEPT:
            group.kept.append(found.at(file, row, line))

    def add_many(self, found: Iterable[RowFinding], count: int) -> None:
        """Add the kept ones of an id that was counted elsewhere.

        `count` is how many there are in all.
        """
        kept = list(found)
        if kept:
            group = self.groups.setdefault(kept[0].id, Group(kept[0].severity))
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

    def first_of_each(self, only: Severity | None = None) -> list[Finding]:
        """For an error or for talk: the first rows of each id, and how many more there are."""
        shown: list[Finding] = []
        for group in self._by_severity():
            if only is not None and group.severity != only:
                continue
            first, *others = group.kept[:_SHOWN]
            shown += [first, *(replace(one, fix="") for one in others)]
            if group.count > _SHOWN:
                text = f"and {group.count - _SHOWN:,} more of the same kind ({first.id})"
                shown.append(Finding("data-more", text, severity=group.severity))
        return shown

    def _by_severity(self) -> list[Group]:
        return sorted(self.groups.values(), key=lambda group: group.severity != "error")
