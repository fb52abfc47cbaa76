"""iisft data show: one row of a staged dataset as the model will see it."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.data_tokens import ModelOption, PresetOption
from iisft.cli.options import JsonOption, SetOption, complete_datasets
from iisft.quoting import visible
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.data.stage.staged import StagedDataset
    from iisft.data.tokens.limit import Limit, Segment

_STYLES = {"read": "dim", "trained": "bold green", "cut": "red strike"}
_MARKS = {"read": ("", ""), "trained": ("⟦", "⟧"), "cut": ("⟨cut: ", "⟩")}


def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A staged dataset.", autocompletion=complete_datasets),
    ],
    row: Annotated[int, typer.Option("--row", help="Which row, from 1.")] = 1,
    preset: PresetOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one row as the model will see it.

    The template is applied; trained tokens are green, what would be cut is red. Rendered for
    the model that the dataset was staged for, or for --preset or --model; without any, the
    turns as they are.

    \b
    Examples:
      iisft data show triage --row 3
      iisft data show triage --row 3 --preset mi50
    """
    from iisft.data.read.conversation import from_row
    from iisft.data.stage import staging
    from iisft.data.stage.staged import row_of
    from iisft.data.tokens.limit import render

    staged = staging.load(name, Workspace.current())
    value = row_of(staged, row)
    limit = _limit(staged, preset, model, overrides)
    conversation = from_row(value)
    why_not = limit.tokens.unrenderable(conversation) if limit else ""
    if why_not:
        console.say(f"not rendered: LLaMA-Factory would end the training at this row: {why_not}")
    segments = render(conversation, limit) if limit and not why_not else None
    if as_json:
        shown = (
            [{"kind": s.kind, "tokens": s.tokens, "text": s.text} for s in segments]
            if segments
            else None
        )
        console.out_json({**value, "rendered": shown})
    elif segments is None:
        _print_turns(value)
    else:
        _print_segments(segments, limit)


def _limit(
    staged: "StagedDataset", preset: str | None, model: str | None, overrides: list[str] | None
) -> "Limit | None":
    """What is asked for, else what the dataset was staged for, if that model is still there."""
    from iisft.cli.data_tokens import target
    from iisft.data.tokens.limit import Limit
    from iisft.data.tokens.tokenization import Tokenization
    from iisft.errors import InputError

    if preset or model or overrides:
        return target(preset, model, overrides, None).limit
    before = staged.record.get("counted_for")
    if before is None:
        return None
    try:
        tokens = Tokenization(
            Workspace.current().root / before["model"], before["template"], before["llamafactory"]
        )
        return Limit(tokens, before["cutoff_len"], before["llamafactory"])
    except InputError as error:
        console.say(f"not rendered for a model: {error.message}")
        return None


def _print_segments(segments: list["Segment"], limit: "Limit | None") -> None:
    counts = {kind: sum(s.tokens for s in segments if s.kind == kind) for kind in _STYLES}
    assert limit is not None
    console.say(
        f"{sum(counts.values()):,} tokens: {counts['read']:,} read, {counts['trained']:,} trained "
        "on, "
        f"{counts['cut']:,} cut at cutoff_len {limit.cutoff_len}"
    )
    screen = console.rich_stdout()
    if sys.stdout.isatty() and not screen.no_color:
        from rich.text import Text

        parts = ((visible(s.text), _STYLES[s.kind]) for s in segments)
        console.out_rich(screen, Text.assemble(*parts), soft_wrap=True)
        return
    marked = (f"{_MARKS[s.kind][0]}{s.text}{_MARKS[s.kind][1]}" for s in segments)
    console.out("".join(marked))


def _print_turns(value: dict[str, Any]) -> None:
    from iisft.data.read.conversation import from_row

    conversation = from_row(value)
    for title, text in (("system", conversation.system), ("tools", conversation.tools)):
        if text:
            console.out(f"[{title}]\n{text}\n")
    for message in conversation.messages:
        console.out(f"[{message.role}]\n{message.content}\n")
