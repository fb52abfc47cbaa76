"""What an interpreter has installed. Standard library only: it also runs as a script in the
training interpreter.

It reads package metadata and imports nothing of what it reports.
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "llamafactory",
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "trl",
    "tokenizers",
    "deepspeed",
    "bitsandbytes",
)
# What some of LLaMA-Factory's arguments need (iisft.llamafactory.passed); no run depends on them.
OPTIONAL = (
    "liger-kernel",
    "mixture-of-depth",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "unsloth",
    "wandb",
)


def report() -> dict[str, Any]:
    """Python's version and the versions of the packages that training depends on.

    Missing ones are left out.
    """
    versions = _versions(PACKAGES)
    spec = importlib.util.find_spec("llamafactory") if "llamafactory" in versions else None
    package = Path(spec.origin).parent if spec and spec.origin else None
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": versions,
        "optional": sorted(_versions(OPTIONAL)),
        "launcher": str(package / "launcher.py") if package else None,
    }


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report()))
