"""Jobs for dstack, SkyPilot and Kubernetes: what stands in the file, and what its shell does on two
machines. The engines are stand-ins that set their variables and run every node here.

Their own schemas were asked by hand: docs/how-to/nodes.md says with which versions.
"""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_script import program

from helpers import CLI, train_argv, until

EVIL = "数据 $(touch PWNED) ${{ x }} $$ 'a\" `touch PWNED`"


@pytest.fixture
def write(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None], tmp_path: Path
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """The job of the run `跑 run` on two nodes, from files with evil names."""
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    place = tmp_path / EVIL
    place.mkdir()
    model.rename(place / "模型 model")
    preset = place / "no.yaml"
    preset.write_text("extends: mi50\n")

    def job(engine: str, *more: str) -> tuple[Path, dict[str, Any]]:
        file = tmp_path / f"{engine} job.yaml"
        argv = train_argv(place / "模型 model", preset=str(preset))
        argv += ["--name", "跑-1", "--gpus", "2", "--nodes", "2", "--set", f"env.X={EVIL}"]
        if engine in ("jobset", "pytorchjob"):
            argv += ["--image", "registry/iisft:1"]
        written = iisft(*argv, "--script", str(file), "--for", engine, *more)
        assert written.code == 0, written.err
        return file, yaml.safe_load(file.read_text())

    return job


def of_dstack(job: dict[str, Any], rank: int) -> tuple[str, dict[str, str]]:
    env = {"DSTACK_NODE_RANK": str(rank), "DSTACK_MASTER_NODE_IP": "10.0.0.1"}
    (command,) = job["commands"]
    assert job["shell"] == "bash"
    return command, env


def of_skypilot(job: dict[str, Any], rank: int) -> tuple[str, dict[str, str]]:
    return job["run"], {
        "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"
    }  # fmt: skip


def of_jobset(job: dict[str, Any], rank: int) -> tuple[str, dict[str, str]]:
    (replicated,) = job["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
    env = {"JOB_COMPLETION_INDEX": str(rank)}
    *bash, text = spec["template"]["spec"]["containers"][0]["command"]
    assert bash == ["bash", "-c"]
    return text, env


def of_pytorchjob(job: dict[str, Any], rank: int) -> tuple[str, dict[str, str]]:
    roles = job["spec"]["pytorchReplicaSpecs"]
    assert [(role, roles[role]["replicas"]) for role in roles] == [("Master", 1), ("Worker", 1)]
    env = {"RANK": str(rank), "MASTER_ADDR": "run-master-0", "MASTER_PORT": "23456"}
    (container,) = roles["Worker" if rank else "Master"]["template"]["spec"]["containers"]
    return container["command"][2], env


Node = Callable[[dict[str, Any], int], tuple[str, dict[str, str]]]
ENGINES: dict[str, tuple[Node, str]] = {
    "dstack": (of_dstack, "10.0.0.1:29500"),
    "skypilot": (of_skypilot, "10.0.0.1:29500"),
    "jobset": (of_jobset, "run-1-aff6cc2c-node-0-0.run-1-aff6cc2c:29500"),
    "pytorchjob": (of_pytorchjob, "run-master-0:23456"),
}


@pytest.fixture
def machines(tmp_path: Path) -> Callable[..., list[subprocess.Popen[str]]]:
    """Start the shell of a job on both nodes, with an `iisft` that tells how it was called."""
    binaries = tmp_path / "node bin"
    program(
        binaries / "iisft",
        '#!/bin/bash\nif [ "$1" = stop ]; then touch "stopped $2"; exit 0; fi\n'
        'printf "%s\\0" "$IISFT_HOME" "$@" > "called $NODE"\n'
        'if [ -n "$WAIT" ]; then until [ -e "stopped 跑-1" ]; do sleep 0.05; done; exit 130; fi\n'
        'exit "$((NODE + 3))"\n',
    )
    work = tmp_path / "work"
    work.mkdir()

    def start(node: Node, job: dict[str, Any], **more: str) -> list[subprocess.Popen[str]]:
        started = []
        for rank in (0, 1):
            text, variables = node(job, rank)
            if node is not of_skypilot:  # the others would fill something in there
                assert not re.search(r"\$[$(]|\$\{\{", text)
            env = {"PATH": f"{binaries}:/usr/bin:/bin", "NODE": str(rank), **variables, **more}
            started.append(subprocess.Popen(["bash", "-c", text], cwd=work, env=env, text=True))
        return started

    return start


@pytest.mark.parametrize("engine", ENGINES)
def test_each_machine_starts_one_iisft_and_ends_with_its_exit_code(
    engine: str,
    write: Callable[..., tuple[Path, dict[str, Any]]],
    machines: Callable[..., list[subprocess.Popen[str]]],
    workspace: Path,
    tmp_path: Path,
) -> None:
    node, address = ENGINES[engine]
    _, job = write(engine)
    assert [one.wait(60) for one in machines(node, job)] == [3, 4]
    for rank in (0, 1):
        home, *called = (tmp_path / "work" / f"called {rank}").read_text().split("\0")[:-1]
        assert home == str(workspace)
        assert called == [
            "train", "--preset", str(tmp_path / EVIL / "no.yaml"), "--set", f"env.X={EVIL}",
            "--model", str(tmp_path / EVIL / "模型 model"), "--data", "rows", "--gpus", "2",
            "--name", "跑-1", "--nodes", "2", "--node-rank", str(rank), "--rendezvous", address,
        ]  # fmt: skip
    assert not list(tmp_path.rglob("PWNED"))


def test_an_engine_that_ends_the_job_stops_the_run_with_a_checkpoint(
    write: Callable[..., tuple[Path, dict[str, Any]]],
    machines: Callable[..., list[subprocess.Popen[str]]],
    tmp_path: Path,
) -> None:
    _, job = write("jobset")
    started = machines(of_jobset, job, WAIT="1")
    until(lambda: all((tmp_path / "work" / f"called {rank}").exists() for rank in (0, 1)))
    started[1].send_signal(signal.SIGTERM)
    assert [one.wait(60) for one in started] == [130, 130]


def test_the_files_of_the_engines(
    write: Callable[..., tuple[Path, dict[str, Any]]], workspace: Path, tmp_path: Path
) -> None:
    folders = [str(workspace), str(tmp_path / EVIL)]
    _, dstack = write("dstack")
    del dstack["commands"]
    assert dstack == {
        "type": "task",
        "name": "run-1-aff6cc2c",
        "nodes": 2,
        "shell": "bash",
        "volumes": [{"instance_path": path, "path": path} for path in folders],
        "resources": {"shm_size": "16GB"},
    }
    volumes = [
        {"name": f"folder-{i}", "hostPath": {"path": path, "type": "Directory"}}
        for i, path in enumerate(folders)
    ]
    places = [{"name": f"folder-{i}", "mountPath": path} for i, path in enumerate(folders)]
    _, sky = write("skypilot")
    pod = {"containers": [{"volumeMounts": places}], "volumes": volumes}
    assert sky["config"] == {"kubernetes": {"pod_config": {"spec": pod}}}
    assert (sky["name"], sky["num_nodes"], "resources" in sky) == ("run-1-aff6cc2c", 2, False)
    file, jobset = write("jobset")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]["template"]["spec"]
    shm = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    assert (spec["volumes"], spec["restartPolicy"]) == ([*volumes, shm], "Never")
    assert spec["containers"][0]["image"] == "registry/iisft:1"
    assert file.read_text().startswith("# Written by iisft ")


def test_gpus_are_asked_for_by_vendor_and_model(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None], tmp_path: Path
) -> None:
    iisft("data", "stage", str(rows), "--name", "rows")
    two = ("--name", "big", "--nodes", "2", "--set", "hardware.gpus=2", "--image", "iisft")
    jobs = {}
    for engine in ENGINES:
        file = tmp_path / engine
        argv = train_argv(model, *two, "--script", str(file), "--for", engine, preset="v100")
        assert iisft(*argv).code == 0
        jobs[engine] = yaml.safe_load(file.read_text())
    assert jobs["dstack"]["resources"]["gpu"] == {
        "vendor": "nvidia", "count": 2, "memory": "28GB.."
    }  # fmt: skip
    assert jobs["skypilot"]["resources"] == {
        "image_id": "docker:iisft", "accelerators": {"V100-32GB": 2}
    }  # fmt: skip
    master = jobs["pytorchjob"]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    assert master["spec"]["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 2}}


def test_secrets_are_named_and_never_written(
    write: Callable[..., tuple[Path, dict[str, Any]]],
    iisft: CLI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IISFT_NOTIFY", "ntfys://user:geheim123@ntfy.sh/topic")
    texts = {}
    jobs = {}
    for engine in ENGINES:
        file, jobs[engine] = write(engine)
        texts[engine] = file.read_text()
    assert not [engine for engine, text in texts.items() if "geheim123" in text]
    assert jobs["dstack"]["env"] == ["IISFT_NOTIFY"]
    assert jobs["skypilot"]["secrets"] == {"IISFT_NOTIFY": None}
    assert "sky launch --secret IISFT_NOTIFY FILE\n" in texts["skypilot"]
    assert 'generic iisft --from-literal=IISFT_NOTIFY="$IISFT_NOTIFY"\n' in texts["jobset"]
    argv = ["train", "-p", "mi50", "--set", "env.HF_TOKEN=abcdefgh", "--name", "x", "--gpus", "1"]
    refused = iisft(*argv, "--script", "x.yaml", "--for", "dstack")
    assert refused.code == 3 and "abcdefgh" not in refused.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--for", "dstack"), "--for goes with --script FILE"),
        (("--script", "x", "--image", "y"), "--image goes with --for"),
        (("--script", "x", "--slurm", "--for", "dstack"), "--slurm is --for slurm"),
        (("--script", "x", "--for", "nomad"), "Invalid value for '--for'"),
    ],
)
def test_options_that_contradict_each_other(
    options: tuple[str, ...], said: str, iisft: CLI
) -> None:
    refused = iisft("train", "-p", "demo", *options)
    assert (refused.code, said in refused.err) == (2, True), refused.err
