"""The real LLaMA-Factory on a tiny Qwen2, through the command line."""

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY_MODELS = Path(__file__).parents[1] / "fidelity" / "tiny_models.py"
PYTHON = Path(os.environ.get("IISFT_PYTHON") or sys.executable)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen2-tied/model, gemma3-vision/model, and data/ with their rows."""
    folder, names = tmp_path_factory.mktemp("tiny") / "小 models", ("qwen2-tied", "gemma3-vision")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([str(PYTHON), str(TINY_MODELS), str(folder), *names], check=True, env=env)
    return folder


@pytest.fixture
def train(iisft: Callable[..., Any], tiny_models: Path, workspace: Path) -> Callable[..., Any]:
    """The shipped mi50 preset on the tiny model and CPU ranks; only sizes are overridden."""
    rows = [
        {"instruction": f"第 {i} 条", "input": "情报 " * (i % 5), "output": f'{{"k": {i * i}}}'}
        for i in range(24)
    ]
    file = workspace / "rows.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert iisft("data", "stage", str(file), "--name", "情报").code == 0

    def run(*more: str, name: str = "run", gpus: int = 1, preset: str = "mi50") -> Any:
        size = [
            "train.accumulation=2",
            "train.cutoff_len=256",
            "save.every_steps=2",
            "train.max_steps=4",
        ]
        options = [part for value in size for part in ("--set", value)]
        argv = [
            "train",
            "--preset",
            preset,
            "--model",
            str(tiny_models / "qwen2-tied" / "model"),
            "--data",
            "情报",
        ]
        return iisft(*argv, "--gpus", str(gpus), "--name", name, *options, *more)

    return run


@pytest.fixture
def tampered_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The real llamafactory-cli, after a Python statement was run in the run's folder: what a fault
    there would do.
    """

    def tamper(statement: str) -> None:
        binaries = tmp_path / "tampered" / "bin"
        binaries.mkdir(parents=True)
        real = shlex.quote(str(PYTHON))
        _script(binaries / "python", f'#!/bin/sh\nexec {real} "$@"\n')
        _script(
            binaries / "llamafactory-cli",
            f"#!/bin/sh\n{real} -c {shlex.quote(statement)} && exec {real} "
            f'{shlex.quote(str(PYTHON.parent / "llamafactory-cli"))} "$@"\n',
        )
        monkeypatch.setenv("IISFT_PYTHON", str(binaries / "python"))

    return tamper


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
