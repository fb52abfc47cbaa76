"""iisft notify: whether notices arrive."""

import os
from typing import Annotated

import typer

from iisft.cli import console, options
from iisft.cli.options import JsonOption, SetOption
from iisft.errors import ExitCode, UsageError
from iisft.workspace import Workspace

notify_app = options.group("""Notices to phones and chats when a run ends or needs you.

\b
Examples:
  iisft notify test
  iisft notify test --preset mi50
""")


_Preset = Annotated[
    str | None,
    typer.Option("--preset", "-p", help="Its places too.", autocompletion=options.complete_presets),
]


@notify_app.command()
def test(preset: _Preset = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Send a notice to every place of $IISFT_NOTIFY, and of a preset.

    A place is an address of apprise: export IISFT_NOTIFY=ntfys://ntfy.sh/my-topic. Exit 4
    when one of them is not reached.

    \b
    Examples:
      iisft notify test
      iisft notify test --preset mi50
    """
    from iisft import notices
    from iisft.presets import checking, documents

    listed: list[str] = []
    if preset is not None:
        document = documents.read_document(preset, Workspace.current())
        document.change(overrides or [])
        listed = checking.check(document).preset.notify
    to, problems = notices.addresses(listed, os.environ)
    console.findings(problems)
    if not to and not problems:
        raise UsageError(
            "notify-nowhere",
            "no place for notices is named",
            fix=f"export {notices.VARIABLE}=ntfys://ntfy.sh/my-topic, or notify: in a preset",
        )
    text = "Notices of runs on this machine arrive here. Nothing has happened."
    answers = notices.send(f"iisft: a test ({os.uname().nodename})", text, to)
    if as_json:
        console.out_json([{"place": answer.place, "why": answer.why} for answer in answers])
    else:
        for answer in answers:
            console.out(f"{answer.place}: {answer.why or 'sent'}")
    if problems or any(answer.why for answer in answers):
        raise typer.Exit(ExitCode.ENVIRONMENT)
