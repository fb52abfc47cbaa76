"""What the seconds of a training step are spent on, seen from within it.

A mark is a moment of the stream on a GPU (torch.cuda.Event, CUDA and HIP alike), else of the clock.
Nothing waits for a mark: they are read when the trainer logs, which has just waited for the loss.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_callback import TrainerCallback

from .constants_iisft import PROFILE_FILE, PROFILE_KEY, REHEARSED_FILE, REHEARSED_KEY

FORWARD, AGAIN, BACKWARD = "forward", "recomputation", "backward"
OPTIMIZER, DATA, WAITING = "optimizer", "data", "waiting"
_OTHER = "other"  # logging, saving, evaluating
_LONGEST_WAIT_S = 600.0  # of a rehearsed trainer that nobody kills
_PROFILED_STEP = 1  # the second: the first has caches to fill and kernels to choose


class Clock:
    """The marks of one process since they were last read."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self.doing, self._since = _OTHER, self._mark()

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, kind: str) -> None:
        """From here on time is spent on something else."""
        mark = self._mark()
        self._spans.append((self.doing, self._since, mark))
        self.doing, self._since = kind, mark

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """What is done here is recomputation, where the backward pass does it."""
        self.start_again()
        try:
            yield
        finally:
            self.end_again()

    def start_again(self, *_: Any) -> None:
        if self.doing == BACKWARD:
            self.enter(AGAIN)

    def end_again(self, *_: Any) -> None:
        if self.doing == AGAIN:
            self.enter(BACKWARD)

    def start_waiting(self, *_: Any) -> None:
        """The last gradient is there: what follows is the exchange between the ranks."""
        if self.doing in (BACKWARD, AGAIN):
            self.enter(WAITING)

    def set_aside(self) -> None:
        """What was just done belongs to no step; the next one fetches its rows."""
        self.doing = _OTHER
        self.enter(DATA)

    def read(self) -> dict[str, float] | None:
        """Seconds by kind since the last reading; None where a GPU has not come so far yet."""
        spans, self._spans = self._spans, []
        sums = dict.fromkeys((FORWARD, AGAIN, BACKWARD, OPTIMIZER, DATA, WAITING), 0.0)
        for kind, begin, end in spans:
            if kind != _OTHER:
                if self._on_gpu and not end.query():
                    return None
                sums[kind] += begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
        return {kind: round(seconds, 6) for kind, seconds in sums.items()}


def attach(model: Any, layers: list[nn.Module], device: torch.device) -> Clock:
    """A clock that hears of a model's layers when they are computed again."""
    clock = Clock(device)
    for layer in layers:
        layer.register_forward_pre_hook(clock.start_again)
        # non-reentrant checkpointing leaves a recomputation by an exception
        layer.register_forward_hook(clock.end_again, always_call=True)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        first = next((p for p in model.parameters() if p.requires_grad), None)
        if first is not None:  # of the first layer, whose gradients come last
            first.register_post_accumulate_grad_hook(clock.start_waiting)
    return clock


def clock_of(model: Any) -> Clock | None:
    """The clock of the view's model."""
    return getattr(_base(model), "iisft_clock", None)


def _base(model: Any) -> Any:
    """The model below DDP's and peft's wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Spent(TrainerCallback):
    """Tells the clock where a step's parts end that the model does not see, and records one step
    with torch's profiler where the view's config asks for it.
    """

    def __init__(self) -> None:
        self.profile: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        config = getattr(_base(kwargs.get("model")), "config", None)
        asked = getattr(config, PROFILE_KEY, False) and state.is_world_process_zero
        if asked and state.global_step == _PROFILED_STEP:
            self.profile = torch.profiler.profile()
            self.profile.start()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._enter(kwargs, DATA)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._enter(kwargs, OPTIMIZER)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.profile is not None:
            self.profile.stop()
            self.profile.export_chrome_trace(str(Path(args.output_dir) / PROFILE_FILE))
            self.profile = None
        self._enter(kwargs, DATA)

    def _enter(self, kwargs: dict[str, Any], kind: str) -> None:
        if (clock := clock_of(kwargs.get("model"))) is not None:
            clock.enter(kind)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_aside(kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_aside(kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_aside(kwargs)

    def _set_aside(self, kwargs: dict[str, Any]) -> None:
        if (clock := clock_of(kwargs.get("model"))) is not None:
            clock.set_aside()


class Rehearsal(TrainerCallback):
    """Takes the time of an evaluation and a checkpoint, and then waits to be killed, where the
    view's config asks for it: only the first trainer of a run, for it leaves a file.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:  # an evaluation logs as well, before it is said to be over
            self._since = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._took("eval_s")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._took("checkpoint_s")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        config = getattr(_base(kwargs.get("model")), "config", None)
        waits = getattr(config, REHEARSED_KEY, None) == state.global_step
        file = Path(args.output_dir) / REHEARSED_FILE
        if not (waits and state.is_world_process_zero) or file.exists():
            return
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._seconds))
        temporary.replace(file)
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.1)

    def _took(self, what: str) -> None:
        now = time.perf_counter()
        self._seconds[what], self._since = now - self._since, now
