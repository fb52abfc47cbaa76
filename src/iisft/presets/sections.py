"""The base of a preset's sections, and those about its rows, its checkpoints and its supervision.

The others and the whole are in iisft.presets.schema.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Overlong = Literal["fail", "fit", "drop", "allow"]

PositiveInt = Annotated[int, Field(gt=0, le=10**9)]
DatasetName = Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$")]  # as data stage takes it


class Section(BaseModel):
    """Frozen, unknown keys refused, and no coercion: "1e-5" is text, not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """What is trained on."""

    name: DatasetName = Field(description="A staged dataset: data/NAME (iisft data stage).")
    eval: DatasetName | None = Field(
        default=None, description="A staged dataset for evaluation during training."
    )
    overlong: Overlong = Field(
        default="fail",
        description="Rows longer than cutoff_len: fail, fit (shorten the body, keep header and "
        "answer), drop, or allow "
        "(let LLaMA-Factory cut them). Applied when data is staged for the preset, and to a run's "
        "own copy of data that"
        " was staged otherwise.",
    )


class Save(Section):
    """Checkpoints and evaluation."""

    every_steps: PositiveInt = Field(
        default=50, description="Steps between checkpoints: what a crash can cost."
    )
    keep: PositiveInt = Field(
        default=3, description="Newest checkpoints kept; older ones are deleted by the trainer."
    )
    eval_every_steps: PositiveInt | None = Field(
        default=None, description="Steps between evaluations (needs data.eval)."
    )
    best: bool = Field(
        default=False,
        description="Never delete the checkpoint with the lowest evaluation loss, which is one of "
        "`keep`. The final adapter stays the last one; predict, chat, serve and export take "
        "--checkpoint best.",
    )

    @property
    def fewest(self) -> int:
        """The smallest `keep`: the newest checkpoint, and the best one where it is another."""
        return 2 if self.best else 1


class Watch(Section):
    """What the supervisor does about what it sees."""

    nan: Literal["stop", "ignore"] = Field(
        default="stop",
        description="NaN or infinite loss or grad_norm in two logged steps in a row: nothing is "
        "learnt from there on. "
        "With fp16 sixteen steps with an overflowing gradient are let through: the scaler skips "
        "them.",
    )
    hang_factor: Annotated[float, Field(ge=2, le=10**9)] = Field(
        default=10.0,
        description="No step within this many times the median step time is a hang; saving and "
        "evaluating don't count.",
    )
    hang_min_s: Annotated[float, Field(gt=0, le=10**9)] = Field(
        default=300.0,
        description="Seconds below which nothing is a hang; loading, the first step, saving and "
        "evaluating may take "
        "twelve times as long, an evaluation twelve times hang_factor steps.",
    )
    restarts: Annotated[int, Field(ge=0, le=10**6)] = Field(
        default=3,
        description="How often a crashed or hung trainer is started again from its last complete "
        "checkpoint, never "
        "twice at the same step for the same reason. Not with several nodes.",
    )
    node_silence_s: Annotated[float, Field(ge=2, le=10**9)] = Field(
        default=40.0,
        description="Of several nodes: seconds without a sign of life after which one is lost, "
        "and the others end. More where the shared file system stands still at times.",
    )
