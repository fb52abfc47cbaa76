"""Runs that go on with an adapter that exists (lora.start)."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import CLI
from iisft import files
from iisft.runs.record.folder import RunFolder

Q_PROJ = ("--set", "lora.target=q_proj")


@pytest.fixture
def first(train: CLI, workspace: Path) -> RunFolder:
    """A finished run of four steps, with checkpoints at 2 and 4."""
    result = train(*Q_PROJ, "--name", "first")
    assert result.code == 0, result.err
    return RunFolder(workspace / "runs" / "first")


@pytest.fixture
def go_on(train: CLI, first: RunFolder) -> Callable[..., Any]:
    """Train the run `run` from an adapter."""
    return lambda start, *more: train(*Q_PROJ, "--set", f"lora.start={start}", *more)


def record_of(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.record.read_text())
    return found


def test_a_run_goes_on_with_the_adapter_of_another(
    go_on: CLI, first: RunFolder, folder: RunFolder, iisft: CLI
) -> None:
    result = go_on("first@2")
    assert result.code == 0, result.err
    said = "training goes on with the adapter first@2: rank 64, 1,024 parameters"
    assert said in result.err and ", started from first@2" in result.out
    checkpoint = first.output / "checkpoint-2"
    weights = (checkpoint / "adapter_model.safetensors").read_bytes()
    assert (folder.start / "adapter_model.safetensors").read_bytes() == weights
    record = record_of(folder)
    assert record["start"] == {
        "source": "first@2",
        "folder": str(checkpoint),
        "step": 2,
        "digest": record["observed"]["adapter"],
        "sha256": files.sha256_of(checkpoint / "adapter_model.safetensors"),
    }
    assert record["expected"]["adapter"] == record["observed"]["adapter"]
    assert record["preset"]["lora"]["start"] == "first@2"
    assert yaml.safe_load(folder.train_yaml.read_text())["adapter_name_or_path"] == "start"
    # nothing of the first is needed any more
    assert iisft("runs", "rm", "first", "--yes").code == 0
    script = folder.command.read_text()
    assert str(checkpoint) not in script


def test_the_final_adapter_is_pinned_and_the_next_run_goes_on_from_there(
    go_on: CLI, train: CLI, folder: RunFolder, workspace: Path
) -> None:
    assert go_on("first").code == 0
    assert record_of(folder)["start"]["source"] == "first@final"
    chain = train(*Q_PROJ, "--set", "lora.start=run@4", "--name", "third")
    assert chain.code == 0, chain.err
    third = record_of(RunFolder(workspace / "runs" / "third"))
    assert (third["start"]["source"], third["model"]) == ("run@4", record_of(folder)["model"])


def test_a_folder_is_a_start_too_and_keeps_the_presets_dropout(
    go_on: CLI, first: RunFolder, folder: RunFolder, tmp_path: Path
) -> None:
    place = tmp_path / "别处 there, too"
    shutil.copytree(first.output, place)
    result = go_on(place, "--set", "lora.dropout=0.25")
    assert result.code == 0, result.err
    assert record_of(folder)["start"]["source"] == str(place)
    config = json.loads((folder.start / "adapter_config.json").read_text())
    assert (config["lora_dropout"], config["r"], config["target_modules"]) == (0.25, 64, ["q_proj"])


def test_everything_that_does_not_fit_is_said_at_once(
    go_on: CLI, first: RunFolder, folder: RunFolder
) -> None:
    config = first.output / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    other = ("--set", "lora.rank=8", "--set", "lora.alpha=9", "--set", "lora.target=[embed_tokens]")
    result = go_on("first", *other)
    assert result.code == 3
    for fix in (
        "--set lora.rank=64",
        "--set lora.alpha=128",
        "--set lora.target=q_proj",
        "--set llamafactory.use_rslora=true",
    ):
        assert f"fix:   {fix}\n" in result.err, result.err
    assert "training goes on" not in result.err and not folder.path.exists()


def test_the_modules_that_the_preset_means_are_compared_one_by_one(
    go_on: CLI, fake_trainer: Callable[..., None]
) -> None:
    built = {
        "warnings": [],
        "loaded": {key: [0, []] for key in ("missing", "unexpected", "mismatched")},
        "base": 10,
        "modules": {"self_attn.q_proj": 10},
        "adapted": {"modules": {"q_proj": 2}, "parameters": {"self_attn.q_proj": 10}},
        "trained_whole": [],
    }
    fake_trainer("ok", BUILT=json.dumps(built))
    # another dropout, so that the model is built again
    result = go_on("first", "--dry-run", "--set", "lora.dropout=0.2")
    assert "has matrices on q_proj (1); lora.target q_proj means q_proj (2)" in result.err


def test_a_start_that_is_not_there(go_on: CLI) -> None:
    for start, code, said in (
        ("nobody", 6, "no run named 'nobody'"),
        ("first@3", 6, "fix:   --set lora.start=first@4"),
        ("first@base", 6, "lora.start needs one adapter, not base"),
        ("first@foo", 6, "lora.start needs one adapter, not foo: RUN, RUN@STEP"),
        ("first@best", 6, "fix:   iisft predict first --checkpoint all, then iisft compare first"),
        ("first@../..", 3, "there is no such folder"),
        ("./nowhere", 3, "there is no such folder"),
        (f"./{'x' * 300}", 3, "the adapter can't be read: File name too long"),
    ):
        result = go_on(start, "--dry-run")
        assert (result.code, said in result.err) == (code, True), result.err


def test_a_fix_quotes_what_a_foreign_adapter_is_called(
    go_on: CLI, first: RunFolder, tmp_path: Path
) -> None:
    place = tmp_path / "foreign"
    shutil.copytree(first.output, place)
    weights = place / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content.replace(b"self_attn.q_proj", b"self_attn.;$(id)"))
    refused = go_on(place, "--dry-run")
    assert "fix:   --set 'lora.target=;$(id)'\n" in refused.err, refused.err


def test_an_alpha_that_no_preset_can_have_is_another_kind(
    go_on: CLI, first: RunFolder, tmp_path: Path
) -> None:
    place = tmp_path / "half"
    shutil.copytree(first.output, place)
    config = place / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 16.5}))
    refused = go_on(place, "--dry-run")
    assert "does not go on with: lora_alpha 16.5 is not a whole number" in refused.err


def test_an_adapter_of_another_model_is_refused(
    go_on: CLI, first: RunFolder, model: Path, tmp_path: Path
) -> None:
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = go_on("first", "--dry-run")
    assert "the adapter first@final was not trained on" in result.err
    assert "fix:   --model with the folder of the model that it was trained on\n" in result.err
    assert "the model's model.safetensors was replaced" in result.err
    place = tmp_path / "adapter"
    shutil.copytree(first.output, place)
    config = json.loads((place / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "Qwen/Qwen2.5-7B-Instruct"
    (place / "adapter_config.json").write_text(json.dumps(config))
    result = go_on(place, "--dry-run")
    assert "adapter_config.json names Qwen/Qwen2.5-7B-Instruct" in result.err
    assert "fix:   --model Qwen/Qwen2.5-7B-Instruct; if it is this model" in result.err


def test_a_killed_trainer_goes_on_from_its_checkpoint_and_not_from_the_start(
    go_on: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash-once-at-3")
    result = go_on("first")
    assert result.code == 0, result.err
    record = record_of(folder)
    assert record["observed"]["adapter"] != record["expected"]["adapter"] is not None
    resumed = yaml.safe_load(folder.resume_yaml.read_text())
    assert resumed["resume_from_checkpoint"] == str(folder.output / "checkpoint-2")


def test_a_trainer_that_loads_another_adapter_is_stopped(
    detached: Callable[..., None], iisft: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    detached("hang", 1)
    assert iisft("stop", "run").code == 0
    fake_trainer("old-adapter")
    result = iisft("resume", "run")
    assert result.code == 1
    assert "the loaded adapter has the digest" in result.err, result.err


def test_a_changed_copy_is_drift(
    go_on: CLI, folder: RunFolder, iisft: CLI, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash")
    assert go_on("first").code == 1
    (folder.start / "adapter_model.safetensors").write_bytes(b"other")
    result = iisft("resume", "run")
    assert (result.code, "the adapter that the run started from has changed" in result.err) == (
        6,
        True,
    )


def test_a_script_brings_the_adapter(go_on: CLI, first: RunFolder, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    result = go_on("first", "--script", str(script))
    assert result.code == 0, result.err
    text = script.read_text()
    weights = first.output / "adapter_model.safetensors"
    assert f'cp {shlex.quote(str(weights))} "$run/start/adapter_model.safetensors"' in text
    assert '"target_modules": ["q_proj"]' in text


def test_the_command_of_a_longer_run_works(
    iisft: CLI, train: CLI, first: RunFolder, workspace: Path
) -> None:
    refused = iisft("resume", "first", "--max-steps", "7")
    command = next(line for line in refused.err.splitlines() if "fix:" in line).partition("iisft ")

    longer = shlex.split(command[2])
    done = iisft(*longer, "--name", "longer")
    assert done.code == 0, done.err
    assert record_of(RunFolder(workspace / "runs" / "longer"))["start"]["source"] == "first@final"
