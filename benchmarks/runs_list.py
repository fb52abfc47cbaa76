"""How long `iisft runs` takes over 10,000 run folders: 9,980 that have ended, 20 that are lost.

python benchmarks/runs_list.py [RUNS]; the peer is `ls -R` of the same folders.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from timing import Command, in_turn, report

from iisft.runs.record.folder import RunFolder

COUNT, LOST = 10_000, 20


def make_runs(home: Path) -> None:
    for number in range(COUNT):
        folder = RunFolder(home / "runs" / f"mi50-{number:05}")
        folder.path.mkdir(parents=True)
        record = {
            "preset_name": "mi50",
            "created": float(number),
            "expected": {"world_size": 2},
            "env": {},
        }
        folder.record.write_text(json.dumps(record))
        lines = [
            {"kind": "metrics", "step": s, "total_steps": 500, "loss": 1 / s, "step_s": 300.0}
            for s in range(1, 501)
        ]
        if number < LOST:
            folder.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
            continue
        outcome = {
            "state": "finished",
            "reason": "all 500 steps",
            "returncode": 0,
            "ended": float(number),
            "step": 500,
            "total_steps": 500,
            "checkpoint": 500,
            "loss": 0.5,
            "preset": "mi50",
            "started": float(number),
            "ranks": 2,
        }
        folder.exit.write_text(json.dumps(outcome))


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder))
        env = {"IISFT_HOME": folder}
        peer = Command("ls -R", ["ls", "-R", folder])
        listed = Command(
            "iisft runs", [str(Path(sys.executable).parent / "iisft"), "runs"], env=env
        )
        in_turn([peer, listed], runs)
        report([peer, listed], peer)
        print(f"cores: {os.cpu_count()}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
