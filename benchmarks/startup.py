"""How long the command line takes before it does anything, against `llamafactory-cli version`.

python benchmarks/startup.py [RUNS]
"""

import os
import sys
import tempfile
from pathlib import Path

from timing import Command, in_turn, peak_memory_mb, report

BINARIES = Path(sys.executable).parent
IISFT, LLAMAFACTORY = str(BINARIES / "iisft"), str(BINARIES / "llamafactory-cli")


def hundred_keys() -> str:
    """mi50 with so many keys in free sections that a preset has a hundred."""
    env = "".join(f'  UNUSED_{i}: "{i}"\n' for i in range(70))
    return f"extends: mi50\nsummary: a hundred keys\nenv:\n{env}"


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        (workspace / "hundred.yaml").write_text(hundred_keys())
        (workspace / "typo.yaml").write_text("extends: mi50\ntrain:\n  lerning_rate: 1e-4\n")
        env = {"IISFT_HOME": folder, "HF_HUB_OFFLINE": "1"}
        preset = str(workspace / "hundred.yaml")
        peer = Command("llamafactory-cli version", [LLAMAFACTORY, "version"])
        train = [IISFT, "train", "--preset"]
        plan = [IISFT, "plan", "--preset", "mi50", "--device", "mi50-16g"]
        typo = str(workspace / "typo.yaml")
        own = [
            Command("iisft --help", [IISFT, "--help"], env=env),
            Command("iisft preset list", [IISFT, "preset", "list"], env=env),
            Command(
                "iisft train --dry-run, 100 keys", [*train, preset, "--dry-run"], env=env, expect=3
            ),
            Command("a misspelled key is reported", [*train, typo], env=env, expect=3),
            Command(
                "iisft plan", [IISFT, "plan", "--preset", "mi50", "--device", "mi50-32g"], env=env
            ),
            Command(
                "iisft plan that finds what would fit", [*plan, "--set", "weights=fp32"], env=env
            ),
            Command("a missing dataset is reported", [*train, "mi50"], env=env, expect=3),
        ]
        in_turn([peer, *own], runs)
        report([peer, *own], peer)
        os.environ |= env
        for argv in ([IISFT, "--help"], [IISFT, "preset", "list"]):
            print(f"peak memory of {' '.join(['iisft', *argv[1:]])}: {peak_memory_mb(argv):.1f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
