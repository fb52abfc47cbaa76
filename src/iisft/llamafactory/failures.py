"""The trainer's known failures: what the end of its log says, why it happened, and what
fixes it.
"""

import re
from collections.abc import Iterator, Sequence

from iisft.llamafactory.failure import Failure, Kind
from iisft.llamafactory.failures_of_machine import MACHINE
from iisft.llamafactory.failures_of_setup import SETUP
from iisft.llamafactory.logs import error_in

__all__ = ["KNOWN", "Failure", "Kind", "diagnose", "exception_of"]

# The first entry that matches a line explains it: the special ones stand before the general ones.
KNOWN: tuple[Failure, ...] = (*MACHINE, *SETUP)

_AFTERMATH = "connection-lost"
_ROW_BEGINS = frozenset({"input_ids:", "inputs:", "label_ids:"})
_ROW_ENDS_WITH = "labels:"
_LOGGED = re.compile(r"\[(?:INFO|WARNING|ERROR|CRITICAL|DEBUG)\|")
_NO_ERROR = re.compile(r"\[(?:INFO|WARNING|DEBUG)\|")
_TRACEBACK = "Traceback (most recent call last):"
_LONGEST = 4000  # characters of a line that are looked at
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BAR = re.compile(r"^\s*(?:[\w ]+:\s*)?\d+%\|[^|]*\|[^\[]*\[[^\]]*\]")
_RANK = re.compile(r"^(?:\[(?:rank)?\d+\]:? ?)+")


def diagnose(lines: Sequence[str]) -> Failure | None:
    """The known failure that explains the end of one attempt's log, or None.

    Later lines win over earlier ones. What a rank says when another one has gone never hides why
    that one went: an error of communication counts only where no other is found, a lost connection
    only where there is nothing else. Data rows and the trainer's INFO and WARNING lines are passed
    over, whatever they contain.
    """
    found: Failure | None = None
    for line in _spoken(lines):
        failure = next((known for known in KNOWN if known.pattern.search(line)), None)
        if failure and (found is None or _standing(failure) >= _standing(found)):
            found = failure
    return found


def exception_of(failure: Failure, lines: Sequence[str]) -> str:
    """The exception in which the failure came, or "".

    The last one may be what another rank met afterwards.
    """
    spoken = list(_spoken(lines))
    last = error_in(spoken)
    own = error_in([line for line in spoken if failure.pattern.search(line)])
    return own or (last if diagnose([last]) in (None, failure) else "")


def _standing(failure: Failure) -> int:
    if failure.id == _AFTERMATH:
        return 0
    return 1 if failure.kind == "communication" else 2


def _spoken(lines: Sequence[str]) -> Iterator[str]:
    """The lines without rank prefixes, progress bars, colours, and without what is printed of the
    data.
    """
    in_row = in_labels = False
    for raw in _from_first_whole_row(lines):
        line = _BAR.sub("", _COLOUR.sub("", raw.rstrip("\r\n").rpartition("\r")[2][:_LONGEST]))
        of_rank = line.startswith("[rank")
        line = _RANK.sub("", line)
        if line in _ROW_BEGINS:
            in_row, in_labels = True, False
        elif in_row and line == _ROW_ENDS_WITH:
            in_labels = True
        elif in_row and (_LOGGED.match(line) or (in_labels and line == _TRACEBACK)):
            in_row = False
        if not (in_row and not of_rank) and not _NO_ERROR.match(line):
            yield line


def _from_first_whole_row(lines: Sequence[str]) -> Sequence[str]:
    """Without the rest of a printed row whose beginning was cut off."""
    for number, line in enumerate(lines):
        if line.strip() == "inputs:":
            break
        if line.strip() == "label_ids:":
            return lines[number:]
    return lines
