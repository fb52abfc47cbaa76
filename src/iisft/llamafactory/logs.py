"""What the trainer says: its log lines, its summary, its metrics, and the proof line of iisft's
modelling file.
"""

import ast
import json
import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iisft import files
from iisft.child.constants_iisft import PROOF_MARK

_SUMMARY = {
    "rows": re.compile(r"Num examples = ([\d,]+)$"),
    "global_batch": re.compile(
        r"Total train batch size \(w\. parallel, distributed & accumulation\) = ([\d,]+)$"
    ),
    "total_steps": re.compile(r"Total optimization steps = ([\d,]+)$"),
    "trainable_parameters": re.compile(r"Number of trainable parameters = ([\d,]+)$"),
}
_TRAINING_STARTS = "***** Running training *****"
_EVALUATION_STARTS = "***** Running Evaluation *****"
_ERROR = re.compile(
    r"^(?:\[rank\d+\]: )?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)): ?(.*)$"
)
# torch.distributed.elastic's failure report
_REPORTED_RANK = re.compile(r"^\s+rank\s+: (\d+) \(local_rank: \d+\)$")
_REPORTED_SIGNAL = re.compile(r"^\s+traceback : Signal \d+ \((SIG\w+)\) received by PID \d+$")
_NOT_THE_CAUSE = ("CalledProcessError", "ChildFailedError", "SignalException", "DistNetworkError")


@dataclass(frozen=True, slots=True)
class Metrics:
    """One logging step. `loss` and `grad_norm` may be NaN; None = not said.

    `tokens` counts from the run's first step, padding left out; the memory is the first rank's peak
    so far.
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

    trainer_log.jsonl has the step and the full-precision loss, the log has grad_norm: both get one
    entry per logging step in the same order, so they are paired first in, first out.
    """

    log: files.LineFollower
    metrics_log: files.LineFollower
    proof_word: str = ""
    proofs: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, int] = field(default_factory=dict)
    training_started: bool = False
    evaluating: bool = False
    grew: bool = False
    _printed: deque[dict[str, Any]] = field(default_factory=deque)
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
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "current_steps" in entry:
                self._awaiting.append(entry)
        return list(self._pair(at_end))

    def _take_line(self, line: str) -> None:
        mark = f"{PROOF_MARK} {self.proof_word}"
        if line.startswith(mark):
            try:
                proof = json.loads(line.removeprefix(mark))
                self.proofs[int(proof["rank"])] = proof
            except (ValueError, KeyError, TypeError):
                return  # a torn proof is no proof
        elif line.startswith("{'") and self.training_started:
            try:
                printed = ast.literal_eval(line)
            except (ValueError, SyntaxError):
                return
            if "loss" in printed:
                self._printed.append(printed)
        elif _TRAINING_STARTS in line:
            self.training_started = True
            self.summary.clear()
        elif _EVALUATION_STARTS in line:
            self.evaluating = True
        elif self.training_started:
            for name, pattern in _SUMMARY.items():
                if name not in self.summary and (match := pattern.search(line)):
                    self.summary[name] = int(match[1].replace(",", ""))

    def _pair(self, at_end: bool) -> list[Metrics]:
        found = []
        while self._awaiting:
            entry = self._awaiting[0]
            if "loss" in entry and not self._printed and not at_end:
                break
            self._awaiting.popleft()
            printed = self._printed.popleft() if "loss" in entry and self._printed else {}
            self.evaluating = self.evaluating and "eval_loss" not in entry
            if "loss" in entry or "eval_loss" in entry:
                found.append(_metrics(entry, printed))
        return found


def last_lines(log: Path, begin: int = 0, tail_bytes: int = 200_000) -> list[str]:
    """The last whole lines that were written since `begin` (bytes)."""
    return files.last_lines(log, min(tail_bytes, max(0, _size(log) - begin)))


def error_in(lines: Sequence[str]) -> str:
    """The last exception that names a cause, or "" when there is none."""
    for line in reversed(lines):
        match = _ERROR.match(line.strip())
        if match and match[1].rpartition(".")[2] not in _NOT_THE_CAUSE:
            return f"{match[1]}: {match[2]}".rstrip(": ")
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


def _metrics(entry: dict[str, Any], printed: dict[str, Any]) -> Metrics:
    return Metrics(
        step=int(entry["current_steps"]),
        total_steps=int(entry.get("total_steps") or 0),
        epoch=_number(entry.get("epoch")),
        loss=_number(entry.get("loss")),
        learning_rate=_number(entry.get("lr")),
        grad_norm=_number(printed.get("grad_norm")),
        eval_loss=_number(entry.get("eval_loss")),
        tokens=entry.get("total_tokens"),
        vram_allocated_gib=_number(entry.get("vram_allocated")) or None,  # 0.0 without a GPU
        vram_reserved_gib=_number(entry.get("vram_reserved"))
        if entry.get("vram_allocated")
        else None,
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
