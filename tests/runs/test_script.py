"""Scripts that train without iisft: what they make, and what they prove."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from helpers import CLI, train_argv

TRAINER = Path(__file__).parents[1] / "fakes" / "trainer_of_script.py"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def script(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None], tmp_path: Path
) -> Callable[..., Path]:
    """Write a script of the run `r`, whose trainer and interpreter are stand-ins."""
    binaries = Path(os.environ["IISFT_PYTHON"]).parent
    (binaries / "python").rename(binaries / "reporting python")
    program(
        binaries / "python",
        f'#!/bin/sh\ncase "$1" in *check_proof.py) exec "{sys.executable}" "$@";; esac\n'
        f'exec "{binaries}/reporting python"\n',
    )
    program(binaries / "llamafactory-cli", f'#!/bin/sh\nexec "{sys.executable}" "{TRAINER}" "$@"\n')
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0

    def write(*more: str) -> Path:
        file = tmp_path / "训练 run.sh"
        whole = ("--set", "train.gradient_checkpointing=true")  # the fake trainer keeps no layers
        argv = train_argv(model, "--name", "r", "--script", str(file), *whole, *more)
        result = iisft(*argv)
        assert result.code == 0, result.err
        return file

    return write


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[int, str]]:
    """Submit a job file to a stand-in for Slurm, which runs every node here, all at once."""
    folder = tmp_path / "slurm bin"
    program(
        folder / "sbatch",
        "#!/bin/bash\n"
        'export SLURM_JOB_ID=77 SLURM_JOB_NODELIST="node[0-1]"\n'
        "export SLURM_NNODES=$(sed -n 's/^#SBATCH --nodes=//p' \"$1\")\n"
        'exec bash "$1"\n',
    )
    program(folder / "scontrol", '#!/bin/sh\n[ "$3" = "node[0-1]" ] && printf "node0\\nnode1\\n"\n')
    program(
        folder / "srun",
        "#!/bin/bash\ncode=0\n"
        'for ((i = 0; i < SLURM_NNODES; i++)); do SLURM_NODEID=$i "$@" & all+=($!); done\n'
        'for one in "${all[@]}"; do wait "$one" || code=1; done\nexit $code\n',
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def submit(file: Path) -> tuple[int, str]:
        done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    return submit


def test_the_script_makes_the_run_s_folder_without_iisft(
    iisft: CLI, script: Callable[..., Path], model: Path, workspace: Path
) -> None:
    file = script("--gpus", "1")
    plan = json.loads(
        iisft(*train_argv(model, "--name", "r", "--gpus", "1", "--dry-run", "--json")).out
    )
    done = subprocess.run(["bash", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    run = workspace / "runs" / "r"
    assert yaml.safe_load((run / "train.yaml").read_text()) == plan["train_yaml"]
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "attention_iisft.py", "clock_iisft.py", "config.json", "constants_iisft.py",
        "model.safetensors", "modeling_iisft.py", "products_iisft.py", "step_iisft.py",
        "stopping_iisft.py", "tokenizer.json", "tokenizer_config.json", "trackers_iisft.py",
        "witness_iisft.py",
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


WRONG = [
    ("silent", "1 of 1 ranks did not report their precision"),
    ("world", "rank 0: world size 2, but the preset says 1"),
    ("weights", "rank 0: base weights float16, but the preset says bfloat16"),
    ("attention", "rank 0: attention sdpa, but the preset says eager"),
    ("linear", "rank 0: arithmetic bfloat16 and float32, but the preset says float32"),
    ("tf32", "rank 0: float32 products run at reduced precision (high)"),
    ("batch", "global batch 128, but the preset says 64"),
    ("rows", "the trainer has 7 rows, but 8 were staged: 1 rows were dropped"),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG)
def test_a_script_proves_what_iisft_proves(
    wrong: str, sentence: str, script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_WRONG", wrong)
    file = script("--gpus", "1")
    done = subprocess.run(["bash", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("not proven: this run is not what its preset says: ")
    assert sentence in done.stderr


def test_a_slurm_job_runs_one_launcher_per_node_and_proves_each(
    script: Callable[..., Path], slurm: Callable[[Path], tuple[int, str]], workspace: Path
) -> None:
    file = script("--gpus", "2", "--nodes", "2", "--rendezvous", "node0:29500", "--slurm")
    assert file.read_text().splitlines()[:5] == [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=r",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --output=%x-%j.log",
    ]
    assert slurm(file) == (0, "")
    logs = sorted((workspace / "runs" / "r" / "logs").iterdir())
    assert [log.name for log in logs] == ["train.node-0.log", "train.node-1.log"]
    ranks = [log.read_text().count("iisft-observed ") for log in logs]
    assert ranks == [2, 2]


def test_a_slurm_job_that_is_not_as_its_preset_fails(
    script: Callable[..., Path],
    slurm: Callable[[Path], tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_WRONG", "weights")
    file = script("--gpus", "2", "--nodes", "2", "--rendezvous", "node0:29500", "--slurm")
    code, said = slurm(file)
    assert code == 1
    ranks = re.findall(r"rank (\d): base weights float16, but the preset says bfloat16", said)
    assert sorted(ranks) == ["0", "1", "2", "3"]


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
