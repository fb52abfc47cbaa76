"""What a command line becomes, without running it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import train_argv
from iisft.machine.facts.gpus import Gpu

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


MI50 = Gpu("amd", "gfx906", 31.98)


@pytest.mark.parametrize(
    ("gpus", "names"),
    [
        ([MI50], ["mi50-14b-single", "mi50-8b-single", "mi50-9b-single"]),
        ([MI50, MI50], ["mi50", "mi50-14b", "mi50-8b"]),
        ([Gpu("nvidia", "sm_60", 15.9)], ["p100"]),
        ([Gpu("nvidia", "sm_89", 23.64)], ["ampere", "qlora-24g", "cuda-24g", "cuda-16g"]),
        ([Gpu("nvidia", "sm_120", 31.36)], ["cuda-24g", "cuda-16g"]),
        ([Gpu("nvidia", "sm_70", 15.77)], []),
        ([], ["demo"]),
    ],
)
def test_without_a_preset_train_names_those_made_for_the_machine(
    iisft: CLI, monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], names: list[str]
) -> None:
    monkeypatch.setattr("iisft.runs.plan.request.visible_gpus", lambda: gpus)
    result = iisft("train")
    found = f"; made for this machine: {', '.join(names)}" if names else ""
    fix = f"iisft train --preset {names[0]}" if names else "iisft preset list"
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: train needs --preset NAME{found}")
    assert f"  fix:   {fix}\n" in result.err


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_runs_own_preset_makes_its_batch_again(
    ranks: int, iisft: CLI, dry: CLI, model: Path, workspace: Path
) -> None:
    def batch(preset: str) -> tuple[int, int]:
        plan = dry("--gpus", str(ranks), preset=preset)
        return plan["global_batch"], plan["train_yaml"]["gradient_accumulation_steps"]

    one = str(workspace / "one.yaml")
    Path(one).write_text("extends: mi50\nhardware: {gpus: 1}\ntrain: {accumulation: 12}\n")
    first = batch(one)
    name = f"own-{ranks}"
    assert iisft(*train_argv(model, "--gpus", str(ranks), "--name", name, preset=one)).code == 0
    assert batch(str(workspace / "runs" / name / "preset.yaml")) == first


def test_rows_that_ranks_repeat_are_said(dry: CLI) -> None:
    plan = dry("--gpus", "2", "--set", "train.batch_size=3")
    [said] = [one["message"] for one in plan["findings"] if one["id"] == "rows-repeated"]
    assert said == (
        "2 ranks with batch_size 3 take 6 rows at once: of 8 rows 4 are trained twice in each epoch"
    )
    assert "rows-repeated" not in [one["id"] for one in dry("--gpus", "1")["findings"]]


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


def test_the_script_and_the_run_have_the_same_train_yaml(
    iisft: CLI, dry: CLI, model: Path, workspace: Path
) -> None:
    plan = dry("--gpus", "1")
    assert iisft(*train_argv(model, "--gpus", "1", "--name", "r")).code == 0
    assert (
        yaml.safe_load((workspace / "runs" / "r" / "train.yaml").read_text()) == plan["train_yaml"]
    )


def test_fp16_is_refused_where_the_trainer_would_ignore_it(iisft: CLI, dry: CLI) -> None:
    plan = dry("--gpus", "1", preset="mi50-fp16")
    assert (plan["code"], [finding["id"] for finding in plan["findings"]]) == (
        4,
        ["accumulation-rescaled", "fp16-on-cpu", "on-cpu"],
    )


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
