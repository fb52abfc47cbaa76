"""What one known failure of the trainer is, for the tables of failures.py."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["memory", "disk", "gpu", "communication", "input", "environment"]

# How an error begins: a Python exception, what a C++ one says, or the end of a watchdog thread.
# Never a mere mention.
RAISED = (
    r"(?:^(?:\w+\.)*[A-Z]\w*(?:Error|Exception): |^\s*what\(\):\s+|terminated with exception: )"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One known failure: how it is printed, what it means, what fixes it.

    `pattern` is searched in single lines of the log. `passing` = the same run may well get through
    when started again. `source` is the rule, issue thread or document that the entry comes from.
    """

    id: str
    kind: Kind
    pattern: re.Pattern[str]
    cause: str
    fix: str
    passing: bool
    source: str


def known(
    kind: Kind,
    failure_id: str,
    pattern: str,
    *,
    cause: str,
    fix: str,
    source: str,
    passing: bool = False,
) -> Failure:
    """An entry of the table; by default one that would only fail again."""
    return Failure(failure_id, kind, re.compile(pattern), cause, fix, passing, source)
