"""The Typer application and main(): errors become text and exit codes here and nowhere else."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from iisft import __version__
from iisft.cli import console
from iisft.cli.chat import chat
from iisft.cli.compare import compare
from iisft.cli.data import data_app
from iisft.cli.download import download
from iisft.cli.env_check import env_check
from iisft.cli.evaluate import evaluate
from iisft.cli.export import export
from iisft.cli.model import model_app, models
from iisft.cli.notify import notify_app
from iisft.cli.options import PREPARE, TRAIN, USE, group
from iisft.cli.plan import plan
from iisft.cli.predict import predict
from iisft.cli.preset import preset_app
from iisft.cli.queue import queue_app
from iisft.cli.rehearse import rehearse
from iisft.cli.report import report
from iisft.cli.run import logs, resume, status, stop, wait
from iisft.cli.runs import runs_app
from iisft.cli.serve import serve
from iisft.cli.sweep import sweep
from iisft.cli.train import train
from iisft.cli.watch import watch
from iisft.errors import EnvironmentFault, ExitCode, IisftError, UsageError

app = group(
    """Fine-tune language models on the GPUs you own: LLaMA-Factory runs that do exactly what
    their preset says.

    \b
    Examples:
      iisft train --preset demo
      iisft train --preset mi50 --dry-run
    """,
    name="iisft",
)
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    PREPARE: (env_check, download, models, plan),
    TRAIN: (rehearse, train, sweep, status, watch, logs, wait, stop, resume),
    USE: (predict, evaluate, compare, report, chat, serve, export),
}
for _heading, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_heading)(_command)
app.add_typer(preset_app, name="preset", rich_help_panel=PREPARE)
app.add_typer(model_app, name="model", rich_help_panel=PREPARE)
app.add_typer(data_app, name="data", rich_help_panel=PREPARE)
app.add_typer(runs_app, name="runs", rich_help_panel=TRAIN)
app.add_typer(queue_app, name="queue", rich_help_panel=TRAIN)
app.add_typer(notify_app, name="notify", rich_help_panel=TRAIN)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.out(f"iisft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        app(args=list(argv), prog_name="iisft")
    except SystemExit as finished:
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # click's word for a closed pipe
            return ExitCode.OK
        return finished.code if isinstance(finished.code, int) else ExitCode.OK
    except console.ReaderGone:
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if os.environ.get("IISFT_DEBUG") == "1":
            raise
        return _report(error, as_json="--json" in argv)
    return ExitCode.OK


def _report(error: Exception, *, as_json: bool) -> int:
    # a full or read-only disk, a folder that was taken away
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}{': ' + str(error.filename) if error.filename else ''}"
        error = EnvironmentFault(
            "system", text, fix="look at that place; IISFT_DEBUG=1 shows what was tried"
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        error = UsageError(
            "no-home",
            "~ means a home directory, and there is none",
            fix="export HOME=/a/folder, or write the path in full",
        )
    if not isinstance(error, IisftError):
        error = IisftError(
            "internal-error",
            f"this is a bug in iisft: {type(error).__name__}: {error}",
            fix="IISFT_DEBUG=1 shows where; please report it",
        )
    if as_json:
        console.out_json({"error": error.as_json()})
    console.failure(error)
    return error.exit_code
