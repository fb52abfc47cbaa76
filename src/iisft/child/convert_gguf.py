"""Runs llama.cpp's converter. The specification: {"converter": its script, "arguments": its words,
"file": what it must write}; see run_model.py for the protocol.
"""

import runpy
import sys
from pathlib import Path

from run_model import Link


def main() -> None:
    link = Link()
    spec = link.receive()
    sys.argv = [spec["converter"], *spec["arguments"]]
    sys.path.insert(0, str(Path(spec["converter"]).parent))  # it imports what lies beside it
    try:
        runpy.run_path(spec["converter"], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    if not Path(spec["file"]).is_file():
        raise FileNotFoundError(f"the converter has not written {spec['file']}")
    link.send(kind="converted")
    link.send(kind="end")


if __name__ == "__main__":
    main()
