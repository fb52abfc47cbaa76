"""What a data set is counted for: tokenizer, template and cutoff_len, from a preset or the command
line.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft.data.tokens.limit import Limit
from iisft.data.tokens.tokenization import Tokenization
from iisft.errors import InputError, UsageError
from iisft.llamafactory import fitting_template
from iisft.llamafactory.arguments import of_data
from iisft.presets import checking, documents
from iisft.presets.schema import Preset
from iisft.presets.sections import Overlong
from iisft.workspace import Workspace, how_to_get

_DEFAULT_CUTOFF_LEN = 2048  # LLaMA-Factory's own
_SETTABLE: dict[str, type] = {
    "model.template": str,
    "train.cutoff_len": int,
    "train.batch_size": int,
    "data.overlong": str,
}


@dataclass(frozen=True)
class Target:
    """`limit` is None where nothing can be counted, and `note` says why; else `note` says what was
    assumed.

    `options` are the words of the command line that give this target again.
    """

    limit: Limit | None
    policy: Overlong
    batch_size: int = 1
    note: str = ""
    options: str = ""
    preset: Preset | None = None


def resolve(
    workspace: Workspace,
    preset: str | None,
    model: str | None,
    overrides: Sequence[str] = (),
    overlong: Overlong | None = None,
) -> Target:
    """From the options that `data check` and `data stage` share.

    Raises:
        IisftError: the preset can't be read, or the model that was asked for has no countable
        tokenizer.
    """
    if preset is None:
        return _without_preset(workspace, model, overrides, overlong)
    document = documents.read_document(preset, workspace)
    document.change(overrides, model=model)
    loaded = checking.check(document).preset
    policy = overlong or loaded.data.overlong
    options = _spelled(preset, model, overrides)
    folder = workspace.model_folder(loaded.model.id)
    if not folder.is_dir() and (model is not None or overlong in ("fit", "drop")):
        raise _missing(loaded.model.id, folder)
    if not folder.is_dir():
        missing = _missing(loaded.model.id, folder)
        note = f"tokens are not counted: {missing.message} ({folder}); {missing.fix}"
        return Target(None, policy, loaded.train.batch_size, note, options)
    try:
        limit = limit_of(loaded, folder)
    except InputError as error:
        if error.code not in ("template-uncounted", "tokens-uncounted") or overlong in (
            "fit",
            "drop",
        ):
            raise
        return Target(
            None,
            policy,
            loaded.train.batch_size,
            f"tokens are not counted: {error.message}",
            options,
        )
    chosen = loaded.model
    confirmed = chosen.template_confirmed == chosen.template
    note = "" if confirmed else _warning(folder, chosen.template, loaded.llamafactory)
    return Target(limit, policy, loaded.train.batch_size, note, options, loaded)


def limit_of(preset: Preset, model: Path) -> Limit:
    """A preset's limit with the tokenizer in this folder.

    Raises:
        InputError: it can't be counted.
    """
    _refuse_unfit(model, preset.model.template, preset.llamafactory)
    extra = of_data(preset)
    return Limit(Tokenization(model, preset.model.template, extra), preset.train.cutoff_len, extra)


def _refuse_unfit(model: Path, template: str, extra: Mapping[str, Any]) -> None:
    """A template under which LLaMA-Factory could not tokenise a single row for this model."""
    objection = fitting_template.objection(model, template, extra)
    if objection is not None and objection.id == fitting_template.NEEDS_PROCESSOR:
        raise InputError(objection.id, objection.message, where=objection.where, fix=objection.fix)


def _warning(model: Path, template: str, extra: Mapping[str, Any]) -> str:
    """That a template is not the model's own."""
    objection = fitting_template.objection(model, template, extra)
    return f"warning: {objection.message}\n  fix: {objection.fix}" if objection else ""


def _without_preset(
    workspace: Workspace, model: str | None, overrides: Sequence[str], overlong: Overlong | None
) -> Target:
    given = _parse(overrides)
    policy = overlong or given.get("data.overlong", "fail")
    if model is None:
        if given or overlong in ("fit", "drop"):
            raise UsageError(
                "data-no-model",
                "tokens can only be counted with a model",
                where="--overlong" if overlong else "--set",
                fix="add --preset NAME, or --model DIR",
            )
        return Target(None, policy)
    folder = workspace.model_folder(model)
    if not folder.is_dir():
        raise _missing(model, folder)
    template, cutoff_len = (
        given.get("model.template"),
        given.get("train.cutoff_len", _DEFAULT_CUTOFF_LEN),
    )
    assumed, warning = [], ""
    if template is None:
        found = _guessed(folder)
        template = str(found.name)
        assumed.append(f"template {template}, {found.how} (--set model.template=NAME says another)")
    else:
        _refuse_unfit(folder, template, {})
        warning = _warning(folder, template, {})
    if "train.cutoff_len" not in given:
        assumed.append(
            f"cutoff_len {cutoff_len}, LLaMA-Factory's default (--set train.cutoff_len=N)"
        )
    limit = Limit(Tokenization(folder, template, {}), cutoff_len, {})
    note = "\n".join(filter(None, [warning, f"assumed: {'; '.join(assumed)}" if assumed else ""]))
    return Target(
        limit, policy, given.get("train.batch_size", 1), note, _spelled(None, model, overrides)
    )


def _missing(model: str, folder: Path) -> InputError:
    text = f"the model {model} is not there"
    return InputError("model-missing", text, where=str(folder), fix=how_to_get(model, folder))


def _parse(overrides: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in overrides:
        path, value = documents.parse_override(text)
        key = ".".join(map(str, path))
        kind = _SETTABLE.get(key)
        if kind is None:
            known = ", ".join(_SETTABLE)
            raise UsageError(
                "set-unknown",
                f"without --preset, --set knows {known}; not {key}",
                fix="--preset NAME",
            )
        if not isinstance(value, kind) or (isinstance(value, int) and value < 1):
            raise UsageError("set-value", f"{key} can't be {value!r}", where=f"--set {text}")
        found[key] = value
    if (policy := found.get("data.overlong")) not in (None, "fail", "fit", "drop", "allow"):
        raise UsageError("set-value", f"data.overlong is fail, fit, drop or allow, not {policy!r}")
    return found


def _guessed(folder: Path) -> fitting_template.Guess:
    found = fitting_template.guess(folder)
    if found.name is None:
        raise UsageError(
            "template-unguessed",
            f"which template belongs to the model can't be guessed: {found.how}",
            where=str(folder),
            fix="--set model.template=NAME",
        )
    return found


def _spelled(preset: str | None, model: str | None, overrides: Sequence[str]) -> str:

    words = ["--preset", preset] if preset else []
    words += ["--model", model] if model else []
    for text in overrides:
        words += ["--set", text]
    return shlex.join(words)
