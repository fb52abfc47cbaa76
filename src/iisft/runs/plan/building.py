"""What the trainer would make of a plan or a preset before its first step, and what speaks against
that.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft.data.stage.staged import has_tools
from iisft.errors import EnvironmentFault, Finding, InputError
from iisft.llamafactory import chat_files, turns
from iisft.llamafactory.arguments import compile_arguments
from iisft.llamafactory.catalogue import catalogue
from iisft.llamafactory.environment import Placement
from iisft.llamafactory.interpreter import Interpreter, inspect, training_interpreter
from iisft.llamafactory.turns import Options
from iisft.models import exported
from iisft.models.exported import TokenizerFacts
from iisft.models.folder.checkpoint import Checkpoint
from iisft.models.view import built, built_findings
from iisft.models.view.build import ViewPlan
from iisft.models.view.built import Built
from iisft.presets.schema import Preset
from iisft.runs.plan.datasets import RunDataset
from iisft.runs.plan.preflight import model_for
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace

# the doctor's findings after which asking the trainer's code would only fail again
_UNIMPORTABLE = ("import-died", "import-failed", "torchaudio-mismatch")


def build(
    preset: Preset,
    checkpoint: Checkpoint | None,
    view: ViewPlan | None,
    train_yaml: Mapping[str, Any],
    placement: Placement,
    datasets: Sequence[RunDataset],
    interpreter: Interpreter,
    so_far: Sequence[Finding],
    say: Callable[[str], None],
) -> tuple[Built | None, list[Finding]]:
    """Build a plan's model without weights.

    Nothing is asked of a model that is not sound, nor of packages that can't be imported: the
    findings `so_far` say so.
    """
    missing = {"llamafactory", "torch"} - interpreter.packages.keys()
    if view is None or checkpoint is None or missing:
        return None, []
    if any(one.id in _UNIMPORTABLE for one in so_far):
        return None, []
    name, extra, folder = preset.model.template, preset.llamafactory, checkpoint.folder
    answer = built.ask(
        view,
        checkpoint,
        train_yaml,
        interpreter,
        on_cpu=placement.on_cpu,
        distributed=placement.world_size > 1,
        texts=_prompts(name, extra, folder),
        say=say,
    )
    if isinstance(answer, str):
        text = f"the model was not built before the start: {answer}"
        return None, [Finding("model-unbuilt", text, str(interpreter.path), severity="warn")]
    longest = [dataset.longest for dataset in datasets]
    known = None if not longest or None in longest else max(filter(None, longest))
    rows = [dataset.file for dataset in datasets]
    foreseen = export_findings(name, extra, folder, rows, answer.facts)
    found = list(built_findings.findings(answer, preset, checkpoint, known))
    return answer, [*found, *foreseen]


def _prompts(name: str, extra: Mapping[str, Any], folder: Path) -> list[str]:
    """Texts on which an export compares tokenizers; none where the template is not known."""
    options = Options.of(extra)
    try:
        template = turns.under(catalogue().template(name), options)
        return chat_files.prompts(template, options, chat_files.tokens_of(folder, template))
    except InputError:
        return []


def export_findings(
    name: str,
    extra: Mapping[str, Any],
    folder: Path,
    rows: Sequence[Path],
    facts: Mapping[str, Any],
) -> Iterator[Finding]:
    """What `iisft export` would have to leave out, while the template can still be changed, and
    what would keep other tools from reading its files.

    `name` and `extra`: a preset's template and its `llamafactory:` section; `facts`: what the
    trainer's own code made of them.
    """
    options = Options.of(extra)
    try:
        template = turns.under(catalogue().template(name), options)
        with_tools = any(map(has_tools, rows))
        chat = chat_files.chat(folder, template, options, with_tools=with_tools)
    except InputError as error:
        if error.code == "export-prompt":
            yield replace(error.finding, severity="warn")
        return  # anything else is told with the rows
    faults = [str(facts["unexportable"])] if "unexportable" in facts else []
    if "tokenizer" in facts:
        with contextlib.suppress(OSError):  # an export needs more room, and says so
            faults += exported.rehearse(folder, TokenizerFacts(**facts["tokenizer"]), chat.text)
    if faults:
        yield Finding(
            "export-unreadable",
            f"other tools will not read an export of this model: {'; '.join(faults)}",
            where=str(folder),
            fix="serve the adapter with iisft serve, or train a model whose tokenizer is published "
            "as tokenizer.json",
            severity="warn",
        )
    if with_tools and chat.tools == "refused":
        yield Finding(
            "export-tools",
            f"no chat template writes tools as template {template.name} trains them: an exported "
            "model will refuse conversations with tools",
            where="model.template",
            fix="serve the adapter with iisft serve, or train with the template of the model's "
            "family (iisft model show)",
            severity="warn",
        )


def of_preset(preset: Preset, workspace: Workspace, say: Callable[[str], None]) -> list[Finding]:
    """What the trainer's own code says against a preset whose model is here and sound.

    Nothing where no interpreter could train it.
    """
    model = model_for(preset, workspace.model_folder(preset.model.id))
    if model.checkpoint is None:
        return []
    try:
        interpreter = inspect(training_interpreter())
    except EnvironmentFault:
        return []
    folder = RunFolder(workspace.runs / "run")
    arguments = compile_arguments(
        preset, model=folder.model, dataset_dir=folder.dataset, output_dir=folder.output,
        on_cpu=False,
    )  # fmt: skip
    placement = Placement(ranks=preset.hardware.gpus)
    return build(
        preset, model.checkpoint, model.view, arguments, placement, (), interpreter, (), say
    )[1]
