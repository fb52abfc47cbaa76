"""The base of a preset's sections, and those about its rows, its checkpoints and its supervision.

The others and the whole are in iisft.presets.schema.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Overlong = Literal["fail", "fit", "drop", "allow"]

PositiveInt = Annotated[int, Field(gt=0, le=10**9)]
# As data stage takes it. The length stands apart: {0,99} of Unicode's letters takes the regex
# crate 40 ms to compile, in each of the four places.
DatasetName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]
DatasetNames = Annotated[list[DatasetName], Field(min_length=1, max_length=64)]
# a share of the rows, or a number of them
Share = Annotated[float, Field(gt=0, le=1)] | PositiveInt
_LONGEST_NAME = 120  # bytes of a mix's; files have it, with some more around it


def names_of(value: Any) -> tuple[str, ...]:
    """One dataset or several, as a preset has them; nothing else is a name."""
    values = value if isinstance(value, list) else [value]
    return tuple(name for name in values if isinstance(name, str))


def exactly(share: float) -> Fraction:
    """A share as it was written: 0.7 is seven tenths, and not the nearest float."""
    return Fraction(repr(share))


def joined(names: Sequence[str], *, drawn: bool = False) -> str:
    """What several datasets are called where they are one: a+b, or a~b where rows were drawn of
    them. Nobody's own dataset can have such a name.
    """
    name = "~".join((*names, "")) if drawn else "+".join(names)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{len(names)}-datasets-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


class Section(BaseModel):
    """Frozen, unknown keys refused, and no coercion: "1e-5" is text, not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """What is trained on."""

    name: DatasetName | DatasetNames = Field(
        description="A staged dataset: data/NAME (iisft data stage). Several, [A, B], are mixed "
        "into one file of the run."
    )
    mix: dict[DatasetName, Share] | None = Field(
        default=None,
        description="Of which rows the mix consists: shares that add up to 1 ({a: 0.7, b: 0.3}, as "
        "many rows as they allow) or numbers of rows ({a: 500, b: 200}). Without it all rows of "
        "each. Rows are drawn by train.seed, none twice.",
    )
    repeat: bool = Field(
        default=False,
        description="With mix: repeat rows of a dataset that has too few, each equally often but "
        "for the last pass. With shares the mix then has every row of each.",
    )
    eval: DatasetName | DatasetNames | None = Field(
        default=None,
        description="A staged dataset for evaluation during training, or several, [A, B]: all rows "
        "of each.",
    )
    overlong: Overlong = Field(
        default="fail",
        description="Rows longer than cutoff_len: fail, fit (shorten the body, keep header and "
        "answer), drop, or allow "
        "(let LLaMA-Factory cut them). Applied when data is staged for the preset, and to a run's "
        "own copy of data that"
        " was staged otherwise.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """What is trained on."""
        return names_of(self.name)

    @property
    def trained(self) -> str:
        """The dataset that a run trains on, whatever it is mixed of."""
        return joined(self.names, drawn=bool(self.mix))

    @property
    def wrong_mix(self) -> str:
        """What is wrong with `mix`, whatever the datasets have."""
        mix = self.mix or {}
        shares = [value for value in mix.values() if isinstance(value, float)]
        if mix and (other := set(self.names) ^ set(mix)):
            names = ", ".join(sorted(other))
            return f"data.mix and data.name don't name the same datasets: {names} is in one of them"
        if shares and len(shares) < len(mix):
            return "data.mix has shares (0.7) and numbers of rows (500) side by side"
        if shares and (total := sum(map(exactly, shares))) != 1:
            off = float(total - 1)
            said = f"{float(total):g}" if abs(off) > 1e-5 else f"1 {'-+'[off > 0]} {abs(off):g}"
            return f"the shares of data.mix add up to {said}, not to 1"
        return ""

    @property
    def evaluated(self) -> tuple[str, ...]:
        return names_of(self.eval)


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
