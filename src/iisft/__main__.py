"""Entry point of `iisft` and `python -m iisft`."""

import io
import sys


def run() -> None:
    from iisft.cli.app import main

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is no UTF-8, or a key of a data file that no encoding holds, must not end
        # a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
