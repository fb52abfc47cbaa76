"""The only prints: data to stdout, messages to stderr; colour and bars only on a terminal."""

import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from iisft.errors import CheckFailed, Finding, IisftError

if TYPE_CHECKING:
    from rich.console import Console

_SEVERITY_STYLE = {"error": "red", "warn": "yellow", "info": "cyan"}
_WIDTH_WITHOUT_TERMINAL = 100


def out(text: str = "") -> None:
    """One line of data."""
    print(text, flush=True)


def out_part(text: str) -> None:
    """A part of a line of data, at once."""
    print(text, end="", flush=True)


def out_json(value: Any) -> None:
    """The one JSON document of a command, in ASCII where stdout is not UTF-8."""
    plain = (getattr(sys.stdout, "encoding", None) or "utf-8").lower() not in ("utf-8", "utf8")
    print(json.dumps(value, ensure_ascii=plain, indent=2), flush=True)


def say(text: str = "") -> None:
    """A message for people."""
    print(text, file=sys.stderr, flush=True)


def confirmed(question: str) -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def rich_stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def rich_stdout() -> "Console":
    """The terminal as it is; anything else is 100 columns wide, without colour."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal without Chinese or braille shows question marks
        sys.stdout.reconfigure(errors="replace")
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(
        highlight=False, width=_WIDTH_WITHOUT_TERMINAL, force_terminal=False, color_system=None
    )


def table(rows: Iterable[Sequence[str]], headers: Sequence[str]) -> None:
    """A plain aligned table on stdout, without boxes, so that grep and cut work."""
    cells = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(headers))]
    lines = []
    for row in cells:
        padded = [
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    out("\n".join(lines))


def findings(found: Iterable[Finding]) -> None:
    """Every finding with its place and its fix, errors in colour on a terminal."""
    for finding in found:
        mark = {"error": "error", "warn": "warning", "info": "note"}[finding.severity]
        say(f"{_coloured(mark + ':', _SEVERITY_STYLE[finding.severity])} {finding.text}")
        if finding.where:
            say(f"  where: {finding.where}")
        if finding.fix:
            say(f"  fix:   {finding.fix}")


def finding(severity: str, message: str, evidence: str, fix: str) -> None:
    """A finding as data on stdout: the message, what was seen, the fix, and a blank line."""
    mark = {"error": "error", "warn": "warning", "info": "note"}[severity]
    out(f"{_coloured(mark + ':', _SEVERITY_STYLE[severity], sys.stdout)} {message}")
    if evidence:
        out(f"  seen:  {evidence}")
    if fix:
        out(f"  fix:   {fix}")
    out()


def failure(error: IisftError) -> None:
    """An error for people."""
    if isinstance(error, CheckFailed):
        findings(error.findings)
    else:
        findings([error.finding])


def duration(seconds: float) -> str:
    """3d 4h, 2h 05m, 3m 20s, 7s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def _coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    import os

    codes = {"red": "31", "yellow": "33", "cyan": "36"}
    plain = not (stream or sys.stderr).isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[1;{codes[colour]}m{text}\x1b[0m"


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
