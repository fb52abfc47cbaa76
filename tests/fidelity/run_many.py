"""Runs LLaMA-Factory trainings in one process, in the training interpreter: python run_many.py
CASES.json

CASES.json is a list of [name, arguments]. Each case is announced on stdout; one that fails leaves
NAME.error.
"""

import json
import sys
import traceback
from pathlib import Path

from llamafactory.train.tuner import run_exp


def main(cases):
    # Views of one name follow each other within a second: Python would take the first one's
    # bytecode for the next, which it knows by size and whole seconds.
    sys.dont_write_bytecode = True
    for name, arguments in json.loads(cases.read_text(encoding="utf-8")):
        print(f"\ncase {name}", flush=True)
        try:
            run_exp(arguments)
        except Exception:
            traceback.print_exc()
            Path(arguments["output_dir"] + ".error").write_text(
                traceback.format_exc(), encoding="utf-8"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
