"""Entry point of `iisft` and `python -m iisft`."""

import sys


def run() -> None:
    from iisft.cli import console
    from iisft.cli.app import main

    console.spare_unknown_letters()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
