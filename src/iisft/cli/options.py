"""Options that several commands share, what shell completion offers for them, and how help reads.

Typer groups commands only when rich draws the help, which doubles start-up; without rich it lists
them in one block and cuts each summary at the terminal's width.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from iisft.workspace import Workspace


def complete_presets() -> list[str]:
    from iisft.presets import documents

    return sorted(documents.available(Workspace.current()))


def complete_runs() -> list[str]:
    return sorted(path.name for path in Workspace.current().runs.glob("*") if path.is_dir())


def complete_datasets() -> list[str]:
    return sorted(path.name for path in Workspace.current().data.glob("*") if path.is_dir())


PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", help="A preset's name or file.", autocompletion=complete_presets
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(help="Model folder or hub id instead of the preset's.")
]
TrainDataOption = Annotated[
    str | None,
    typer.Option(
        help="Staged dataset instead of the preset's; A,B mixes several.",
        autocompletion=complete_datasets,
    ),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="A run's id; default: the newest.", autocompletion=complete_runs
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one value, for example train.epochs=1."
    ),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="STEP|final|best|base",
        help="A step; final; best = lowest eval loss; base = no adapter. Default: final, or the "
        "newest.",
    ),
]
BaseModelOption = Annotated[
    str | None, typer.Option("--model", help="Where the base model is now, if it was moved.")
]
CpuOption = Annotated[bool, typer.Option("--cpu", help="Use the CPU even if the run had GPUs.")]
MaxTokensOption = Annotated[
    int | None, typer.Option(help="Longest answer in tokens; default: the run's cutoff_len.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Return at once; the run continues.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the trainer's lines instead of a bar.")
]
DataFileArgument = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="JSON array, JSON lines, CSV or Parquet, gzipped or not."),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="WORDS",
        help="What the file is, if its content misleads: alpaca, sharegpt or openai; json, "
        "jsonl, csv or parquet; "
        "or one of each with a comma.",
    ),
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="FIELD=KEY",
        help="Where a field stands, for example answer=ground_truth. Several with commas, or the "
        "option again.",
    ),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="KEY",
        help="Train as if this key were not there, though it means something, for example loss.",
    ),
]
RolesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--roles",
        metavar="NAME=ROLE",
        help="What a role is called, for example bot=assistant; roles are user, assistant, system, "
        "tool, function_call.",
    ),
]

PREPARE, TRAIN, USE = "Prepare", "Train", "Use"


class CommandList(TyperGroup):
    """A group whose help lists its commands under their headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                heading = str(getattr(command, "rich_help_panel", None) or "Commands")
                summary = command.get_short_help_str(limit=1000)
                headings.setdefault(heading, []).append((name, summary))
        longest = max((len(name) for rows in headings.values() for name, _ in rows), default=0)
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(longest), summary) for name, summary in rows])


def group(text: str, **settings: Any) -> typer.Typer:
    """A command of commands: `-h` works in it and below it, and its help needs no rich."""
    return typer.Typer(
        help=text,
        cls=CommandList,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        **{"no_args_is_help": True} | settings,
    )
