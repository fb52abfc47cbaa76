"""What iisft adds to the training loop: all ranks stop after the same step, with a checkpoint.

transformers' enable_jit_checkpoint gives each rank its own timer. Ranks whose timers end in
different steps wait for each other forever, and it saves before the optimizer's step but after that
step's dropout was drawn, so that a resumed run differs. Here the ranks agree at the end of each
step, and the trainer saves as usual.
"""

import contextlib
import faulthandler
import json
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import trainer
from transformers.trainer_callback import TrainerCallback

from .clock_iisft import clock_of
from .constants_iisft import PROOF_VARIABLE, SAID_MARK, STOP_VARIABLE

LONGEST_LINE = 4096  # what a pipe takes in one piece: lines of several ranks can't mix


class StopTogether(TrainerCallback):
    """Stops on SIGTERM to any rank, or on the file that IISFT_STOP_FILE names.

    SIGUSR1 writes every thread's stack.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, self._ask)
        faulthandler.register(signal.SIGUSR1, all_threads=True)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stop_file = os.environ.get(STOP_VARIABLE)
        if _any_rank(self.asked or bool(stop_file and Path(stop_file).exists()), args.device):
            control.should_save = True
            control.should_training_stop = True

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Logging precedes saving: a step that broke the weights must not become a checkpoint."""
        # with fp16 the scaler skips a step whose gradient overflows (torch.amp.GradScaler)
        names = ("loss",) if args.fp16 else ("loss", "grad_norm")
        if any(not math.isfinite((logs or {}).get(name, 0.0)) for name in names):
            control.should_save = False
        if state.is_world_process_zero and logs and "loss" in logs:
            norm = logs.get("grad_norm")
            clock = clock_of(kwargs.get("model"))
            said = {
                "step": state.global_step,
                "grad_norm": None if norm is None else float(norm),
                "spent": clock.read() if clock else None,
            }
            say(SAID_MARK, said)


class Repeat(logging.Handler):
    """Says again, with the run's word, what transformers' trainer logs about its rows, batch and
    steps: the text of a data row, which is printed as an example, may look the same.
    """

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "*****" in message or " = " in message:
            say(SAID_MARK, {"log": message[:200]})


def say(mark: str, document: dict[str, Any]) -> None:
    """One line of stdout with the word that only the starter of this process knows."""
    word = os.environ.get(PROOF_VARIABLE)
    line = f"\n{' '.join(filter(None, (mark, word, json.dumps(document))))}\n".encode()
    if len(line) >= LONGEST_LINE:
        raise RuntimeError(f"{mark}: {len(line)} bytes are too many for one line")
    # when nobody reads, the run goes on; without these lines it is not proven
    if word or mark != SAID_MARK:
        with contextlib.suppress(OSError):
            os.write(1, line)


def _any_rank(asked: bool, device: torch.device) -> bool:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return asked
    flag = torch.tensor([int(asked)], device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def install(*more: type[TrainerCallback]) -> None:
    """Add the callbacks and the handler to every trainer of this process, once."""
    # each view imports this file under another module name
    if not any(
        callback.__name__ == StopTogether.__name__ for callback in trainer.DEFAULT_CALLBACKS
    ):
        trainer.DEFAULT_CALLBACKS.extend([StopTogether, *more])
        trainer.logger.addHandler(Repeat())
        _load_on_cpu_ranks()


def _load_on_cpu_ranks() -> None:
    """Let a CPU rank of several load optimizer.pt.

    transformers loads it to the rank's device (trainer.py, _load_optimizer_and_scheduler), which is
    "cpu:0" there, and torch 2.11 knows only "cpu". On GPUs there is no such device.
    """
    torch.serialization.register_package(
        5,  # before torch's own, which begin at 10
        lambda storage: None,
        lambda storage, place: storage if place.startswith("cpu:") else None,
    )
