"""Entry point of `iisft` and `python -m iisft`."""

import io
import os
import signal  # noqa: TID251 - it receives, and sends none
import sys


def run() -> None:
    _open_what_is_closed()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # so that temporary folders are removed; it is not Ctrl-C, which would stop a run
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    from iisft.cli.app import main

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8, or a key of a data file that no encoding holds, must not end
        # a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))


def _open_what_is_closed() -> None:
    """Without it the first file that is opened would become standard output (iisft ... >&-)."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - a descriptor, for the whole process
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


if __name__ == "__main__":
    run()
