"""Wall time of `iisft train --preset demo` against bare `llamafactory-cli train` with the same
train.yaml.

python benchmarks/train_overhead.py [RUNS]; the demo model is built before, and LLaMA-Factory's
imports are warm.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from timing import Command, in_turn, report

BINARIES = Path(sys.executable).parent


class BareTraining(Command):
    """llamafactory-cli in a copy of the folder that iisft made, with the output of the last time
    removed.
    """

    def run(self) -> float:
        shutil.rmtree(self.cwd / "output", ignore_errors=True)
        return super().run()


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        train = [str(BINARIES / "iisft"), "train", "--preset", "demo"]
        env = {"IISFT_HOME": folder}
        Command("the demo's model", [*train, "--name", "bare"], env=env).run()
        bare_env = json.loads((workspace / "runs" / "bare" / "run.json").read_text())["env"]
        bare = BareTraining(
            "llamafactory-cli train",
            [str(BINARIES / "llamafactory-cli"), "train", "train.yaml"],
            cwd=workspace / "runs" / "bare",
            env=bare_env,
        )
        own = Command("iisft train", train, env=env)
        in_turn([bare, own], runs)
        report([bare, own], bare)
        print(f"cores: {os.cpu_count()}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
