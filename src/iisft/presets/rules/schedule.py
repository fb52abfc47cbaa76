"""Whether the keys of the learning rate's course go together."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.presets.case import Case
from iisft.rules import change_preset, preset_rule, seen


@preset_rule(
    "constant-warmup",
    applies="scheduler: constant with a warmup_ratio",
    source="transformers/optimization.py, get_scheduler: the warm-up is not passed on",
)
def constant_ignores_warmup(case: Case) -> Iterator[Finding]:
    """The constant schedule begins at its peak, whatever warmup_ratio says."""
    preset = case.preset
    if preset and preset.train.scheduler == "constant" and preset.train.warmup_ratio:
        yield seen(
            f"scheduler constant ignores warmup_ratio {preset.train.warmup_ratio}",
            case.place("train.warmup_ratio"),
            change_preset(
                "train.scheduler=constant_with_warmup",
                "--set train.scheduler=constant_with_warmup, or train.warmup_ratio=0",
            ),
            "warn",
        )
