"""How `--help` reads: commands in groups, each summary whole.

Typer groups commands only when rich draws the help, which doubles start-up; without rich it lists
them in one block and cuts each summary at the terminal's width.
"""

from typing import Any

import typer
from typer.core import TyperGroup

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
