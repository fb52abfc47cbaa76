"""A finished run without torch: the files that it leaves, and a child that speaks like the real
ones.
"""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.runs.record.checkpoints import Saved, seal
from iisft.runs.record.folder import RunFolder

FAKE = Path(__file__).parents[1] / "fakes" / "model_child.py"


@pytest.fixture
def staged(iisft: Callable[..., Any], workspace: Path) -> str:
    """A dataset of ten rows."""
    rows = [{"instruction": f"问 {i}", "input": "", "output": f"答 {i}"} for i in range(1, 11)]
    file = workspace / "rows.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert iisft("data", "stage", str(file), "--name", "情报").code == 0
    return "情报"


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """How the fake child behaves."""

    def behave(mode: str, **settings: str) -> None:
        monkeypatch.setenv("FAKE_CHILD", mode)
        for name, value in settings.items():
            monkeypatch.setenv(f"FAKE_{name}", value)

    return behave


def write_model(folder: Path) -> Path:
    """A Qwen2 model folder in bf16, with weights that differ from zero."""
    folder.mkdir(parents=True)
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"temperature": 0.7}')
    header = json.dumps(
        {"model.w": {"dtype": "BF16", "shape": [64, 64], "data_offsets": [0, 8192]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(range(256)) * 32
    )
    return folder


def write_adapter(folder: Path, content: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + struct.pack("<i", content)
    (folder / "adapter_model.safetensors").write_bytes(weights)


def write_checkpoint(folder: RunFolder, step: int) -> Path:
    place = folder.output / f"checkpoint-{step}"
    write_adapter(place, step)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (place / name).write_text(json.dumps({"global_step": step}))
    seal(Saved(step, place, ""), 1)
    return place


@pytest.fixture
def make_run(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunFolder]:
    """A run in the state that is asked for, with checkpoints, trained on models/测试/tiny."""
    python = tmp_path / "fake python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("IISFT_PYTHON", str(python))

    def make(
        name: str = "run",
        *,
        state: str = "finished",
        checkpoints: tuple[int, ...] = (20, 40),
        **preset: Any,
    ) -> RunFolder:
        from iisft.models.folder import identity

        model = workspace / "models" / "测试" / "tiny"
        if not model.exists():
            write_model(model)
        folder = RunFolder(workspace / "runs" / name)
        folder.logs.mkdir(parents=True)
        for step in checkpoints:
            write_checkpoint(folder, step)
        if state == "finished":
            write_adapter(folder.output, checkpoints[-1] if checkpoints else 1)
        if state != "lost":
            folder.exit.write_text(json.dumps({"state": state, "reason": "", "ended": 2.0}))
        folder.record.write_text(json.dumps(_record(folder, model, python, identity.stamp, preset)))
        return folder

    return make


def _record(
    folder: RunFolder,
    model: Path,
    python: Path,
    stamp: Callable[[Path], dict[str, Any]],
    changes: dict[str, Any],
) -> dict[str, Any]:
    import hashlib

    preset = {
        "precision": "fp32",
        "weights": "stored",
        "sharding": "none",
        "model": {"id": "测试/tiny", "template": "qwen", "trust_remote_code": False},
        "train": {"cutoff_len": 64, "learning_rate": 1e-5, "scheduler": "cosine", "epochs": 1.0},
        "lora": {"rank": 8, "alpha": 16, "target": "all"},
        "data": {"name": "情报", "eval": None},
    }
    return {
        "id": folder.id,
        "created": 1.0,
        "preset_name": "mi50",
        "preset": preset | changes,
        "argv": ["llamafactory-cli", "train", "train.yaml"],
        "env": {},
        "watch": {},
        "ranks": 1,
        "nodes": 1,
        "gpus": [],
        "packages": {"torch": "2.11.0"},
        "interpreter": {"path": str(python)},
        "train_yaml": {"template": "qwen", "cutoff_len": 64},
        "model": {
            "id": "测试/tiny",
            "folder": str(model),
            "architecture": "Qwen2ForCausalLM",
            "parameters": 4096,
            "config_sha256": hashlib.sha256((model / "config.json").read_bytes()).hexdigest(),
            "files": {"model.safetensors": stamp(model / "model.safetensors")},
        },
        "data": [{"name": "情报", "rows": 10, "sha256": "0" * 64}],
        "expected": {
            "weights_dtype": "bfloat16",
            "compute_dtype": "float32",
            "autocast": None,
            "attention": "eager",
            "arithmetic": "float32",
            "world_size": 1,
            "global_batch": 4,
            "rows": 10,
        },
    }
