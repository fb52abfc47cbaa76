"""What trackers are told of a run besides its metrics: what it is, and what was planned of it.

transformers gives them the name, the arguments and the model's configuration, of which none says
which preset, model and rows these were (transformers/integrations/integration_utils.py).
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from .constants_iisft import BOARD_VARIABLE

_TAG_LENGTH = 64  # wandb takes no longer one
_PLANNED = ("peak_gib", "total_h", "step_s", "tokens_per_step", "global_batch")
RECORD = "run.json"

About = dict[str, dict[str, Any]]
Ways = dict[str, Callable[[Any, About], None]]


class Introduce(TrainerCallback):
    """Tells each tracker about the run, once; none of them ends it."""

    def __init__(self) -> None:
        self.done = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the trackers' own callbacks, which come after this one."""
        self._tell(_BEFORE, args, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.done:
            self.done = True
            self._tell(_AFTER, args, state)

    def _tell(self, ways: Ways, args: Any, state: Any) -> None:
        trackers = [name for name in args.report_to if name in ways]
        if not (trackers and state.is_world_process_zero):
            return
        about = about_run(Path(args.output_dir).parent / RECORD, state.max_steps)
        for name in trackers if about else ():
            try:
                ways[name](args, about)
            except Exception as error:  # whatever a tracker's library raises
                sys.stderr.write(f"iisft: {name} was not told what this run is: {error}\n")


def about_run(record: Path, steps: int) -> About:
    """Tags and figures from run.json; nothing where a script trains without iisft."""
    try:
        run = json.loads(record.read_text(encoding="utf-8"))
        preset, planned = run["preset"], run["forecast"] or {}
        data = preset["data"]["name"]
        tags = {
            "preset": run["preset_name"],
            "model": preset["model"]["id"],
            "template": preset["model"]["template"],
            "data": data if isinstance(data, str) else "+".join(data),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    figures = {
        f"planned_{name}": planned[name] for name in _PLANNED if planned.get(name) is not None
    }
    return {"tags": tags, "figures": figures | {"steps": steps}}


def words(about: About) -> list[str]:
    """The tags of trackers whose tags are words."""
    return [f"{name}:{value}"[:_TAG_LENGTH] for name, value in about["tags"].items()]


def _tensorboard(args: Any, about: About) -> None:
    """A file of its own beside the metrics' one: TensorBoard shows a folder's files as one run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # as transformers' own callback does
        from tensorboardX import SummaryWriter

    if folder := os.environ.get(BOARD_VARIABLE):
        rows = (about["tags"] | about["figures"]).items()
        table = "\n".join(f"| {name} | {value} |" for name, value in rows)
        with SummaryWriter(log_dir=folder) as writer:
            writer.add_text("iisft", f"| | |\n|---|---|\n{table}")


def _wandb(args: Any, about: About) -> None:
    import wandb

    wandb.run.tags = (*(wandb.run.tags or ()), *words(about))
    wandb.config.update({"iisft": about["tags"] | about["figures"]}, allow_val_change=True)


def _swanlab(args: Any, about: About) -> None:
    """Begin the experiment that transformers' callback would begin: it asks get_run() first, which
    raises without one in swanlab 0.10.
    """
    import swanlab

    swanlab.init(
        project=os.environ.get("SWANLAB_PROJECT"),
        experiment_name=args.run_name,
        tags=words(about),
        config={"iisft": about["tags"] | about["figures"]},
    )


def _mlflow(args: Any, about: About) -> None:
    import mlflow

    mlflow.set_tags({f"iisft.{name}": value for name, value in about["tags"].items()})
    mlflow.log_params({f"iisft.{name}": value for name, value in about["figures"].items()})


def _trackio(args: Any, about: About) -> None:
    import trackio

    trackio.config.update({"iisft": about["tags"] | about["figures"]}, allow_val_change=True)


_BEFORE: Ways = {"swanlab": _swanlab}
_AFTER: Ways = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
