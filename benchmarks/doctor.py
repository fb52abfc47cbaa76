"""What `env-check` costs beyond the imports that it asks for, and what the doctor adds to `train`'s
preflight.

python benchmarks/doctor.py [RUNS]
The peer is `llamafactory-cli env`, which prints versions and GPUs and judges nothing.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from timing import Command, in_turn, report

from iisft.llamafactory import capabilities

BINARIES = Path(sys.executable).parent
IISFT, LLAMAFACTORY, PYTHON = (
    str(BINARIES / name) for name in ("iisft", "llamafactory-cli", "python")
)
CHILD = Path(capabilities.__file__).parents[1] / "child" / "trainer_report.py"


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {"IISFT_HOME": folder, "XDG_CACHE_HOME": folder, "HF_HUB_OFFLINE": "1"}
        peer = Command("llamafactory-cli env", [LLAMAFACTORY, "env"])
        imports = Command("the child's imports alone", [PYTHON, str(CHILD), "120"], env=env)
        check = Command("iisft env-check", [IISFT, "env-check"], env=env)
        dry = Command(
            "iisft train --dry-run, packages unchanged",
            [IISFT, "train", "--preset", "mi50", "--dry-run"],
            env=env,
            expect=3,
        )
        in_turn([peer, imports, check, dry], runs)
        report([peer, imports, check, dry], peer)
        beyond = [whole - part for whole, part in zip(check.seconds, imports.seconds, strict=True)]
        print(
            f"env-check beyond the imports: median {statistics.median(beyond):.2f} s, most "
            f"{max(beyond):.2f} s"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
