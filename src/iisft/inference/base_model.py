"""A run's base model, checked and ready to load as the run loaded it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft.errors import CheckFailed, EnvironmentFault, ExitCode, Finding, InputError
from iisft.inference import headroom
from iisft.llamafactory import loading
from iisft.llamafactory.environment import NO_GPU
from iisft.llamafactory.interpreter import training_interpreter
from iisft.llamafactory.turns import Options
from iisft.machine.doctor.inspect import visible_gpus
from iisft.models.folder import identity
from iisft.models.folder.checkpoint import Checkpoint, checkpoint_findings, inspect_checkpoint
from iisft.models.view.build import (
    ViewPlan,
    attention_keys,
    build_view,
    plan_view,
    with_step,
)
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.proof import Expected
from iisft.runs.record.run_record import ModelRecord, RunRecord
from iisft.runs.record.selection import ADAPTER, Chosen
from iisft.runs.supervise import resume
from iisft.workspace import Workspace


@dataclass(frozen=True)
class Source:
    """A run with the model that it was trained on."""

    folder: RunFolder
    record: RunRecord
    checkpoint: Checkpoint
    view: ViewPlan
    env: dict[str, str]
    on_cpu: bool

    @property
    def python(self) -> Path:
        """The one that trains now; the record's may be anybody's program."""
        return training_interpreter()

    @property
    def drift(self) -> str:
        """What a person should know about the interpreter, or ""."""
        before = str(self.record.interpreter)
        if before == str(self.python):
            return ""
        return f"computed by {self.python}; the run was trained by {before} (IISFT_PYTHON)"

    @property
    def expected(self) -> Expected:
        """What the trainer had to report; a child that loads the same model must too."""
        return self.record.proof

    @property
    def spread(self) -> bool:
        """Whether the run's GPUs held the model in parts, so that one can't hold it."""
        return self.record.setting("sharding") in ("fsdp", "zero3")

    def need(self, chosen: Chosen) -> headroom.Need:
        """The memory it takes to answer."""
        adapter = (chosen.adapter / ADAPTER).stat().st_size if chosen.adapter else 0
        expected = self.expected
        return headroom.need(
            self.checkpoint,
            expected.weights_dtype,
            expected.arithmetic,
            adapter_bytes=adapter,
            place="cpu" if self.on_cpu else "gpus" if self.spread else "gpu",
        )

    def loading(self, view: Path, chosen: Chosen, *, max_new_tokens: int) -> dict[str, Any]:
        """The specification for child/run_model.py, which loads the run's model from `view`."""
        return {
            "arguments": loading.loading_arguments(self.record.train_yaml, view, max_new_tokens),
            "adapter": str(chosen.adapter) if chosen.adapter else None,
            "autocast": self.expected.autocast,
            "one_device": not self.spread,
            "discards_thoughts": Options.of(self.record.train_yaml).discards_thoughts,
        }

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Path, dict[str, str]]]:
        """A view of the model, and the environment for children that load it, for the block."""
        # a killed child may still be writing into it: ignore_cleanup_errors
        with tempfile.TemporaryDirectory(prefix="iisft-", ignore_cleanup_errors=True) as place:
            view = Path(place) / "model"
            build_view(self.view, view)
            # transformers caches a local model's code by its folder's name, "model" for every view
            # (dynamic_module_utils.py)
            yield (
                view,
                self.env
                | {
                    "HF_MODULES_CACHE": str(Path(place) / "modules"),
                    "HF_DATASETS_CACHE": str(Path(place) / "rows"),
                },
            )


def find(folder: RunFolder, workspace: Workspace, *, model: str | None, cpu: bool) -> Source:
    """Find what a run was trained on.

    Args:
        folder: the run.
        workspace: where a model given by its id is.
        model: where the base model is now, if it was moved.
        cpu: compute on the CPU even if the run had GPUs.

    Raises:
        RunStateError: run.json is broken.
        CheckFailed: the base model is missing, torn, or a different one.
        EnvironmentFault: the run's interpreter or its GPUs are missing.
    """
    record = folder.whole_record()
    checkpoint = _base_model(folder, record.model, workspace, model)
    view = plan_view(
        checkpoint,
        precision=record.setting("precision"),
        weights=record.setting("weights"),
        trust_remote_code=record.setting("model.trust_remote_code"),
    )
    view = with_step(view, attention_keys(record.setting("attention")))
    had_gpus = bool(record.gpus)
    on_cpu = cpu or not had_gpus
    if not on_cpu and not visible_gpus():
        raise EnvironmentFault(
            "no-gpu",
            f"{folder.id} was trained on {record.gpus[0]}, and no GPU can be seen here",
            where="/sys/class/kfd, nvidia-smi, *_VISIBLE_DEVICES",
            fix="--cpu computes the same on the CPU, slowly",
        )
    if on_cpu and record.setting("precision") == "fp16":
        raise EnvironmentFault(
            "fp16-on-cpu",
            f"{folder.id} computes in fp16, which a CPU does not",
            fix="use a machine with a GPU",
        )
    env = loading.without_trainer_variables(resume.environment_of(folder, record)) | (
        NO_GPU if on_cpu else {}
    )
    return Source(folder, record, checkpoint, view, env, on_cpu)


def _base_model(
    folder: RunFolder, recorded: ModelRecord, workspace: Workspace, given: str | None
) -> Checkpoint:
    place = workspace.model_folder(given) if given is not None else recorded.folder
    if given is None and place.resolve().is_relative_to(folder.path):
        raise InputError(
            "base-model-in-run",
            "the run's record names a base model inside of the run's own folder",
            where=str(place),
            fix="if you trust it: --model DIR",
        )
    if not place.is_dir():
        raise InputError(
            "base-model-missing",
            f"the run's base model {recorded.id} is missing",
            where=str(place),
            fix="move it back, or say where it is now: --model DIR",
        )
    if faults := checkpoint_findings(place):
        raise CheckFailed(faults)
    if changed := list(identity.changes(recorded.as_json(), place, copies=True)):
        fix = f"the adapter belongs to the {recorded.id} that it was trained on: --model DIR"
        raise CheckFailed(
            [
                Finding(
                    "base-model-differs", text, where=str(place), fix=fix, exit_code=ExitCode.INPUT
                )
                for text in changed
            ]
        )
    return inspect_checkpoint(place)


def log_of(source: Source, command: str) -> Path:
    """The child's log.

    Raises:
        EnvironmentFault: the run folder can't be written.
    """
    log = source.folder.log_of(command)
    if not os.access(log.parent, os.W_OK):
        raise EnvironmentFault(
            "run-unwritable", "the run folder can't be written", where=str(log.parent)
        )
    return log
