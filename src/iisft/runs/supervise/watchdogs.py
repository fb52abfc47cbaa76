"""What the supervisor watches for: NaN, a hang, a disk that is getting full, a GPU
that throttles; and what is worth knowing about a hang.
"""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from iisft import files, process
from iisft.errors import Finding
from iisft.llamafactory.logs import Metrics
from iisft.machine.facts import sensors
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord

if TYPE_CHECKING:
    from iisft.machine.facts.machine import Machine

_NAN_STEPS = 2
# GradScaler starts at 2**16 and halves at each overflow, whose step it skips; the loss stays finite
# meanwhile.
_SCALER_STEPS = 16
_MIN_STOP_GRACE_S = 180.0
_LONG_LIMIT = 12  # x hang_min_s: loading, the first step, saving, evaluating
_ROOM = 1.1
_DISK_EVERY_S = 30.0
_GPU_EVERY_S = 60.0
_POWER_EVERY_S = 10.0
_SMALLEST_CARD_GIB = 2.0  # a processor's own graphics are smaller
_THERMAL_EVERY_S = 3600.0
_PY_SPY_TIMEOUT_S = 20.0
_STACKS_S = 2.0
_LOOK = "look at the stacks and at the load of the machine"


def stop_grace_s(median_step_s: float | None, hang_min_s: float) -> float:
    """Seconds that a trainer asked to stop gets for its present step and the checkpoint."""
    if median_step_s is None:
        return max(_MIN_STOP_GRACE_S, _LONG_LIMIT * hang_min_s)
    return max(_MIN_STOP_GRACE_S, 3 * median_step_s + 120)


@dataclass
class NanWatch:
    """Consecutive logged steps without a usable number. `reaction` is the preset's watch.nan."""

    reaction: str
    with_scaler: bool
    _broken: int = 0
    _overflows: int = 0

    def see(self, metrics: Metrics) -> str:
        """Why nothing is learnt any more, or ""."""
        loss, norm = metrics.loss, metrics.grad_norm
        if loss is None or self.reaction == "ignore":
            return ""
        no_gradient = norm is not None and not math.isfinite(norm)
        # With logging_nan_inf_filter a NaN loss is logged as 0.0; ZeRO-3 on the CPU gave grad_norm
        # 0 at any loss.
        lost = not math.isfinite(loss) or norm == 0.0 or (loss == 0.0 and no_gradient)
        overflow = no_gradient and self.with_scaler and not lost
        self._broken = self._broken + 1 if lost or (no_gradient and not overflow) else 0
        self._overflows = self._overflows + 1 if overflow else 0
        if self._broken >= _NAN_STEPS or self._overflows > _SCALER_STEPS:
            return (
                f"loss {loss}, grad_norm {norm} at step {metrics.step}: nothing is learnt from "
                "here on"
            )
        return ""


@dataclass
class HangWatch:
    """Seconds without a sign of life, counted per phase: training, or one that may take long."""

    min_s: float
    factor: float
    # the trainer's argument: every so many steps, or below 1 that share of all steps
    logging_steps: float = 1
    _phase: str = "loading"
    _since: float = field(default_factory=time.monotonic)
    _looked: float = field(default_factory=time.monotonic)

    def look(
        self, phase: str, *, moved: bool, median_step_s: float | None, total_steps: int = 0
    ) -> str:
        """Called every round; what hangs and since when, or "".

        Args:
            phase: loading, training, saving or evaluating.
            moved: a step was logged, or the log grew while loading.
            median_step_s: seconds per step so far.
            total_steps: of the whole run, 0 while unknown.
        """
        now = time.monotonic()
        # this process itself was stopped: it has not seen what happened meanwhile
        if now - self._looked > 10:
            moved = True
        self._looked = now
        if moved or phase != self._phase:
            self._phase, self._since = phase, now
        waited, limit = now - self._since, self._limit(phase, median_step_s, total_steps)
        return (
            f"no sign of life for {waited:.0f} s while {phase} (limit {limit:.0f} s)"
            if waited > limit
            else ""
        )

    def _limit(self, phase: str, median_step_s: float | None, total_steps: int) -> float:
        # Steps between two logged ones are silent, however well they go.
        every = self.logging_steps if self.logging_steps >= 1 else self.logging_steps * total_steps
        silent = max(math.ceil(every) - 1, 0)
        if phase == "training" and median_step_s is not None:
            return max(self.min_s, self.factor * median_step_s) + silent * median_step_s
        if median_step_s is None:
            return _LONG_LIMIT * self.min_s * (1 + silent)
        if phase == "evaluating":  # as long as many steps
            return _LONG_LIMIT * max(self.min_s, self.factor * median_step_s)
        return _LONG_LIMIT * self.min_s


@dataclass
class DiskWatch:
    """Whether the next checkpoint will fit, asked long before it is written."""

    place: Path
    needed: int = 0  # bytes of the last checkpoint
    _looked: float = -math.inf
    _said: bool = False

    def look(self) -> Finding | None:
        """A finding when the disk has become too full, once until there is room again."""
        now = time.monotonic()
        if not self.needed or now - self._looked < _DISK_EVERY_S:
            return None
        self._looked = now
        try:
            free = shutil.disk_usage(self.place).free
        except OSError:
            return None
        short, said = free < self.needed * _ROOM, self._said
        self._said = short
        if not short or said:
            return None
        message = (
            f"the next checkpoint needs {self.needed / 2**30:.2f} GiB, {free / 2**30:.2f} "
            "GiB are free"
        )
        fix = f"free some space below {self.place}"
        return Finding("disk-low", message, fix=fix, severity="warn")


@dataclass
class ThermalWatch:
    """GPUs at their temperature limit, noted once an hour: a slower step has then a reason on
    record.
    """

    _looked: float = -math.inf
    _said: float = -math.inf

    def look(self) -> Finding | None:
        now = time.monotonic()
        if now - self._looked < _GPU_EVERY_S or now - self._said < _THERMAL_EVERY_S:
            return None
        self._looked = now
        hot = [
            f"{gpu.name or gpu.vendor}{_degrees(gpu.temperature_c)}"
            for gpu in sensors.sample()
            if gpu.throttled
        ]
        if not hot:
            return None
        self._said = now
        message = f"throttled by temperature: {', '.join(hot)}"
        fix = "check the fans and the air flow"
        return Finding("thermal", message, fix=fix, severity="warn")


@dataclass
class PowerWatch:
    """What the run's GPUs take from the wall, a mean for each minute.

    Args:
        gpus: the architectures of the run's; where the machine shows more of that kind, or fewer,
            it is not known which are its own, and nothing is measured.
    """

    gpus: Sequence[str]
    _joules: float = 0.0

    def __post_init__(self) -> None:
        self._since = self._looked = time.monotonic()

    def look(self, *, at_end: bool = False) -> dict[str, float] | None:
        """Joules and seconds since the last answer, once a minute and at the end."""
        now = time.monotonic()
        if self.gpus and (at_end or now - self._looked >= _POWER_EVERY_S):
            watts = self._watts()
            if watts is None:
                self._since, self._joules = now, 0.0
            else:
                self._joules += watts * (now - self._looked)
            self._looked = now
        if not self._joules or (now - self._since < _GPU_EVERY_S and not at_end):
            return None
        taken = {"joules": round(self._joules, 1), "seconds": round(now - self._since, 1)}
        self._since, self._joules = now, 0.0
        return taken

    def _watts(self) -> float | None:
        vendor = "amd" if self.gpus[0].startswith("gfx") else "nvidia"
        shown = [
            gpu.power_w
            for gpu in sensors.sample()
            if gpu.vendor == vendor and (gpu.memory_total_gib or 0) >= _SMALLEST_CARD_GIB
        ]
        known = [watts for watts in shown if watts is not None]
        return sum(known) if len(known) == len(shown) == len(self.gpus) else None


def _degrees(temperature_c: float | None) -> str:
    return "" if temperature_c is None else f" {temperature_c:.0f} C"


def collect_stacks(folder: RunFolder) -> str:
    """Write the stacks of every rank to a file (py-spy) or to the trainer's log, and say where they
    are.
    """
    ranks = process.rank_processes(folder.marker)
    program = shutil.which("py-spy")
    if program is None:
        process.ask_for_stacks(ranks)
        # each thread's stack is written by a signal handler, then the trainer is killed
        time.sleep(_STACKS_S)
        return f"stacks are in {folder.train_log}"
    texts = []
    for pid in ranks:
        try:
            dumped = process.run([program, "dump", "--pid", str(pid)], timeout_s=_PY_SPY_TIMEOUT_S)
            texts.append(dumped.stdout or dumped.stderr)
        except (OSError, TimeoutError) as error:
            texts.append(f"process {pid}: {error}")
    file = folder.logs / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        files.write_text_atomically(file, "\n".join(texts))
    except OSError as error:
        return f"stacks can't be written: {error.strerror}"
    return f"stacks are in {file}"


def gpu_use() -> str:
    """How busy each GPU is: all at 100 % beside a standing run is a collective that waits, 0 % a
    rank that does.
    """
    shares = [
        "?" if gpu.busy_percent is None else f"{gpu.busy_percent:.0f} %" for gpu in sensors.sample()
    ]
    return f"; GPUs busy {', '.join(shares)}" if shares else ""


def likely_causes(record: RunRecord, machine: "Machine | None" = None) -> str:
    """The doctor's rules about hanging collectives that fire on this machine, for a run of several
    GPUs.
    """
    ranks = record.world_size or 1
    if record.setting("hardware.vendor") == "cpu" or ranks < 2:
        return _LOOK
    from iisft.machine.doctor import (
        engine,  # with pydantic, which the supervisor does without until now
        inspect,
    )

    case = engine.Case(ranks=ranks, machine=machine or inspect.last_known())
    causes = [f"{one.id} {one.message} ({one.fix})" for one in engine.causes_of_hang(case)]
    if causes:
        return "; ".join(causes)
    return (
        f"none of the known causes shows on this machine; {_LOOK}, try export NCCL_P2P_DISABLE=1, "
        "and let iisft env-check --deep test the all-reduce"
    )
