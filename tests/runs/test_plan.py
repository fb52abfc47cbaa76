"""What a command line becomes, without running it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import train_argv

CLI = Callable[..., Any]


@pytest.fixture
def dry(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]
) -> Callable[..., dict[str, Any]]:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0

    def run(*more: str, preset: str = "mi50") -> dict[str, Any]:
        argv = train_argv(model, "--name", "r", "--dry-run", "--json", preset=preset)
        result = iisft(*argv, *more)
        return {"code": result.code, **json.loads(result.out)}

    return run


def test_fewer_ranks_keep_the_global_batch(dry: CLI) -> None:
    plan = dry("--gpus", "1")
    assert (
        plan["world_size"],
        plan["global_batch"],
        plan["train_yaml"]["gradient_accumulation_steps"],
    ) == (1, 64, 64)
    assert "FORCE_TORCHRUN" not in plan["env"]


def test_more_machines_keep_the_global_batch(dry: CLI) -> None:
    plan = dry("--gpus", "2", "--nodes", "2", "--node-rank", "1", "--rendezvous", "10.0.0.1:29500")
    assert (
        plan["world_size"],
        plan["global_batch"],
        plan["train_yaml"]["gradient_accumulation_steps"],
    ) == (4, 64, 16)
    expected = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
                "MAX_RESTARTS": "0",
                "NPROC_PER_NODE": "2", "FORCE_TORCHRUN": "1"}  # fmt: skip
    assert {name: plan["env"][name] for name in expected} == expected


def test_an_accumulation_that_was_given_is_taken_literally(dry: CLI) -> None:
    plan = dry("--gpus", "1", "--set", "train.accumulation=4")
    assert (plan["global_batch"], plan["train_yaml"]["gradient_accumulation_steps"]) == (4, 4)
    assert [finding["id"] for finding in plan["findings"]] == ["global-batch-literal", "on-cpu"]


def test_cpu_ranks_see_no_gpu(dry: CLI) -> None:
    plan = dry("--gpus", "2")
    assert plan["train_yaml"]["use_cpu"] is True
    assert (plan["env"]["CUDA_VISIBLE_DEVICES"], plan["env"]["HIP_VISIBLE_DEVICES"]) == ("", "")


def test_a_dry_run_prints_the_plan_even_when_everything_is_missing(
    iisft: CLI, workspace: Path
) -> None:
    result = iisft("train", "--preset", "mi50", "--dry-run", "--json")
    plan = json.loads(result.out)
    assert (result.code, plan["world_size"], plan["global_batch"]) == (3, 2, 64)
    assert plan["argv"][1:] == ["train", "train.yaml"]
    assert plan["train_yaml"]["model_name_or_path"] == plan["run_dir"] + "/model"
    assert list(workspace.iterdir()) == []


def test_the_command_script_makes_the_same_folder_without_iisft(
    iisft: CLI, dry: CLI, model: Path, workspace: Path, tmp_path: Path
) -> None:
    script = tmp_path / "训练 run.sh"
    argv = train_argv(model, "--gpus", "1", "--name", "r")
    plan = dry("--gpus", "1")
    assert iisft(*argv, "--script", str(script)).code == 0
    # Everything but the training itself: the fake trainer stands on PATH in place of
    # llamafactory-cli.
    text = script.read_text().replace(plan["argv"][0], "true").replace("-lt 1 ]", "-lt 0 ]")
    subprocess.run(["bash", "-c", text], check=True, cwd=tmp_path)
    run = workspace / "runs" / "r"
    assert yaml.safe_load((run / "train.yaml").read_text()) == plan["train_yaml"]
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "config.json", "constants_iisft.py", "model.safetensors", "modeling_iisft.py",
        "stopping_iisft.py", "tokenizer.json", "tokenizer_config.json", "witness_iisft.py",
    ]  # fmt: skip
    assert (run / "model" / "model.safetensors").resolve() == model / "model.safetensors"
    assert json.loads((run / "dataset" / "dataset_info.json").read_text()) == {
        "rows": {
            "file_name": "rows.jsonl",
            "formatting": "alpaca",
            "columns": {"prompt": "instruction", "query": "input", "response": "output"},
        }
    }
    assert len((run / "dataset" / "rows.jsonl").read_text().splitlines()) == 8


def test_the_script_and_the_run_have_the_same_train_yaml(
    iisft: CLI, dry: CLI, model: Path, workspace: Path
) -> None:
    plan = dry("--gpus", "1")
    assert iisft(*train_argv(model, "--gpus", "1", "--name", "r")).code == 0
    assert (
        yaml.safe_load((workspace / "runs" / "r" / "train.yaml").read_text()) == plan["train_yaml"]
    )


def test_a_script_that_got_no_proof_fails(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None], tmp_path: Path
) -> None:
    iisft("data", "stage", str(rows), "--name", "rows")
    script = tmp_path / "run.sh"
    iisft(*train_argv(model, "--gpus", "1", "--script", str(script)))
    cli = Path(
        json.loads(iisft("train", "--preset", "mi50", "--gpus", "1", "--dry-run", "--json").out)[
            "argv"
        ][0]
    )
    cli.write_text("#!/bin/sh\necho trained in silence\n")
    ended = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        1,
        "trained in silence\n",
        "not proven: not every rank reported the precision and attention of the preset\n",
    )


def test_the_slurm_script_starts_one_launcher_per_node(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None], tmp_path: Path
) -> None:
    iisft("data", "stage", str(rows), "--name", "rows")
    script = tmp_path / "job.sh"
    argv = train_argv(model, "--gpus", "2", "--nodes", "2")
    argv += ["--name", "job", "--rendezvous", "node0:29500", "--script", str(script), "--slurm"]
    assert iisft(*argv).code == 0
    text = script.read_text()
    assert text.splitlines()[:5] == [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=job",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --output=%x-%j.log",
    ]
    assert "srun bash -c 'NODE_RANK=$SLURM_NODEID exec " in text
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_fp16_is_refused_where_the_trainer_would_ignore_it(iisft: CLI, dry: CLI) -> None:
    plan = dry("--gpus", "1", preset="mi50-fp16")
    assert (plan["code"], [finding["id"] for finding in plan["findings"]]) == (
        4,
        ["accumulation-rescaled", "fp16-on-cpu", "on-cpu"],
    )


def test_a_script_for_gpus_is_written_where_there_are_none(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None], tmp_path: Path
) -> None:
    iisft("data", "stage", str(rows), "--name", "rows")
    argv = train_argv(model, "--set", "hardware.gpus=2", preset="v100")
    written = iisft(*argv, "--script", str(tmp_path / "job.sh"), "--slurm")
    assert (
        written.code,
        "warning: 2 GPUs are needed (nvidia sm_70), 0 can be seen" in written.err,
    ) == (0, True)
    assert "#SBATCH --gpus-per-node=2\n" in (tmp_path / "job.sh").read_text()
    refused = iisft(*argv, "--model", "Qwen/Nothing", "--script", str(tmp_path / "other.sh"))
    assert (refused.code, (tmp_path / "other.sh").exists()) == (3, False)


@pytest.mark.parametrize(
    ("preset", "run"),
    [("我的 [a] 'b'", "我的-a-b"), ("长" * 80, "长" * 40), (" ", "run"), ("mi50.v2", "mi50.v2")],
)
def test_a_run_is_named_after_its_preset_in_letters_that_a_shell_takes(
    preset: str, run: str, iisft: CLI, workspace: Path
) -> None:
    (workspace / f"{preset}.yaml").write_text("extends: mi50\n")
    document = json.loads(
        iisft("train", "--preset", str(workspace / f"{preset}.yaml"), "--dry-run", "--json").out
    )
    assert Path(document["run_dir"]).name[: -len("-20261124-213224")] == run
