"""The trainer's environment by value, and what of the caller's never reaches it."""

import os
from pathlib import Path

import pytest

from iisft import secrets
from iisft.llamafactory.environment import (
    CLEARED,
    Placement,
    compile_environment,
    gpu_order,
    inherited,
    tracker_findings,
)
from iisft.llamafactory.interpreter import Interpreter
from iisft.presets import checking, documents
from iisft.runs.plan.preflight import extra_argument_findings
from iisft.workspace import Workspace

INTERPRETER = Interpreter(Path("/env/bin/python"), "3.11.7", {}, None)
CACHES = {"HF_MODULES_CACHE": "/r/modules", "HF_DATASETS_CACHE": "/r/rows-cache"}
COMMON = {
    "PATH": "/env/bin:/usr/bin",
    "PYTHONUNBUFFERED": "1",
    "LLAMAFACTORY_VERBOSITY": "INFO",
    "RECORD_VRAM": "1",
    "HF_HUB_OFFLINE": "1",
    **CACHES,
    "MAX_RESTARTS": "0",
    "OPTIM_TORCH": "0",
    "TORCH_BLAS_PREFER_HIPBLASLT": "0",
}


def environment(placement: Placement, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("PATH", "/usr/bin")
    preset = checking.check(documents.read_document("mi50", Workspace.current())).preset
    return compile_environment(preset, INTERPRETER, placement, CACHES)


@pytest.mark.parametrize(
    ("placement", "more"),
    [
        (Placement(ranks=1), {"NPROC_PER_NODE": "1"}),
        (Placement(ranks=2), {"NPROC_PER_NODE": "2", "FORCE_TORCHRUN": "1"}),
        (
            Placement(ranks=1, on_cpu=True),
            {"NPROC_PER_NODE": "1", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""},
        ),
        (
            Placement(ranks=1, nodes=2, node_rank=1, rendezvous="10.0.0.1:29500"),
            {"NPROC_PER_NODE": "1", "FORCE_TORCHRUN": "1", "NNODES": "2", "NODE_RANK": "1",
             "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
        ),
    ],
)  # fmt: skip
def test_the_whole_environment(
    placement: Placement, more: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment(placement, monkeypatch) == COMMON | more


def test_nothing_of_the_callers_shell_changes_what_runs() -> None:
    shell = {name: "1" for name in (*CLEARED, "ACCELERATE_MIXED_PRECISION")} | {
        "HOME": "/h",
        "HF_TOKEN": "t",
    }
    assert inherited(shell) == {"HOME": "/h", "HF_TOKEN": "t"}


def test_secrets_are_hidden_before_anything_is_written() -> None:
    env = {
        "HF_TOKEN": "a",
        "WANDB_API_KEY": "b",
        "my_secret": "c",
        "EMPTY_TOKEN": "",
        "P": "http://u:p@h:1",
        "A": "b",
        "MYSQL_PWD": "x",
    }
    assert secrets.redact(env) == {
        "HF_TOKEN": "***",
        "WANDB_API_KEY": "***",
        "my_secret": "***",
        "EMPTY_TOKEN": "",
        "P": "http://***@h:1",
        "A": "b",
        "MYSQL_PWD": "***",
    }
    assert not secrets.is_secret("PATH")


def test_nvidia_gpus_are_counted_along_the_bus_unless_the_shell_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    preset = checking.check(documents.read_document("ampere", Workspace.current())).preset
    told = compile_environment(preset, INTERPRETER, Placement(), CACHES)
    assert told["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert gpu_order({})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    told = compile_environment(preset, INTERPRETER, Placement(), CACHES)
    assert "CUDA_DEVICE_ORDER" not in told
    assert gpu_order(os.environ)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize(
    ("track", "shell", "env", "fixes"),
    [
        ("tensorboard, mlflow, trackio", {}, {}, []),
        ("wandb", {}, {}, ["wandb login, or --set env.WANDB_MODE=offline"]),
        ("swanlab", {}, {}, ["swanlab login, or --set env.SWANLAB_MODE=local"]),
        ("wandb, swanlab", {"WANDB_API_KEY": "x"}, {"SWANLAB_MODE": "local"}, []),
        ("wandb", {}, {"WANDB_MODE": "offline"}, []),
        ("wandb", {"NETRC": "FILE"}, {}, []),
        (
            "wandb, swanlab",
            {"NETRC": "FILE"},
            {},
            ["swanlab login, or --set env.SWANLAB_MODE=local"],
        ),
        (
            "wandb",
            {"NETRC": "FILE", "WANDB_BASE_URL": "http://lab:8080"},
            {},
            ["wandb login, or --set env.WANDB_MODE=offline"],
        ),
        ("wandb", {"NETRC": "FILE", "WANDB_BASE_URL": "http://10.0.0.7:8080"}, {}, []),
        ("wandb", {"NETRC": "/proc"}, {}, ["wandb login, or --set env.WANDB_MODE=offline"]),
    ],
)
def test_a_tracker_that_would_ask_for_a_login_is_found(
    track: str,
    shell: dict[str, str],
    env: dict[str, str],
    fixes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "netrc").write_text(
        "machine api.wandb.ai login user password x\nmachine 10.0.0.7 login user password x\n"
    )
    here = {name: value.replace("FILE", str(tmp_path / "netrc")) for name, value in shell.items()}
    document = documents.read_document("mi50", Workspace.current())
    document.override(*documents.parse_override(f"track=[{track}]"), "--set")
    preset = checking.check(document).preset
    found = tracker_findings(preset.model_copy(update={"env": env}), here)
    assert [(finding.id, finding.fix) for finding in found] == [
        ("tracker-login", fix) for fix in fixes
    ]
    if track == "swanlab":
        (tmp_path / ".swanlab").mkdir()
        (tmp_path / ".swanlab" / ".netrc").write_text("machine https://api.swanlab.cn\n")
        assert tracker_findings(preset, {}) == []


def test_a_trackers_package_is_looked_for_without_a_llamafactory_section() -> None:
    document = documents.read_document("mi50", Workspace.current())
    document.override(*documents.parse_override("track=[trackio]"), "--set")
    here = Interpreter(Path("/p"), "3.11.7", {"llamafactory": "0.9.5"}, None, frozenset())
    (missing,) = extra_argument_findings(checking.check(document), here)
    assert (missing.id, missing.where, missing.fix) == (
        "llamafactory-package",
        "--set",
        "pip install trackio in the training interpreter, or drop it",
    )
