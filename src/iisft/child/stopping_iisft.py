"""What iisft adds to the training loop: every rank stops after the same step, with an ordinary
checkpoint.

transformers' enable_jit_checkpoint gives each rank a timer of its own. Ranks whose timers end in
different steps wait for each other for ever, and it saves before the optimizer's step but after the
dropout of that step was drawn, so that a resumed run differs. Here the ranks agree at the end of
each step, and the trainer saves as it always does.
"""

import contextlib
import faulthandler
import math
import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import trainer
from transformers.trainer_callback import TrainerCallback

from .constants_iisft import STOP_VARIABLE


class StopTogether(TrainerCallback):
    """Asked by SIGTERM to any rank, or by the file that IISFT_STOP_FILE names.

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
        """Logging comes before saving: a step that broke the weights must not become the newest
        checkpoint.
        """
        # With fp16 the scaler skips the optimizer's step when a gradient overflows: the weights
        # stay good.
        names = ("loss",) if args.fp16 else ("loss", "grad_norm")
        if any(not math.isfinite((logs or {}).get(name, 0.0)) for name in names):
            control.should_save = False


def _any_rank(asked: bool, device: torch.device) -> bool:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return asked
    flag = torch.tensor([int(asked)], device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def install() -> None:
    """Give every trainer of this process the callback, once."""
    # the same file is a module of another name in each view
    if not any(
        callback.__name__ == StopTogether.__name__ for callback in trainer.DEFAULT_CALLBACKS
    ):
        trainer.DEFAULT_CALLBACKS.append(StopTogether)
