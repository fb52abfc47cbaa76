"""How a trainer ended, and what a crash of it was, by the end of its log."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from iisft import process
from iisft.errors import Finding
from iisft.llamafactory.logs import dead_rank, error_in

OUT_OF_MEMORY = "gpu-out-of-memory"  # as the table of failures names it
_KILLED_FIX = (
    "if nobody did it, the machine ran out of memory: sudo dmesg | grep -i 'killed process'"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trainer ended.

    `passing`: it crashed for a reason that another start may not meet. `cause` is the same for the
    same reason, where `reason` has figures that differ each time. `lost_others`: its ranks could
    not reach the others, so that the reason may be found on another node.
    """

    state: Literal["finished", "stopped", "failed", "lost"]
    reason: str
    step: int
    total_steps: int
    returncode: int | None = None
    fix: str = ""
    passing: bool = False
    cause: str = ""
    lost_others: bool = False

    @property
    def comes_again(self) -> bool:
        """A resume would only fail in the same way."""
        return self.state == "failed" and not self.passing


@dataclass(frozen=True, slots=True)
class Crash:
    """A trainer that died by itself: the end of its log, and how far it was.

    `phase` is what it was doing; `went_on` whether it made a step in this life; `forecast` what the
    plan had said of memory.
    """

    lines: list[str]
    returncode: int | None
    step: int
    total_steps: int
    phase: str
    went_on: bool
    forecast: Mapping[str, Any] | None

    def ending(self) -> tuple[Ending, Finding | None]:
        """The ending, and the finding that names its cause where it is known."""
        from iisft.llamafactory import failures  # a table that a run that goes well never needs

        exception, killed = error_in(self.lines), dead_rank(self.lines)
        known = failures.diagnose(self.lines)
        # the others only lost the one that was killed
        if known and not (killed and known.kind == "communication"):
            at = f"while {self.phase} at step {self.step}: "
            where = at if known.kind in ("memory", "disk") else ""
            said = failures.exception_of(known, self.lines) or known.cause
            text = f"{where}{said} ({self._how()}){self._planned_memory(known.id)}"
            cause = OUT_OF_MEMORY if known.id == OUT_OF_MEMORY else ""
            finding = Finding(known.id, where + known.cause, fix=known.fix)
            ending = self._failed(text, known.fix, passing=known.passing, cause=cause)
            return replace(ending, lost_others=known.kind == "communication"), finding
        if killed or self._how() == "SIGKILL":
            text = killed or "the trainer was killed (SIGKILL)"
            finding = Finding("killed", text, fix=_KILLED_FIX)
            return self._failed(text, _KILLED_FIX, passing=True), finding
        if not exception and self.returncode in (0, None):
            total = self.total_steps or "unknown"
            text = f"the trainer ended at step {self.step} of {total} without an error"
            return self._failed(text, passing=True), None
        text = f"{exception or 'the trainer died'} ({self._how()})"
        # An exception before the first step comes again at each start.
        return self._failed(text, passing=self.went_on or not exception), None

    def _failed(self, reason: str, fix: str = "", *, passing: bool, cause: str = "") -> Ending:
        ended = (self.step, self.total_steps, self.returncode)
        return Ending("failed", reason, *ended, fix=fix, passing=passing, cause=cause)

    def _planned_memory(self, failure: str) -> str:
        """What the plan had said, beside an out-of-memory error."""
        if failure != OUT_OF_MEMORY or self.forecast is None:
            return ""
        return (
            f"; the plan said {self.forecast['peak_gib']:.1f} GiB of tensors, fits: "
            f"{self.forecast['fits']} (iisft plan)"
        )

    def _how(self) -> str:
        if self.returncode is None:
            return "unsupervised at its end"
        if self.returncode >= 0:
            return f"exit code {self.returncode}"
        return process.signal_name(self.returncode)
