"""Values that do not go together: each pair of which LLaMA-Factory would take one without a word,
or die of after the start.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iisft.errors import Finding
from iisft.presets.schema import Preset


@dataclass(frozen=True, slots=True)
class Given:
    """The preset, and whether its ranks run on the CPU."""

    preset: Preset
    on_cpu: bool

    @property
    def extra(self) -> Mapping[str, Any]:
        return self.preset.llamafactory


Check = Callable[[Given], Iterator[tuple[str, str, str]]]


def _turns(given: Given) -> Iterator[tuple[str, str, str]]:
    if given.extra.get("mask_history") and given.extra.get("train_on_prompt"):
        text = "llamafactory.mask_history leaves out what llamafactory.train_on_prompt trains on"
        yield "mask_history", text, "drop one of them"


def _pissa(given: Given) -> Iterator[tuple[str, str, str]]:
    if given.extra.get("pissa_init") and given.extra.get("pissa_iter", 16) != -1:
        text = (
            "llamafactory.pissa_init draws its start at random unless llamafactory.pissa_iter is "
            "-1: loaded again, the adapter is not the trained one"
        )
        yield "pissa_init", text, "--set llamafactory.pissa_iter=-1"


def _packed(given: Given) -> Iterator[tuple[str, str, str]]:
    cutoff_len = given.preset.train.cutoff_len
    if given.preset.train.packing and given.extra.get("train_on_prompt"):
        text = (
            "with llamafactory.train_on_prompt the first token of a packed row would be trained as "
            "the next one of the row before it"
        )
        yield "train_on_prompt", text, "drop it, or set train.packing=false"
    if given.extra.get("packing") and cutoff_len % 8:
        text = f"llamafactory.packing crashes unless train.cutoff_len ({cutoff_len}) divides by 8"
        yield "packing", text, f"--set train.cutoff_len={cutoff_len // 8 * 8 or 8}"


def _streamed(given: Given) -> Iterator[tuple[str, str, str]]:
    if not given.extra.get("streaming"):
        return
    if given.preset.train.max_steps is None:
        text = "llamafactory.streaming does not know the number of rows: it needs train.max_steps"
        yield "streaming", text, "--set train.max_steps=N"
    if given.extra.get("max_samples") is not None:
        text = "llamafactory.streaming and llamafactory.max_samples are refused together"
        yield "max_samples", text, "drop one of them"
    if 0 < given.extra.get("val_size", 0) < 1:
        text = "llamafactory.streaming needs a number of rows as llamafactory.val_size, not a share"
        yield "val_size", text, "--set llamafactory.val_size=N"


def _held_out(given: Given) -> Iterator[tuple[str, str, str]]:
    if given.extra.get("val_size") and given.preset.data.eval:
        text = "llamafactory.val_size and data.eval both say what is evaluated"
        yield "val_size", text, "drop llamafactory.val_size"


def _tf32(given: Given) -> Iterator[tuple[str, str, str]]:
    if not given.extra.get("tf32"):
        return
    if given.on_cpu:
        yield "tf32", "llamafactory.tf32 dies on the CPU, which has no TF32", "drop it"
    elif given.preset.precision == "fp32":
        text = "llamafactory.tf32 multiplies with 10 bits of mantissa, and precision is fp32"
        yield "tf32", text, "drop it, or set precision"


def _quantised(given: Given) -> Iterator[tuple[str, str, str]]:
    if given.preset.weights != "nf4":
        return
    for name in ("pissa_init", "resize_vocab"):
        if given.extra.get(name):
            text = f"llamafactory.{name} is refused with weights nf4"
            yield name, text, "drop it, or set weights"


def _beside(given: Given) -> Iterator[tuple[str, str, str]]:
    for name, switch in _SWITCHES.items():
        if name in given.extra and not given.extra.get(switch):
            text = f"llamafactory.{name} has no effect without llamafactory.{switch}"
            yield name, text, f"drop it, or set llamafactory.{switch}"


# Arguments that are ignored unless another one is given.
_SWITCHES = {
    "asft_alpha": "use_asft_loss",
    "buffer_size": "streaming",
    "eaft_alpha": "use_eaft_loss",
    "loraplus_lr_embedding": "loraplus_lr_ratio",
    "new_special_tokens_config": "add_special_tokens",
    "pissa_convert": "pissa_init",
    "pissa_iter": "pissa_init",
}
_CHECKS: tuple[Check, ...] = (
    _turns, _pissa, _packed, _streamed, _held_out, _tf32, _quantised, _beside,
)  # fmt: skip


def check_together(preset: Preset, *, on_cpu: bool) -> list[Finding]:
    """Every pair that does not go together, at the key of its `llamafactory:` argument."""
    given = Given(preset, on_cpu)
    return [
        Finding("llamafactory-together", text, f"llamafactory.{name}", fix)
        for check in _CHECKS
        for name, text, fix in check(given)
    ]
