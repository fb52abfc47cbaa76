"""The base model: moved, changed, missing, and machines that can't compute what the run did."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.inference import headroom
from iisft.machine.doctor import inspect
from iisft.runs.record.folder import RunFolder

CLI = Callable[..., Any]
MakeRun = Callable[..., RunFolder]
GIB = 2**30


@pytest.fixture
def model(workspace: Path) -> Path:
    return workspace / "models" / "测试" / "tiny"


def change_weights(model: Path) -> None:
    """Other weights of the same shapes, as another fine-tuning has them; the size stays."""
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-8192:] = bytes(8192)
    weights.write_bytes(content)


def test_a_moved_model_is_named_and_found_by_its_new_place(
    iisft: CLI, make_run: MakeRun, staged: str, model: Path, workspace: Path
) -> None:
    make_run()
    moved = workspace / "elsewhere 别处"
    model.rename(moved)
    lost = iisft("predict", "--data", staged, "--json")
    error = json.loads(lost.out)["error"]
    assert (lost.code, error["code"], error["where"]) == (3, "base-model-missing", str(model))
    assert error["fix"] == "move it back, or say where it is now: --model DIR"
    assert iisft("predict", "--data", staged, "--model", str(moved)).code == 0


def test_a_copy_of_the_model_with_another_time_is_the_same_model(
    iisft: CLI, make_run: MakeRun, staged: str, model: Path
) -> None:
    make_run()
    os.utime(model / "model.safetensors")
    assert iisft("predict", "--data", staged).code == 0


def test_other_weights_of_the_same_size_are_refused(
    iisft: CLI, make_run: MakeRun, staged: str, model: Path, workspace: Path
) -> None:
    folder = make_run()
    other = workspace / "other"
    shutil.copytree(model, other)
    change_weights(other)
    result = iisft("predict", "--data", staged, "--model", str(other), "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"]) == (3, "base-model-differs")
    assert error["message"] == f"the model's model.safetensors was replaced ({other})"
    assert not folder.predictions.exists()


def test_a_torn_or_changed_model_is_refused(
    iisft: CLI, make_run: MakeRun, staged: str, model: Path
) -> None:
    make_run()
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"qwen2"', '"qwen2", "rope_theta": 5'))
    changed = iisft("chat", "run")
    assert (changed.code, "config.json has changed" in changed.err) == (3, True)
    (model / "config.json").write_text(config)
    (model / "model.safetensors").write_bytes(b"")
    assert iisft("serve", "run", "--port", "0").code == 3


def test_a_run_folder_that_was_copied_still_answers(
    iisft: CLI, make_run: MakeRun, staged: str, workspace: Path
) -> None:
    folder = make_run()
    shutil.copytree(folder.path, workspace / "runs" / "copy")
    assert iisft("predict", "copy", "--data", staged).code == 0


def test_a_run_of_a_gpu_needs_one_or_the_word_cpu(
    iisft: CLI, make_run: MakeRun, staged: str
) -> None:
    folder = make_run()
    record = json.loads(folder.record.read_text())
    folder.record.write_text(json.dumps(record | {"gpus": ["gfx906"]}))
    refused = iisft("predict", "--data", staged)
    assert (
        refused.code,
        "run was trained on gfx906, and no GPU can be seen here" in refused.err,
    ) == (4, True)
    assert iisft("predict", "--data", staged, "--cpu").code == 0
    record["preset"]["precision"] = "fp16"
    folder.record.write_text(json.dumps(record))
    half = iisft("predict", "--data", staged, "--cpu")
    assert (half.code, "run computes in fp16, which a CPU does not" in half.err) == (4, True)


def test_too_little_memory_is_refused_before_anything_is_loaded(
    iisft: CLI, make_run: MakeRun, staged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run()
    monkeypatch.setattr(headroom, "free_memory", lambda: GIB // 2)
    result = iisft("chat", "run")
    assert (result.code, "needs about 1.0 GiB of memory; 0.5 GiB are free" in result.err) == (
        4,
        True,
    )


def test_free_memory_is_the_smaller_of_the_machine_and_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert headroom.free_memory(tmp_path) == 2048 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("400000\n")
    assert headroom.free_memory(tmp_path) == 600000
    (group / "memory.max").write_text("max\n")
    assert headroom.free_memory(tmp_path) == 2048 * 1024
    assert headroom.free_memory(tmp_path / "nothing") is None


def test_no_gpu_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headroom.sensors, "sample", list)
    assert headroom.free_gpu_memory(together=False) is None
    assert inspect.visible_gpus() == []
