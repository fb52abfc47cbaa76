"""What is wrong with arguments that a preset passes to LLaMA-Factory as they are."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from iisft.errors import ExitCode, Finding
from iisft.llamafactory import passed, refused
from iisft.llamafactory.arguments import ALWAYS, PAST_THE_VIEW, own_arguments
from iisft.llamafactory.combined import check_together
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
    for name, package in passed.packages_for(extra):
        if optional is not None and package not in optional:
            found.append(
                Finding(
                    "llamafactory-package",
                    f"llamafactory.{name} needs the package {package}, which is not installed",
                    f"llamafactory.{name}",
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
