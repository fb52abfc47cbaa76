"""What is wrong with arguments that a preset passes to LLaMA-Factory as they are: each alone, and
pairs of which LLaMA-Factory would take one without a word, or die of after the start.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iisft.errors import ExitCode, Finding
from iisft.llamafactory import passed, refused
from iisft.llamafactory.arguments import ALWAYS, PAST_THE_VIEW, own_arguments
from iisft.llamafactory.interpreter import Argument
from iisft.presets.schema import Preset
from iisft.secrets import holds_secret, is_secret


def check_extra(
    extra: Mapping[str, Any],
    preset: Preset,
    known: Mapping[str, Argument],
    *,
    on_cpu: bool = False,
    optional: Collection[str] | None = None,
) -> list[Finding]:
    """What is wrong in the preset's `llamafactory:` section, and what it changes, each at its key.

    LLaMA-Factory itself accepts wrong types (a text as learning_rate fails after the model is
    loaded), tells unknown names without the nearest one, and ignores others without a word.

    Args:
        extra: the section.
        preset: the preset that it stands in.
        known: the installed version's arguments.
        on_cpu: no GPU takes part.
        optional: packages that some arguments need and that are installed; None = not known.
    """
    owned = own_arguments(preset)
    judged = (_extra_finding(name, extra[name], preset, owned, known) for name in extra)
    found = [finding for finding in judged if finding is not None]
    if not any(finding.severity == "error" for finding in found):
        found += check_together(preset, on_cpu=on_cpu)
    for name, package in passed.packages_for(preset):
        if optional is not None and package not in optional:
            found.append(
                Finding(
                    "llamafactory-package",
                    f"{name} needs the package {package}, which is not installed",
                    name,
                    f"pip install {package} in the training interpreter, or drop it",
                    exit_code=ExitCode.ENVIRONMENT,
                )
            )
    return found


def reference_findings(train_yaml: Mapping[str, Any]) -> list[Finding]:
    """OmegaConf, through which LLaMA-Factory reads train.yaml, takes ${...} for a reference, and
    ends at one that is not closed.
    """
    names = [name for name, value in train_yaml.items() if "${" in str(value)]
    in_path = any("${" in str(train_yaml.get(name, "")) for name in ("output_dir", "dataset_dir"))
    if not names:
        return []
    text = f"{', '.join(names)}: LLaMA-Factory takes ${{ for the begin of a reference"
    fix = "a workspace (IISFT_HOME) without ${ in its path" if in_path else "leave ${ out"
    kind = ExitCode.ENVIRONMENT if in_path else ExitCode.INPUT
    return [Finding("train-yaml-reference", text, "train.yaml", fix, exit_code=kind)]


def _extra_finding(
    name: str,
    value: Any,
    preset: Preset,
    owned: Mapping[str, str],
    known: Mapping[str, Argument],
) -> Finding | None:
    key = f"llamafactory.{name}"
    past_the_view = preset.precision == "fp32" and preset.weights != "fp32"
    if is_secret(name) or holds_secret(value):
        verb = "is" if is_secret(name) else "holds"
        text = f"{key} {verb} a secret: it would be written to files"
        fix = "put it into the environment (HF_TOKEN)"
        return Finding("llamafactory-secret", text, key, fix)
    if name in owned:
        text = f"{key} is decided by {owned[name]}"
        return Finding("llamafactory-owned", text, key, f"set {owned[name]} instead")
    refusal = refused.REFUSED.get(name)
    if refusal is not None and (refusal.always or not passed.is_off(value)):
        kind = "owned" if refusal.always else "refused"
        return Finding(f"llamafactory-{kind}", f"{key} {refusal.why}", key, refusal.way)
    if value and name in PAST_THE_VIEW and past_the_view:
        text = f"{key} multiplies by the stored weights past the float32 products of precision fp32"
        return Finding("llamafactory-past-the-view", text, key, f"drop {name}, or weights: fp32")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        text = f"LLaMA-Factory has no argument {name}{hint}"
        return Finding("llamafactory-unknown", text, key, near[0] if near else "")
    argument = known[name]
    if not fits(value, argument):
        allowed = argument.choices or argument.types
        text = f"{key} is {value!r}; allowed: {', '.join(map(str, allowed))}"
        return Finding("llamafactory-type", text, key)
    if name in passed.SAID and passed.changes(name, value) and value != ALWAYS.get(name):
        text = f"{key}: {value!r} {passed.SAID[name]}"
        return Finding("llamafactory-said", text, key, severity="info")
    return None


def fits(value: Any, argument: Argument) -> bool:
    """Whether the argument takes this value: its type, an integer for a float, one of
    its choices.
    """
    if argument.choices is not None and isinstance(value, str):
        return value in argument.choices
    name = "null" if value is None else type(value).__name__
    return name in argument.types or (name == "int" and "float" in argument.types)


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
