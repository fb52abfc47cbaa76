"""A tiny checkpoint without torch, a staged dataset, and a training interpreter whose
llamafactory-cli is a fake.
"""

import json
import os
import shlex
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from helpers import CLI, steps, train_argv, until
from iisft import process
from iisft.runs.record.folder import RunFolder

# Asked to build a model, it has nothing to say against it.
_ANSWERS = """#!/bin/sh
case "$1" in
*build_model.py)
    if [ -n "$FAKE_BUILT" ]; then printf '%s' "$FAKE_BUILT"; else printf '{{"warnings": []}}'; fi ;;
*predict_rows.py) exec {model_child} "$@" ;;
*) printf '%s' '{report}' ;;
esac
"""
FAKE = Path(__file__).parents[1] / "fakes" / "llamafactory_cli.py"
_MODEL_CHILD = shlex.join([sys.executable, str(FAKE.with_name("model_child.py"))])


def bytes_as_tokens() -> Tokenizer:
    """A tokenizer in which each byte is a token, and so are ChatML's special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def write_checkpoint(folder: Path) -> Path:
    """A Qwen2 model folder in bf16: config, tokenizer files and one safetensors file of zeros."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 16,
    }
    (folder / "config.json").write_text(json.dumps(config))
    bytes_as_tokens().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tensors = {
        "model.embed_tokens.weight": [16, 8],
        "model.layers.0.self_attn.q_proj.weight": [8, 8],
    }
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = shape[0] * shape[1] * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return folder


@pytest.fixture
def model(workspace: Path) -> Path:
    return write_checkpoint(workspace / "models" / "测试" / "tiny qwen2")


@pytest.fixture
def rows(workspace: Path) -> Path:
    file = workspace / "rows 行.jsonl"
    lines = [{"instruction": f"say {i}", "input": "", "output": f"number {i}"} for i in range(8)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def make_fake_environment(folder: Path) -> Path:
    """An interpreter that reports LLaMA-Factory as installed and has the fake beside it."""
    binaries = folder / "fake env" / "bin"
    binaries.mkdir(parents=True)
    packages = {"llamafactory": "0.9.5", "torch": "2.11.0", "transformers": "5.5.4"}
    report = json.dumps(
        {"python": "3.11.7", "packages": packages, "launcher": str(folder / "launcher.py")}
    )
    _script(binaries / "python", _ANSWERS.format(report=report, model_child=_MODEL_CHILD))
    _script(binaries / "llamafactory-cli", f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    return binaries / "python"


@pytest.fixture
def fake_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """IISFT_PYTHON = such an environment."""
    monkeypatch.setenv("IISFT_PYTHON", str(make_fake_environment(tmp_path)))

    def behave(mode: str, **settings: str) -> None:
        monkeypatch.setenv("FAKE_MODE", mode)
        for name, value in settings.items():
            monkeypatch.setenv(f"FAKE_{name}", value)

    behave("ok")
    return behave


@pytest.fixture
def train(iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]) -> CLI:
    """`iisft train` on eight staged rows, as the run `run` of one rank."""
    assert iisft("data", "stage", str(rows), "--name", "数据").code == 0
    size = ("--gpus", "1", "--set", "train.accumulation=2", "--name", "run")

    def run(*more: str) -> Any:
        return iisft(*train_argv(model, *size, *more, data="数据"))

    return run


@pytest.fixture
def folder(workspace: Path) -> RunFolder:
    """The folder of the run `run`."""
    return RunFolder(workspace / "runs" / "run")


@pytest.fixture
def detached(
    train: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> Callable[..., None]:
    """Start the run in the background with a trainer that behaves so, and wait for a step of it."""

    def start(mode: str, step: int, *more: str) -> None:
        fake_trainer(mode)
        train("--detach", *more)
        until(lambda: step in steps(folder))

    return start


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def of_run() -> Iterator[Callable[[RunFolder, str], dict[str, Any]]]:
    """Starts a process that carries a run's marker under a variable."""
    started = []

    def start(folder: RunFolder, variable: str) -> dict[str, Any]:
        env = os.environ | {variable: folder.marker}
        child = subprocess.Popen(["sleep", "600"], env=env, stdin=subprocess.PIPE)
        started.append(child)
        until(lambda: variable in process.environment_of(child.pid))
        identity = process.identity_of(child.pid)
        assert identity is not None
        return identity.as_json()

    yield start
    for child in started:
        child.kill()
        child.communicate()
