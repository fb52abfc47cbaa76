"""What the supervisor costs while it follows a run that logs a step every five seconds.

python benchmarks/supervisor_cost.py [SECONDS]; the trainer is the tests' stand-in, so that nothing
else takes the core.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from iisft.child.constants_iisft import STOP_VARIABLE
from iisft.runs.record.folder import RunFolder

FAKE = Path(__file__).parents[1] / "tests" / "fakes" / "llamafactory_cli.py"


def make_run(home: Path) -> RunFolder:
    folder = RunFolder(home / "runs" / "cost")
    folder.logs.mkdir(parents=True)
    expected = {
        "weights_dtype": "bfloat16",
        "compute_dtype": "float32",
        "autocast": None,
        "attention": "eager",
        "arithmetic": "float32",
        "world_size": 1,
        "global_batch": 2,
        "rows": 8,
    }
    record = {
        "preset_name": "mi50",
        "preset": {"sharding": "none", "hardware": {"vendor": "cpu"}},
        "created": time.time(),
        "argv": [sys.executable, str(FAKE), "train", "train.yaml"],
        "ranks": 1,
        "nodes": 1,
        "expected": expected,
        "watch": {"nan": "stop", "hang_factor": 10, "hang_min_s": 300, "restarts": 3},
        "model": {"folder": "/nowhere"},
    }
    folder.record.write_text(json.dumps(record))
    folder.train_yaml.write_text(f"output_dir: {json.dumps(str(folder.output))}\n")
    return folder


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = make_run(Path(home))
        env = os.environ | {
            "FAKE_STEPS": "100000",
            "FAKE_STEP_S": "5",
            STOP_VARIABLE: str(folder.stop_request),
        }
        argv = [sys.executable, "-m", "iisft.runs.supervise.supervisor", str(folder.path)]
        supervisor = subprocess.Popen(argv, env=env)
        time.sleep(10)  # its own start is not what a run of two days pays
        before = cpu_seconds(supervisor.pid)
        time.sleep(seconds)
        used = cpu_seconds(supervisor.pid) - before
        print(
            f"{used / seconds:.3%} of one core over {seconds:.0f} s, "
            f"{peak_mb(supervisor.pid):.1f} MB at most"
        )
        folder.stop_request.write_text('{"now": true}')
        supervisor.wait(30)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0)
