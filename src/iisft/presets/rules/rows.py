"""Whether what is trained on, evaluated and kept goes together."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.presets.case import Case
from iisft.rules import change_preset, preset_rule, seen


@preset_rule(
    "eval-never",
    applies="presets with data.eval alone",
    source="LLaMA-Factory's eval_dataset without eval_steps",
)
def never_evaluated(case: Case) -> Iterator[Finding]:
    """data.eval would be dropped silently."""
    preset = case.preset
    if preset and preset.data.eval is not None and preset.save.eval_every_steps is None:
        every = preset.save.every_steps
        yield seen(
            "data.eval is never evaluated without save.eval_every_steps",
            case.place("data.eval"),
            change_preset(f"save.eval_every_steps={every}"),
        )


@preset_rule(
    "eval-without-data",
    applies="presets with save.eval_every_steps alone",
    source="LLaMA-Factory's eval_steps without eval_dataset",
)
def nothing_to_evaluate(case: Case) -> Iterator[Finding]:
    """save.eval_every_steps would be dropped silently."""
    preset = case.preset
    if preset and preset.save.eval_every_steps is not None and preset.data.eval is None:
        yield seen(
            "eval_every_steps needs data.eval",
            case.place("save.eval_every_steps"),
            change_preset("data.eval=NAME"),
        )


@preset_rule(
    "data-mix",
    applies="several datasets in data.name or data.eval, data.mix and data.repeat",
    source="a share is exact or refused",
)
def wrongly_mixed(case: Case) -> Iterator[Finding]:
    """What is mixed is named once each, with a share or a number of rows for every one of them."""
    data = case.preset.data if case.preset else None
    if data is None:
        return
    for key, names in (("name", data.names), ("eval", data.evaluated)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            once = ", ".join(dict.fromkeys(names))
            yield seen(
                f"data.{key} names {', '.join(twice)} twice",
                case.place(f"data.{key}"),
                change_preset(f"data.{key}=[{once}]", f"--set 'data.{key}=[{once}]'"),
            )
    if data.repeat and not data.mix:
        yield seen(
            "data.repeat has no effect without data.mix",
            case.place("data.repeat"),
            change_preset("data.repeat=false"),
        )
    if text := data.wrong_mix:
        yield seen(text, case.place("data.mix"), "correct data.mix, or --set data.mix=null")


@preset_rule(
    "save-best",
    applies="save.best",
    source="transformers 5.5's trainer.py: _determine_best_metric, _save_checkpoint and the end of "
    "_inner_training_loop",
)
def best_is_not_kept(case: Case) -> Iterator[Finding]:
    """The trainer compares evaluations, not checkpoints: a better one at a step without a
    checkpoint keeps a worse checkpoint than others that it deletes. A limit of one makes it delete
    every checkpoint but the best at the end, also of a run that was only stopped and goes on from
    its newest.
    """
    preset = case.preset
    if preset is None or not preset.save.best:
        return
    save = preset.save
    if preset.data.eval is None:
        yield seen(
            "save.best needs rows to evaluate: data.eval",
            case.place("save.best"),
            change_preset(
                "data.eval=NAME",
                f"--set data.eval=NAME --set save.eval_every_steps={save.every_steps}; iisft data "
                "split makes such rows",
            ),
        )
    elif save.eval_every_steps is not None and save.eval_every_steps % save.every_steps:
        yield seen(
            f"with save.best every evaluation needs a checkpoint: eval_every_steps "
            f"{save.eval_every_steps} is not a multiple of every_steps {save.every_steps}",
            case.place("save.eval_every_steps"),
            change_preset(
                f"save.eval_every_steps={save.every_steps}",
                f"--set save.eval_every_steps={save.every_steps}, or "
                f"save.every_steps={save.eval_every_steps}",
            ),
        )
    if save.keep < save.fewest:
        yield seen(
            "save.best needs room for the newest checkpoint beside the best: keep is 1",
            case.place("save.keep"),
            change_preset(f"save.keep={save.fewest}"),
        )
    if case.argument("eval_on_each_dataset"):
        yield seen(
            "llamafactory.eval_on_each_dataset leaves no evaluation loss of all rows, by which "
            "save.best chooses",
            case.place("llamafactory.eval_on_each_dataset"),
            change_preset("save.best=false", "drop one of them"),
        )
