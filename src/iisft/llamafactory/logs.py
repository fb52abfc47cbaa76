"""What the trainer says: its log lines, its summary, its metrics, and the proof line of iisft's
modelling file.
"""

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft import files, json_values
from iisft.child.constants_iisft import PROOF_MARK, SAID_MARK
from iisft.llamafactory.library_warnings import said_in

SUMMARY = {
    "rows": re.compile(r"Num examples = ([\d,]{1,20})$"),
    "global_batch": re.compile(
        r"Total train batch size \(w\. parallel, distributed & accumulation\) = ([\d,]{1,20})$"
    ),
    "total_steps": re.compile(r"Total optimization steps = ([\d,]{1,20})$"),
    "trainable_parameters": re.compile(r"Number of trainable parameters = ([\d,]{1,20})$"),
}
_MOST_AWAITED = 2  # a line of the log that was torn keeps no curve waiting
_MOST_WARNINGS = 1000
_MOST_STEPS = 2**53
_MOST_KINDS, _LONGEST_KIND = 12, 40  # of what a step's seconds go into
TRAINING_STARTS = "***** Running training *****"
_EVALUATION_STARTS = "***** Running Evaluation *****"
_ERROR = re.compile(
    r"^(?:\[rank\d+\]: )?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit))"
    r"(?:: ?(.*))?$"
)
# torch.distributed.elastic's failure report
_REPORTED_RANK = re.compile(r"^\s+rank\s+: (\d+) \(local_rank: \d+\)$")
_REPORTED_SIGNAL = re.compile(r"^\s+traceback : Signal \d+ \((SIG\w+)\) received by PID \d+$")
_NOT_THE_CAUSE = ("CalledProcessError", "ChildFailedError", "SignalException", "DistNetworkError")


Said = tuple[float | None, dict[str, float] | None]  # the norm of a step's gradient, its seconds


@dataclass(frozen=True, slots=True)
class Metrics:
    """One logging step. `loss` and `grad_norm` may be NaN; None = not said.

    `tokens` counts from the run's first step, padding left out; the memory is the first rank's peak
    so far. `spent`: its seconds by what they went into, since the last logging.
    """

    step: int
    total_steps: int
    epoch: float | None
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    eval_loss: float | None = None
    tokens: int | None = None
    vram_allocated_gib: float | None = None
    vram_reserved_gib: float | None = None
    spent: dict[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """Only finite numbers are JSON; NaN and infinities become their names."""
        pairs = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: _finite(value) for name, value in pairs.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Begin:
    """Where one start of the trainer begins in its two logs, in bytes."""

    log_offset: int
    metrics_offset: int

    @classmethod
    def here(cls, log: Path, metrics_log: Path) -> "Begin":
        """The present end of both."""
        return cls(_size(log), _size(metrics_log))


@dataclass
class TrainerLog:
    """Follows a run's log and LLaMA-Factory's trainer_log.jsonl from given places on.

    trainer_log.jsonl has the step and the full-precision loss. Of the log only lines with the run's
    own word count: everything else may be the text of a data row, which the trainer prints.
    `warnings` is what looks like one of the libraries', until the first step.
    """

    log: files.LineFollower
    metrics_log: files.LineFollower
    proof_word: str = ""
    proofs: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, int] = field(default_factory=dict)
    training_started: bool = False
    evaluating: bool = False
    grew: bool = False
    listening: bool = True
    warnings: list[str] = field(default_factory=list)
    _norms: dict[int, Said] = field(default_factory=dict)
    _awaiting: deque[dict[str, Any]] = field(default_factory=deque)

    @classmethod
    def follow(
        cls, log: Path, metrics_log: Path, begin: Begin, proof_word: str = ""
    ) -> "TrainerLog":
        """Only proofs with `proof_word` count: the trainer prints data rows as well."""
        return cls(
            files.LineFollower(log, begin.log_offset),
            files.LineFollower(metrics_log, begin.metrics_offset),
            proof_word,
        )

    def read(self, *, at_end: bool = False) -> list[Metrics]:
        """Take in what was added; the metrics that are complete.

        At the end of the trainer nothing is waited for.
        """
        lines = self.log.read()
        self.grew = bool(lines)
        for line in lines:
            self._take_line(line)
        for line in self.metrics_log.read():
            entry = _document(line)
            if entry is not None and _count(entry.get("current_steps")) is not None:
                self._awaiting.append(entry)
        return list(self._pair(at_end))

    def _take_line(self, line: str) -> None:
        if self.listening and (warning := said_in(line)) and len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(warning)
        if (said := self._said(line, SAID_MARK)) is not None:
            if (step := _count(said.get("step"))) is not None:
                self.listening = False
                self._norms[step] = _number(said.get("grad_norm")), _seconds(said.get("spent"))
            self._take_message(str(said.get("log", "")))
        proof = self._said(line, PROOF_MARK)
        if proof is not None and (rank := _count(proof.get("rank"))) is not None:
            self.proofs[rank] = proof

    def _said(self, line: str, mark: str) -> dict[str, Any] | None:
        """What stands behind a mark and the run's word; a torn line says nothing."""
        words = f"{mark} {self.proof_word} "
        believed = self.proof_word and line.startswith(words)
        return _document(line.removeprefix(words)) if believed else None

    def _take_message(self, message: str) -> None:
        if TRAINING_STARTS in message:
            self.training_started = True
            self.summary.clear()
        elif _EVALUATION_STARTS in message:
            self.evaluating = True
        elif self.training_started:
            for name, pattern in SUMMARY.items():
                if name not in self.summary and (match := pattern.search(message)):
                    self.summary[name] = int(match[1].replace(",", ""))

    def _pair(self, at_end: bool) -> list[Metrics]:
        """The metrics whose grad_norm has come, or does not come any more."""
        found = []
        while self._awaiting:
            entry = self._awaiting[0]
            step = int(entry["current_steps"])
            late = at_end or len(self._awaiting) > _MOST_AWAITED
            if "loss" in entry and step not in self._norms and not late:
                break
            self._awaiting.popleft()
            nothing: Said = (None, None)
            said = self._norms.pop(step, nothing) if "loss" in entry else nothing
            self.evaluating = self.evaluating and "eval_loss" not in entry
            if "loss" in entry or "eval_loss" in entry:
                found.append(_metrics(entry, said))
        return found


def last_lines(log: Path, begin: int = 0, tail_bytes: int = 200_000) -> list[str]:
    """The last whole lines that were written since `begin` (bytes)."""
    return files.last_lines(log, min(tail_bytes, max(0, _size(log) - begin)))


def error_in(lines: Sequence[str]) -> str:
    """The last exception that names a cause, or "" when there is none."""
    for line in reversed(lines):
        match = _ERROR.match(line.strip())
        if match and match[1].rpartition(".")[2] not in _NOT_THE_CAUSE:
            return f"{match[1]}: {match[2] or ''}".rstrip(": ")
    return ""


def dead_rank(lines: Sequence[str]) -> str:
    """Which rank torchrun saw killed first, from the report at its end, or ""."""
    rank = ""
    for line in lines:
        if match := _REPORTED_RANK.match(line):
            rank = match[1]
        elif (match := _REPORTED_SIGNAL.match(line)) and rank:
            return f"rank {rank} was killed ({match[1]})"
    return ""


def _metrics(entry: dict[str, Any], said: Said) -> Metrics:
    return Metrics(
        step=int(entry["current_steps"]),
        total_steps=_count(entry.get("total_steps")) or 0,
        epoch=_number(entry.get("epoch")),
        loss=_number(entry.get("loss")),
        learning_rate=_number(entry.get("lr")),
        grad_norm=said[0],
        spent=said[1],
        eval_loss=_number(entry.get("eval_loss")),
        tokens=_count(entry.get("total_tokens")),
        vram_allocated_gib=_number(entry.get("vram_allocated")) or None,  # 0.0 without a GPU
        vram_reserved_gib=_number(entry.get("vram_reserved"))
        if entry.get("vram_allocated")
        else None,
    )


def _document(text: str) -> dict[str, Any] | None:
    try:
        value = json_values.parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST_STEPS else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _seconds(value: Any) -> dict[str, float] | None:
    """Finite seconds by name; anything else is not believed."""
    if not isinstance(value, dict) or len(value) > _MOST_KINDS:
        return None
    numbers = {str(kind)[:_LONGEST_KIND]: _number(seconds) for kind, seconds in value.items()}
    known = {kind: s for kind, s in numbers.items() if s is not None and 0 <= s < math.inf}
    return known if len(known) == len(value) else None


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
