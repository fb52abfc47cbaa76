"""Exit codes, findings and the one error tree.

Domain code raises; iisft.cli turns it into text and exit codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal, Self


class ExitCode(IntEnum):
    """What a shell script may rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INPUT = 3
    ENVIRONMENT = 4
    TRANSFER = 5
    RUN_STATE = 6
    INTERRUPTED = 130


Severity = Literal["error", "warn", "info"]


# Not frozen, which would cost six times as much: a hopeless file has one in every row.
@dataclass(slots=True, unsafe_hash=True)
class Finding:
    """One thing that a check saw: what is wrong, where, and the command or change that fixes it.

    `id` is stable for scripts. `where` is a place (file:line, a key) or what was seen there.
    """

    id: str
    message: str
    where: str = ""
    fix: str = ""
    severity: Severity = "error"
    exit_code: ExitCode = ExitCode.INPUT

    @property
    def text(self) -> str:
        """The message as a person reads it."""
        return self.message

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "severity": self.severity,
            "message": self.text,
            "where": self.where,
            "fix": self.fix,
        }


class IisftError(Exception):
    """An error that a person can fix; `finding` says what, where and how.

    `code` is the finding's id under the name that it has in the JSON of an error.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, code: str, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.finding = Finding(code, message, where, fix, exit_code=self.exit_code)

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """The error of this kind that carries the finding."""
        error = cls(finding.id, finding.message)
        error.finding = replace(finding, exit_code=cls.exit_code)
        return error

    @property
    def code(self) -> str:
        return self.finding.id

    @property
    def message(self) -> str:
        return self.finding.message

    @property
    def where(self) -> str:
        return self.finding.where

    @property
    def fix(self) -> str:
        return self.finding.fix

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "where": self.where, "fix": self.fix}


class UsageError(IisftError):
    exit_code = ExitCode.USAGE


class InputError(IisftError):
    """A preset, a model folder or data is wrong or missing."""

    exit_code = ExitCode.INPUT


class EnvironmentFault(IisftError):
    """The machine or its packages can't do what was asked."""

    exit_code = ExitCode.ENVIRONMENT


class TransferError(IisftError):
    """A download or a staging step could not be finished."""

    exit_code = ExitCode.TRANSFER


class RunStateError(IisftError):
    """No such run, a name already taken, or a run in another state than the command needs."""

    exit_code = ExitCode.RUN_STATE


class RunFailed(IisftError):
    """Training itself failed."""

    exit_code = ExitCode.FAILED


class CheckFailed(IisftError):
    """Several findings at once.

    The exit code is the smallest one among the errors (input before environment).
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        self.errors = tuple(f for f in findings if f.severity == "error")
        first = self.errors[0]
        super().__init__(first.id, first.text, where=first.where, fix=first.fix)
        self.exit_code = ExitCode(min(f.exit_code for f in self.errors))

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "findings": [f.as_json() for f in self.findings]}
