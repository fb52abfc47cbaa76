"""The fastest settings for the same training: batch and accumulation, checkpointing, logits,
attention.

Never changed: global batch, precision, weights, learning rate, rows. Another attention kernel, or
logits only where they are trained, changes results only by rounding.
"""

from itertools import product
from typing import Any

from iisft.child.constants_iisft import EAGER_BLOCKS
from iisft.estimate.forecast import Forecast, Workload, forecast
from iisft.estimate.step import needs_all_logits
from iisft.estimate.suggestions import changed
from iisft.presets.checking import is_refused
from iisft.presets.schema import Preset

_MOST = 5


def best(preset: Preset, workload: Workload) -> list[tuple[dict[str, Any], Forecast]]:
    """Changes that fit and their forecasts, the shortest step first; `{}` is the preset itself."""
    train = preset.train
    micro = train.batch_size * train.accumulation
    batches = [size for size in (1, 2, 4, 8, 16, 32) if micro % size == 0]
    attentions = (
        {preset.attention, "sdpa", EAGER_BLOCKS} if preset.attention != "flash2" else {"flash2"}
    )
    shardings = {"none", preset.sharding}
    found = []
    logits = {train.logits} if needs_all_logits(preset) else {train.logits, "trained"}
    for size, checkpointing, made, attention, sharding in product(
        batches, (True, False, "fit"), logits, attentions, shardings
    ):
        values = {
            "train.batch_size": size,
            "train.accumulation": micro // size,
            "train.gradient_checkpointing": checkpointing,
            "train.logits": made,
            "attention": attention,
            "sharding": sharding,
        }
        candidate = changed(preset, values)
        if is_refused(candidate, workload.ranks):
            continue
        result = forecast(candidate, workload)
        if result.fits == "yes" and result.step_s is not None:
            found.append((_different(preset, values), result))
    found.sort(key=lambda pair: (pair[1].step_s.typical if pair[1].step_s else 0.0, len(pair[0])))
    return found[:_MOST]


def _different(preset: Preset, values: dict[str, Any]) -> dict[str, Any]:
    own = {
        "train.batch_size": preset.train.batch_size,
        "train.accumulation": preset.train.accumulation,
        "train.gradient_checkpointing": preset.train.gradient_checkpointing,
        "train.logits": preset.train.logits,
        "attention": preset.attention,
        "sharding": preset.sharding,
    }
    return {key: value for key, value in values.items() if own[key] != value}
