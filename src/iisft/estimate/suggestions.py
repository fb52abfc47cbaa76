"""What would make a run fit: changes alone, then together, each computed, the cheapest first.

Cost classes: 0 = the same results; 1 = the same up to rounding, or a layout not proven here; 2 =
other arithmetic, a smaller adapter or quantised weights; 3 = shorter rows. Within a class the
faster one comes first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from iisft.child.constants_iisft import EAGER_BLOCKS
from iisft.estimate.forecast import Forecast, Workload, forecast
from iisft.estimate.step import needs_all_logits
from iisft.gpu_table import architecture
from iisft.presets.checking import is_refused
from iisft.presets.schema import Preset

_MOST = 5
_MOST_JOINED = 6


@dataclass(frozen=True, slots=True)
class Change:
    """Values by preset key, why they help, and the class of their cost."""

    values: dict[str, Any]
    reason: str
    cost: int

    @property
    def text(self) -> str:
        """As the command line takes it."""
        return " ".join(f"--set {key}={_written(value)}" for key, value in self.values.items())


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change and what it would bring."""

    change: Change
    forecast: Forecast

    def as_json(self) -> dict[str, Any]:
        seconds = self.forecast.step_s
        return {
            "change": self.change.text,
            "reason": self.change.reason,
            "peak_gib": round(self.forecast.peak_gib, 2),
            "fits": self.forecast.fits,
            "step_s": round(seconds.typical, 2) if seconds else None,
        }


def suggest(preset: Preset, workload: Workload) -> list[Suggestion]:
    """At most five changes that make the run fit, combined only where one is not enough, and each
    alternative that is compared with the preset and fits.
    """
    families = [family for family in _families(preset, workload) if family]
    tried = [
        (result, family)
        for family in families
        if (result := _first_that_fits(preset, workload, family))
    ]
    found = [result for result, _ in tried if result.forecast.fits == "yes"]
    helpful = sorted(tried, key=lambda pair: pair[0].forecast.memory.needed)[:_MOST_JOINED]
    for count in (2, 3):
        if found:
            break
        for group in combinations(helpful, count):
            if joined := _try_together(preset, workload, [result.change for result, _ in group]):
                found.append(_relaxed(preset, workload, joined, [family for _, family in group]))
    found = sorted(found, key=_cost)[:_MOST]
    known = [one.change.values for one in found]
    found += [
        one
        for one in contrasts(preset, workload)
        if one.forecast.fits == "yes" and one.change.values not in known
    ]
    return sorted(found, key=_cost)


def _try_together(preset: Preset, workload: Workload, changes: list[Change]) -> Suggestion | None:
    keys = [key for change in changes for key in change.values]
    if len(keys) != len(set(keys)):
        return None
    result = _try(preset, workload, _joined(changes))
    return result if result and result.forecast.fits == "yes" else None


def _relaxed(
    preset: Preset, workload: Workload, strong: Suggestion, families: list[list[Change]]
) -> Suggestion:
    """Use the mildest member of each family with which the run still fits."""
    chosen, result = [family[-1] for family in families], strong
    for place, family in enumerate(families):
        for milder in family[:-1]:
            trial = [*chosen[:place], milder, *chosen[place + 1 :]]
            if (better := _try_together(preset, workload, trial)) is not None:
                chosen, result = trial, better
                break
    return result


def contrasts(preset: Preset, workload: Workload) -> list[Suggestion]:
    """Alternatives to the preset's weights and sharding for comparison, whether they fit or not."""
    found = []
    if preset.precision == "fp32":
        name = "float32 weights, DDP" if workload.ranks > 1 else "float32 weights"
        found.append(Change({"weights": "fp32", "sharding": "none"}, name, 0))
        if workload.ranks > 1:
            found.append(
                Change({"weights": "fp32", "sharding": "fsdp"}, "float32 weights, FSDP", 1)
            )
    if preset.weights != "nf4":
        found.append(
            Change(
                {"precision": "fp16", "attention": "sdpa", "weights": "stored"},
                "fp16 by autocast",
                2,
            )
        )
    own = {key: _value(preset, key) for key in ("weights", "sharding", "precision", "attention")}
    different = [
        change for change in found if any(own[key] != value for key, value in change.values.items())
    ]
    return [one for change in different if (one := _try(preset, workload, change))]


def changed(preset: Preset, values: dict[str, Any]) -> Preset:
    """The preset with other values at dotted keys."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            value = getattr(preset, section).model_copy(update={name: value})
        preset = preset.model_copy(update={section: value})
    return preset


def _cost(one: Suggestion) -> tuple[int, float, float]:
    seconds = one.forecast.step_s
    return one.change.cost, seconds.typical if seconds else 0.0, one.forecast.peak_gib


def _first_that_fits(preset: Preset, workload: Workload, family: list[Change]) -> Suggestion | None:
    """The mildest member of a family that fits; where none does, the strongest."""
    result = None
    for change in family:
        result = _try(preset, workload, change) or result
        if result and result.forecast.fits == "yes":
            break
    return result


def _try(preset: Preset, workload: Workload, change: Change) -> Suggestion | None:
    values = change.values
    other = values.get("sharding", "none") != "none" or values.get("weights") == "nf4"
    if other and preset.train.gradient_checkpointing == "fit":  # which is refused there
        change = replace(change, values=values | {"train.gradient_checkpointing": True})
    candidate = changed(preset, change.values)
    if is_refused(candidate, workload.ranks):
        return None
    return Suggestion(change, forecast(candidate, workload))


def _families(preset: Preset, workload: Workload) -> Iterator[list[Change]]:
    """Changes of one kind together, the mildest first."""
    yield from _same_result_families(preset, workload)
    yield from _other_result_families(preset, workload)


def _same_result_families(preset: Preset, workload: Workload) -> Iterator[list[Change]]:
    train = preset.train
    if preset.precision == "fp32" and preset.weights == "fp32" and workload.exact:
        values = (
            {"weights": "stored", "sharding": "none"}
            if preset.sharding != "none"
            else {"weights": "stored"}
        )
        yield [Change(values, "float32 products over the stored weights: the same bits", 0)]
    if not train.gradient_checkpointing:
        yield [
            Change(
                {"train.gradient_checkpointing": True},
                "each layer computed twice instead of kept",
                0,
            )
        ]
    if train.logits == "all" and needs_all_logits(preset) is None:
        yield [Change({"train.logits": "trained"}, "logits only where they are trained", 1)]
    yield [
        Change(
            {
                "train.batch_size": size,
                "train.accumulation": train.accumulation * train.batch_size // size,
            },
            "smaller micro-batches, the same global batch",
            0,
        )
        for size in _halves(train.batch_size, 1)
        if train.batch_size % size == 0
    ]
    if preset.attention == "eager":
        yield [Change({"attention": "sdpa"}, "a fused kernel where the GPU has one", 1)]
    if preset.attention in ("eager", "sdpa"):
        yield [Change({"attention": EAGER_BLOCKS}, "no scores of all pairs of positions", 1)]
    if train.optimizer == "adamw_torch":
        yield [
            Change({"train.optimizer": "adamw_torch_fused"}, "AdamW without a temporary tensor", 1)
        ]
    if workload.ranks > 1 and preset.sharding == "none":
        yield [Change({"sharding": "fsdp"}, f"the weights over {workload.ranks} GPUs", 1)]


def _other_result_families(preset: Preset, workload: Workload) -> Iterator[list[Change]]:
    known = architecture(workload.accelerator.arch)
    half = "bf16" if known and known.bf16 else "fp16"
    if preset.precision == "fp32":
        values = {"precision": half, "weights": "stored", "attention": "sdpa"}
        yield [Change(values, f"{half} arithmetic over the stored weights", 2)]
    if preset.weights != "nf4":
        values = {"precision": half, "weights": "nf4", "attention": "sdpa"}
        yield [Change(values, "base weights in 4 bit, if bitsandbytes has kernels for this GPU", 2)]
    yield [
        Change({"lora.rank": rank}, "a smaller adapter", 2) for rank in _halves(preset.lora.rank, 8)
    ]
    yield [
        Change({"train.cutoff_len": n}, "shorter rows: longer ones are cut", 3)
        for n in _halves(preset.train.cutoff_len, 256)
    ]


def _halves(value: int, least: int) -> list[int]:
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _joined(changes: list[Change]) -> Change:
    values = {key: value for change in changes for key, value in change.values.items()}
    return Change(
        values,
        "; ".join(change.reason for change in changes),
        max(change.cost for change in changes),
    )


def _value(preset: Preset, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(preset, section), name) if name else getattr(preset, section)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
