"""placeholder until merged"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    id: str
    kind: str
    pattern: re.Pattern[str]
    cause: str
    fix: str
    passing: bool
    source: str


def diagnose(lines: Sequence[str]) -> Failure | None:
    return None
