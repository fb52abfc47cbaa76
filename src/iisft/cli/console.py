"""The only prints: data to stdout, messages to stderr, colour and bars only on a terminal; and
files that a person named, written whole and over nothing unasked.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from iisft.errors import CheckFailed, Finding, IisftError, UsageError
from iisft.quoting import visible, visible_json, visible_line
from iisft.secrets import hide

if TYPE_CHECKING:
    from rich.console import Console

import errno
import shlex
from pathlib import Path

from iisft import files
from iisft.errors import EnvironmentFault, RunStateError

_MARKS = {"error": "error", "warn": "warning", "info": "note"}
_SEVERITY_STYLE = {"error": "red", "warn": "yellow", "info": "cyan"}
_WIDTH_WITHOUT_TERMINAL = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ReaderGone(Exception):
    """Who read what a command goes on saying for ever has closed the pipe."""


def out(text: str = "") -> None:
    """One line of data. When its reader has gone, the command still comes to its verdict."""
    with contextlib.suppress(ReaderGone):
        out_live(text)


def out_live(text: str = "", end: str = "\n") -> None:
    """A line, or a part of one, of a command that may never end by itself.

    Raises:
        ReaderGone: nobody reads any more.
    """
    _write(_shown(text) + end)


def out_json(value: Any) -> None:
    """The one JSON document of a command, which any encoding can carry."""
    with contextlib.suppress(ReaderGone):
        _write(_as_json(value, indent=2) + "\n")


def out_json_line(value: Any) -> None:
    """One of a stream of JSON documents.

    Raises:
        ReaderGone: nobody reads any more.
    """
    _write(_as_json(value, indent=None) + "\n")


def _as_json(value: Any, indent: int | None) -> str:
    from iisft import json_values

    text = visible_json(hide(json_values.json_text(value, indent=indent)))
    plain = (getattr(sys.stdout, "encoding", None) or "utf-8").lower() in ("utf-8", "utf8")
    return text if plain else "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)


def _write(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # what is still in the buffer would fail once more at the interpreter's end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from None


def say(text: str = "") -> None:
    """Talk. Nothing fails because nobody listens."""
    _talk(_shown(text))


def _talk(text: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def confirmed(question: str) -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    _talk(f"{visible_line(question)} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def require_yes(said: bool, question: str, command: str) -> None:
    """
    Raises:
        UsageError: nobody said yes, here or by an option.
    """
    if not said and not confirmed(question):
        raise UsageError("not-confirmed", "nothing was deleted", fix=f"say yes, or {command}")


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


def out_rich(terminal: "Console", picture: Any, **options: Any) -> None:
    """What rich draws, as data. Its texts from outside were made visible before."""
    with terminal.capture() as drawn:
        terminal.print(picture, **options)
    with contextlib.suppress(ReaderGone):
        _write(drawn.get())


def table(rows: Iterable[Sequence[str]], headers: Sequence[str]) -> None:
    """A plain aligned table on stdout, without boxes, so that grep and cut work."""
    cells = [tuple(headers), *(tuple(map(visible_line, row)) for row in rows)]
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
        mark = _MARKS[finding.severity]
        _talk(f"{_coloured(mark + ':', _SEVERITY_STYLE[finding.severity])} {_shown(finding.text)}")
        if finding.where:
            say(f"  where: {finding.where}")
        if finding.fix:
            say(f"  fix:   {finding.fix}")


def finding(found: Finding, message: str) -> None:
    """A finding as data on stdout: the message, what was seen, the fix, and a blank line."""
    mark = _MARKS[found.severity]
    shown = _coloured(mark + ":", _SEVERITY_STYLE[found.severity], sys.stdout)
    with contextlib.suppress(ReaderGone):
        _write(f"{shown} {_shown(message)}\n")
    if found.where:
        out(f"  seen:  {found.where}")
    if found.fix:
        out(f"  fix:   {found.fix}")
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


def _shown(text: str) -> str:
    return visible(hide(text))


def _coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    codes = {"red": "31", "yellow": "33", "cyan": "36"}
    plain = not (stream or sys.stderr).isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[1;{codes[colour]}m{text}\x1b[0m"


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def write(path: Path, content: str | bytes, error: type[IisftError], code: str) -> None:
    """Write a file; a person at a terminal is asked before one is replaced.

    Raises:
        RunStateError: the file exists.
        EnvironmentFault: the disk is full.
        IisftError: of the type `error` with that code: it can't be written.
    """
    raw = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    try:
        try:
            files.write_named(path, raw)
        except FileExistsError:
            if not confirmed(f"{path} exists. Replace it?"):
                raise exists(path) from None
            files.write_named(path, raw, replace=True)
    except OSError as fault:
        raise unwritable(path, fault, error, code) from fault


def exists(path: Path) -> RunStateError:
    return RunStateError(
        "file-exists",
        "the file exists",
        where=str(path),
        fix=f"choose another name, or: rm {shlex.quote(str(path))}",
    )


def unwritable(path: Path, fault: OSError, error: type[IisftError], code: str) -> IisftError:
    """A full disk is the machine's matter, whatever was to be written."""
    kind = EnvironmentFault if fault.errno in _FULL else error
    return kind(code, f"can't be written: {fault.strerror}", where=str(path))
