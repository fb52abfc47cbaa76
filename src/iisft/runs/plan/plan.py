"""The plan of a run: everything that it is and needs, and every finding that speaks against it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from iisft.child.constants_iisft import BOARD_VARIABLE
from iisft.errors import CheckFailed, ExitCode, Finding
from iisft.estimate.forecast import Accelerator, Forecast
from iisft.estimate.suggestions import Suggestion
from iisft.llamafactory.arguments import of_data
from iisft.llamafactory.environment import Placement, compile_environment
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.doctor import inspect
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.machine import Machine
from iisft.models.folder.checkpoint import Checkpoint
from iisft.models.folder.known import ModelFacts
from iisft.models.view.build import ViewPlan
from iisft.models.view.built import Built
from iisft.models.view.support import DTYPES
from iisft.presets.checking import LoadedPreset
from iisft.presets.documents import Document
from iisft.presets.schema import Preset
from iisft.runs.plan import forecast as forecasts
from iisft.runs.plan import mixes
from iisft.runs.plan.datasets import Progress, RunDataset
from iisft.runs.plan.start import StartAdapter
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.proof import Expected
from iisft.workspace import Workspace

_ATTENTION_NAMES = {"flash2": "flash_attention_2"}  # where transformers has another name


# Arguments by which the trainer itself decides how many rows there are.
_ROW_CHANGING = (
    "packing",
    "neat_packing",
    "streaming",
    "max_samples",
    "val_size",
    "mix_strategy",
    "interleave_probs",
)


@dataclass(frozen=True)
class Preflight:
    """What a plan is checked against before it runs: this machine, its packages, the model's files,
    and every row with the model's tokenizer.

    `progress` is called while rows are counted that were never counted before; `say` is told before
    the first look at new packages, which takes some seconds. `wrong` is what keeps the interpreter
    from being asked. `queued`: it starts when its GPUs are nobody else's, whatever is on them now.
    """

    machine: Machine
    progress: Progress | None = None
    say: Callable[[str], None] = lambda _: None
    wrong: tuple[Finding, ...] = ()
    queued: bool = False

    def asked(self) -> "Preflight":
        """With what the training interpreter says."""
        machine, wrong = inspect.inspected(self.machine, self.say)
        return replace(self, machine=machine, wrong=tuple(wrong))

    @classmethod
    def here(
        cls,
        workspace: Workspace,
        progress: Progress | None = None,
        say: Callable[[str], None] = lambda _: None,
        *,
        queued: bool = False,
    ) -> "Preflight":
        return cls(inspect.this_machine(workspace.root), progress, say, queued=queued)


@dataclass(frozen=True)
class Plan:
    """A run, whole: what it is, what it needs, and every finding that speaks against it.

    What could not be found out for lack of model or data is None, with a finding that says so.
    `checkpoint`, `view`, `built` and `tokens` are looked for by a preflight alone.
    """

    loaded: LoadedPreset
    placement: Placement
    folder: RunFolder
    model_folder: Path
    gpus: tuple[Gpu, ...]
    accelerator: Accelerator
    facts: ModelFacts | None
    datasets: tuple[RunDataset, ...]
    forecast: Forecast | None
    interpreter: Interpreter
    train_yaml: dict[str, Any]
    checkpoint: Checkpoint | None = None
    view: ViewPlan | None = None
    built: Built | None = None
    tokens: Path | None = None
    start: StartAdapter | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def preset(self) -> Preset:
        return self.loaded.preset

    @property
    def document(self) -> Document:
        return self.loaded.document

    @property
    def fits(self) -> str | None:
        """yes, tight, no; None when it is not known."""
        return self.forecast.fits if self.forecast else None

    @cached_property
    def suggestions(self) -> list[Suggestion]:
        """Changes after which a run that does not fit would."""
        return forecasts.suggestions(self.preset, self.forecast) if self.forecast else []

    @property
    def account(self) -> list[dict[str, Any]]:
        """The rows by the staged dataset that they come from."""
        return mixes.account(self.datasets, self.preset.data.trained)

    @property
    def env(self) -> dict[str, str]:
        places = self.folder.caches
        if "tensorboard" in self.preset.track:
            places |= {BOARD_VARIABLE: str(self.folder.board)}
        return compile_environment(self.preset, self.interpreter, self.placement, places)

    @property
    def argv(self) -> list[str]:
        """The configuration by its bare name: LLaMA-Factory splits its command line at spaces."""
        return [str(self.interpreter.cli), "train", self.folder.train_yaml.name]

    @property
    def global_batch(self) -> int:
        return self.preset.global_batch(self.placement.world_size)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def exit_code(self) -> ExitCode:
        """What `train` would exit with before it starts anything."""
        return CheckFailed(self.findings).exit_code if self.errors else ExitCode.OK

    def for_elsewhere(self) -> "Plan":
        """The same plan for another machine: what only this one lacks is a warning."""
        return replace(
            self,
            findings=tuple(
                replace(finding, severity="warn")
                if finding.severity == "error" and finding.exit_code is ExitCode.ENVIRONMENT
                else finding
                for finding in self.findings
            ),
        )

    def require_sound(self) -> None:
        """Raises CheckFailed with all findings when one of them is an error."""
        if self.errors:
            raise CheckFailed(self.findings)

    @property
    def expected(self) -> Expected:
        """What the trainer must report. Needs the view."""
        assert self.view is not None
        precision = self.preset.precision
        rows = sum(dataset.rows for dataset in self.datasets[:1])
        return Expected(
            weights_dtype=self.view.expected_weights_dtype,
            compute_dtype=self.view.expected_compute_dtype,
            autocast=DTYPES[precision] if precision in ("fp16", "bf16") else None,
            attention=_ATTENTION_NAMES.get(self.preset.attention, self.preset.attention),
            arithmetic=self.view.arithmetic,
            world_size=self.placement.world_size,
            global_batch=self.global_batch,
            rows=rows if _rows_are_known(self.preset) else None,
            packed=self.preset.train.packing,
            layers_kept=self.forecast.shape.layers_kept if self.forecast else 0,
            adapted=self.built.adapted if self.built else None,
            adapter=self.start.adapter.digest if self.start else None,
        )


def _rows_are_known(preset: Preset) -> bool:
    given = of_data(preset)
    return not any(given.get(name) for name in _ROW_CHANGING)
