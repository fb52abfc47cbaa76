"""LLaMA-Factory's tokenised copy of a data set (tokenized_path), which it takes without asking what
it was made from.

Verified with 0.9.5: a folder that is there is loaded whatever data, template and cutoff_len say, so
it may only be named to a run when all of these are known to be the same. `key` has them all.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iisft import process
from iisft.llamafactory.arguments import compile_arguments, of_data
from iisft.llamafactory.interpreter import Interpreter
from iisft.presets.schema import Preset

ARGUMENT = "tokenized_path"
_SCRIPT = Path(__file__).parents[1] / "child" / "tokenize_rows.py"
_TIMEOUT_S = 24 * 3600.0
_DECIDING_PACKAGES = ("llamafactory", "transformers", "tokenizers", "datasets")
# Needed for weights and arithmetic only; some of them ask for a GPU or a package.
_LEFT_OUT = (
    "quantization",
    "double_quantization",
    "deepspeed",
    "fsdp",
    "flash_attn",
    "eval_strategy",
    "eval_steps",
)


def key(preset: Preset, digests: Sequence[str], tokenizer: str, packages: Mapping[str, str]) -> str:
    """A name for everything that decides the tokens.

    Args:
        preset: its template, cutoff_len, seed and whole `llamafactory:` section take part.
        digests: sha256 of the training rows, then of those for evaluation.
        tokenizer: digest of the tokenizer's files.
        packages: versions in the training interpreter.
    """
    parts = {
        "rows": list(digests),
        "tokenizer": tokenizer,
        "template": preset.model.template,
        "cutoff_len": preset.train.cutoff_len,
        "seed": preset.train.seed,
        "llamafactory": of_data(preset),
        "packages": {name: packages.get(name) for name in _DECIDING_PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def tokenize(
    interpreter: Interpreter,
    preset: Preset,
    model: Path,
    dataset_dir: Path,
    target: Path,
    environment: Mapping[str, str],
) -> str:
    """Write the tokens of a preset's data to the new folder `target`, in a child process.

    Returns:
        "" when it went well, else the child's last line.
    """
    work = target.parent
    arguments: dict[str, Any] = compile_arguments(
        preset, model=model, dataset_dir=dataset_dir, output_dir=work / "output", on_cpu=True
    )
    arguments = {name: value for name, value in arguments.items() if not name.startswith(_LEFT_OUT)}
    arguments |= {ARGUMENT: str(target), "bf16": False, "fp16": False}
    file = work / "arguments.json"
    file.write_text(json.dumps(arguments), encoding="utf-8")
    env = {**environment, "HF_DATASETS_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    try:
        done = process.run(
            [str(interpreter.path), str(_SCRIPT), str(file)], timeout_s=_TIMEOUT_S, env=env
        )
    except (OSError, TimeoutError) as error:
        return str(error)
    if done.returncode == 0 and any(target.iterdir() if target.is_dir() else ()):
        return ""
    return (done.stderr.strip().splitlines() or ["no message"])[-1]
