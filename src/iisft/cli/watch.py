"""iisft watch: a run in the terminal, live. It only reads: leaving it never disturbs the run."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.cli.options import RunArgument
from iisft.errors import EnvironmentFault, UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.cli.frame import View
    from iisft.machine.facts.sensors import GpuSample
    from iisft.runs.record.folder import RunFolder
    from iisft.runs.record.state import RunStatus

_PORT = 8577  # the same every day: one ssh command and one tunnel
_REFRESH_S = 1.0
_LOOKS_PER_STATUS = 5
_LOG_LINES = 200  # more than any terminal is high


def watch(
    run: RunArgument = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
    web: Annotated[
        bool, typer.Option("--web", help="A page for a browser instead, with every run.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            help=f"Of the page; 0 = any free one. Default: {_PORT}, or a free one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Watch a run live: progress, curves, GPUs, log.

    q or Ctrl-C leaves the run alone.

    \b
    Examples:
      iisft watch
      iisft watch RUN --once
      iisft watch --web
    """
    from iisft.runs.record.state import find_run
    from iisft.runs.supervise import control

    if web and once:
        raise UsageError("watch-how", "--once is for the terminal, --web for a browser: take one")
    if port is not None and not web:
        raise UsageError("watch-how", "--port is the page's", fix="iisft watch --web --port N")
    if web:
        _serve(run, port)
        return
    folder = find_run(Workspace.current(), run)
    if once:
        _print_frame(_Watched(folder).look())
        return
    ended = None
    with contextlib.suppress(KeyboardInterrupt):
        ended = _follow(folder)
    if ended is None:
        console.say(
            f"left {folder.id}; the run is not touched. Back to it: iisft watch {folder.id}"
        )
        return
    raise typer.Exit(control.exit_code(ended))


def _serve(run: str | None, port: int | None) -> None:
    """Answer a browser until Ctrl-C, whatever becomes of the runs."""
    from urllib.parse import urlencode

    from iisft.report.live.server import HOST, LivePage
    from iisft.runs.record.state import find_run
    from iisft.sockets import bound

    workspace = Workspace.current()
    shown = f"?{urlencode({'run': find_run(workspace, run).id})}" if run is not None else ""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(bound(HOST, _PORT if port is None else port))
        except EnvironmentFault:
            if port is not None:
                raise
            listener = stack.enter_context(bound(HOST, 0))
        page = LivePage(listener, workspace)
        stack.callback(page.close)
        console.out(page.url + shown)
        tunnel = _tunnel(listener.getsockname()[1])
        console.say(f"from another machine: {tunnel}   then the same address there")
        console.say("Ctrl-C ends it; the runs are not touched")
        with contextlib.suppress(KeyboardInterrupt):
            page.serve_forever()


def _tunnel(port: int) -> str:
    """The ssh command for where the page is to be seen: to the address by which this machine was
    reached, if somebody sits at another one now (sshd(8), SSH_CONNECTION).
    """
    import getpass
    import socket

    from iisft.quoting import shell_words

    reached = os.environ.get("SSH_CONNECTION", "").split()
    host, ssh_port = reached[2:] if len(reached) == 4 else (socket.gethostname(), "22")
    more = ["-p", ssh_port] if ssh_port != "22" else []
    tunnel = f"{port}:127.0.0.1:{port}"
    return shell_words(["ssh", "-N", "-L", tunnel, *more, f"{getpass.getuser()}@{host}"])


def _follow(folder: "RunFolder") -> "RunStatus | None":
    """Show the run until it has ended, then its last picture. Without a terminal that one alone.

    None when q was pressed.
    """
    from rich.live import Live

    from iisft.cli.frame import frame
    from iisft.runs.supervise import control

    watched = _Watched(folder)
    terminal = console.rich_stdout()
    if terminal.is_terminal and not terminal.is_dumb_terminal:
        with _single_keys(), Live(console=terminal, screen=True, auto_refresh=False) as live:
            while not (view := watched.look()).status.over:
                live.update(frame(view, terminal, terminal.height), refresh=True)
                if _pressed() == "q":
                    return None
    else:
        control.wait(folder)
    view = watched.look()
    _print_frame(view)
    return view.status


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Keys come without a line end, and are not shown."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed() -> str:
    """The key that was pressed before the next picture is due, "" for none."""
    if not sys.stdin.isatty():
        time.sleep(_REFRESH_S)
        return ""
    if not select.select([sys.stdin], [], [], _REFRESH_S)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 1).decode("ascii", "replace").lower()


def _print_frame(view: "View") -> None:
    from iisft.cli.frame import frame

    terminal = console.rich_stdout()
    console.out_rich(terminal, frame(view, terminal), no_wrap=True, overflow="ellipsis")


class _Watched:
    """Looks at one run again and again.

    The whole status, which reads all events, only when it may have changed.
    """

    def __init__(self, folder: "RunFolder") -> None:
        from iisft.runs.record.history import History

        self._history = History(folder)
        self._folder = folder
        self._status: RunStatus | None = None
        self._looks = 0
        self._gpus: list[GpuSample] = []

    def look(self) -> "View":
        from iisft.cli.frame import View
        from iisft.machine.facts import sensors
        from iisft.runs.record.history import last_lines
        from iisft.runs.record.state import status_of

        changed = self._history.update()
        stale = self._looks % _LOOKS_PER_STATUS == 0 or self._folder.exit.exists()
        self._looks += 1
        if self._status is None or changed or stale:
            self._status = status_of(self._folder)
            self._history.update()  # what was written before the state that was just read
        if not self._status.live:
            self._gpus = []
        elif stale:  # nvidia-smi may take a second
            self._gpus = sensors.sample()
        return View(
            self._status, self._history, self._gpus, last_lines(self._folder.train_log, _LOG_LINES)
        )
