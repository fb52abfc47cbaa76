"""Real LLaMA-Factory runs for the tests: arguments, views, child processes, and what the runs left
behind.
"""

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.models.view.build import build_view, plan_view, with_step

HERE = Path(__file__).parent
PYTHON = os.environ.get("IISFT_PYTHON") or sys.executable
MARK = "iisft-observed "

# name of a way -> (precision, weights) of its view; None: the original folder without a view
WAYS = {"exact": ("fp32", "stored"), "float32": ("fp32", "fp32"), "plain": None}


def child_environment(folder: Path, **more: str) -> dict[str, str]:
    # without the byte code on disk, each child spends half a minute compiling what it imports
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        # llamafactory-cli starts `torchrun` by its bare name
        "PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **more,
    }


def run_python(
    script: Path, *arguments: object, folder: Path, expect: int | None = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in the training interpreter; its whole output is in the failure message."""
    folder.mkdir(parents=True, exist_ok=True)
    return _run([PYTHON, str(script), *map(str, arguments)], folder, expect, **more)


def make_view(model: Path, folder: Path, precision: str, weights: str, **step: Any) -> Path:
    plan = plan_view(
        inspect_checkpoint(model),
        precision=precision,
        weights=weights,
        trust_remote_code=False,
    )
    build_view(with_step(plan, step), folder)
    return folder


def train_arguments(model: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    """A LoRA run of six updates with everything that could differ between two runs
    said explicitly.
    """
    return {
        "stage": "sft",
        "do_train": True,
        "use_cpu": True,
        "model_name_or_path": str(model),
        "trust_remote_code": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "flash_attn": "disabled",
        "dataset_dir": str(data),
        "dataset": "rows",
        "template": "qwen",
        "cutoff_len": 96,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "output_dir": str(output),
        "overwrite_output_dir": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "learning_rate": 1.0e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "max_grad_norm": 0.5,
        "optim": "adamw_torch",
        "seed": 42,
        "bf16": False,
        "fp16": False,
        **more,
    }


@dataclass
class Batch:
    """Trainings that run one after the other in one process, and the proof lines of each."""

    folder: Path
    cases: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    log: str = ""

    def add(self, name: str, model: Path, data: Path, **more: Any) -> None:
        self.cases.append((name, train_arguments(model, data, self.folder / name, **more)))

    def run(self, **more: str) -> "Batch":
        self.folder.mkdir(parents=True, exist_ok=True)
        cases = self.folder / "cases.json"
        cases.write_text(json.dumps(self.cases), encoding="utf-8")
        self.log = run_python(HERE / "run_many.py", cases, folder=self.folder, **more).stdout
        for part in self.log.split("\ncase ")[1:]:
            self.lines[part.split("\n", 1)[0]] = proof_lines(part)
        return self

    def error(self, name: str) -> str | None:
        path = self.folder / f"{name}.error"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def result(self, name: str) -> dict[str, Any]:
        assert self.error(name) is None, self.error(name)
        return result_of(self.folder / name)


def run_command_line(folder: Path, arguments: dict[str, Any], **more: str) -> str:
    """`llamafactory-cli train`, with the file name relative because it splits its command line at
    spaces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text(
        yaml.safe_dump(arguments, allow_unicode=True), encoding="utf-8"
    )
    cli = Path(PYTHON).parent / "llamafactory-cli"
    return _run([str(cli), "train", "train.yaml"], folder, 0, **more).stdout


def _run(
    argv: list[str], folder: Path, expect: int | None, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        env=child_environment(folder, **more),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert expect is None or done.returncode == expect, done.stdout[-6000:]
    return done


def proof_lines(log: str) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix(MARK)) for line in log.splitlines() if line.startswith(MARK)
    ]


def result_of(output: Path) -> dict[str, Any]:
    """Every logged loss and grad_norm, and the bytes of every adapter tensor."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    logged = [(e["step"], e["loss"], e["grad_norm"]) for e in state["log_history"] if "loss" in e]
    assert logged and all(norm > 0 for _, _, norm in logged), logged
    return {"logged": logged, "adapter": tensors_of(output / "adapter_model.safetensors")}


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], body[entry["data_offsets"][0] : entry["data_offsets"][1]])
        for name, entry in header.items()
    }
