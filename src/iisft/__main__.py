"""Entry point of `iisft` and `python -m iisft`."""

import sys


def run() -> None:
    from iisft.cli.app import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
