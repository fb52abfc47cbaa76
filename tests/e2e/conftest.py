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

# As a GPU that is too small for the first step, on one rank: the others have reported by then.
OUT_OF_MEMORY = """
import os, sys
trains = any("llamafactory" in part for part in sys.orig_argv)
if trains and os.environ.get("LOCAL_RANK", "0") == os.environ.get("BOOM"):
    import torch
    def attention(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    torch.nn.functional.scaled_dot_product_attention = attention
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model gains nothing from a second thread, whose waiting takes as much processor time
    as its work: five times as much where two trainers share two cores.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen2-tied/model, one with a tower, and data/ with their rows."""
    folder = tmp_path_factory.mktemp("tiny") / "小 models"
    make_tiny(folder, "qwen2-tied", "gemma3-vision")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_models: Path) -> Callable[[str], Path]:
    """Any model of tiny_models.py, made when it is first asked for."""

    def made(name: str) -> Path:
        if not (tiny_models / name).is_dir():
            make_tiny(tiny_models, name)
        return tiny_models / name / "model"

    return made


def make_tiny(folder: Path, *names: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([str(PYTHON), str(TINY_MODELS), str(folder), *names], check=True, env=env)


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


# What the training interpreter can do is asked again for another path of it, and for another
# PYTHONPATH: ten seconds each. So that what changes the trainer stands in one place for all tests.


@pytest.fixture(scope="session")
def changes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH, and in bin/ the training interpreter whose llamafactory-cli first
    runs the Python statement TAMPER in the run's folder.
    """
    folder = tmp_path_factory.mktemp("changes")
    (folder / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    (folder / "bin").mkdir()
    real, cli = (
        shlex.quote(str(PYTHON.with_name(name))) for name in (PYTHON.name, "llamafactory-cli")
    )
    _script(folder / "bin" / "python", f'#!/bin/sh\nexec {real} "$@"\n')
    _script(
        folder / "bin" / "llamafactory-cli",
        f'#!/bin/sh\n{real} -c "$TAMPER" && exec {real} {cli} "$@"\n',
    )
    return folder


@pytest.fixture
def out_of_memory(changes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The first forward of this rank finds the memory full."""

    def on_rank(rank: int) -> None:
        monkeypatch.setenv("PYTHONPATH", str(changes))
        monkeypatch.setenv("BOOM", str(rank))

    return on_rank


@pytest.fixture
def tampered_trainer(changes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The real llamafactory-cli, after a Python statement was run in the run's folder: what a fault
    there would do.
    """

    def tamper(statement: str) -> None:
        monkeypatch.setenv("TAMPER", statement)
        monkeypatch.setenv("IISFT_PYTHON", str(changes / "bin" / "python"))

    return tamper


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
