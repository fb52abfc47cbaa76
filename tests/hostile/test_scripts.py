"""Presets and paths that want to be lines of a script."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.runs.plan import script

CLI = Callable[..., Any]


@pytest.mark.parametrize(
    "name",
    [
        "X;touch PWNED;Y",
        "X$(touch PWNED)",
        "X\ntouch PWNED",
        "1X",
        "",
        "X Y",
        "X-Y",
        "é",
        "BASH_FUNC_ls%%",
        "X=1",
        "X\n",
    ],
)
def test_a_variable_is_called_as_a_shell_calls_it(
    name: str, iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = tmp_path / "p.yaml"
    preset.write_text(f"extends: demo\nenv: {json.dumps({name: '1'}, ensure_ascii=False)}\n")
    commands = [
        ("preset", "validate", str(preset)),
        ("train", "-p", str(preset), "--script", "t.sh"),
    ]
    if name and "=" not in name:
        commands.append(("train", "-p", "mi50", "--set", f"env.{name}=1", "--script", "t.sh"))
    monkeypatch.chdir(tmp_path)
    for argv in commands:
        result = iisft(*argv)
        assert result.code == 3, result.err
    assert not (tmp_path / "t.sh").exists()


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_AUDIT",
        "PATH",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "BASH_ENV",
        "BASH_FUNC_ls",
        "LD_LIBRARY_PATH",
    ],
)
def test_a_variable_that_brings_code_is_said(name: str, iisft: CLI) -> None:
    argv = ("train", "-p", "mi50", "--gpus", "1", "--set", f"env.{name}=/x", "--dry-run", "--json")
    found = [one for one in json.loads(iisft(*argv).out)["findings"] if one["id"] == "env-code"]
    assert [one["message"].split()[0] for one in found] == [f"env.{name}"]


@pytest.mark.parametrize("slurm", [False, True])
@pytest.mark.parametrize(
    "evil",
    [
        "x\ntouch PWNED\n#",
        "x$(touch PWNED)",
        "x'; touch PWNED; '",
        "x`touch PWNED`",
        "x\r\ntouch PWNED",
        "x\n#SBATCH --output=PWNED",
        '"; touch PWNED; "',
        "x\udcff\ntouch PWNED",
    ],
)
def test_names_of_presets_folders_and_interpreters_are_words_of_a_script(
    evil: str,
    slurm: bool,
    iisft: CLI,
    model: Path,
    rows: Path,
    fake_trainer: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    iisft("data", "stage", str(rows), "--name", "rows")
    python = Path(os.environ["IISFT_PYTHON"])
    moved = tmp_path / evil / "bin"
    moved.parent.mkdir()
    python.parent.rename(moved)
    monkeypatch.setenv("IISFT_PYTHON", str(moved / "python"))
    (moved / "llamafactory-cli").write_text("#!/bin/sh\ntouch started\n")
    copied = tmp_path / evil / "模型 $(touch PWNED)"
    model.rename(copied)
    preset = tmp_path / f"{evil}.yaml"
    preset.write_text("extends: mi50\n")
    file = tmp_path / "job.sh"
    argv = ["train", "-p", str(preset), "--model", str(copied), "--data", "rows", "--gpus", "1"]
    argv += ["--set", "env.X=$(touch PWNED)\n touch PWNED", "--script", str(file)]
    argv += (
        ["--slurm", "--nodes", "2", "--rendezvous", "$(touch${IFS}PWNED):1", "--name", "job"]
        if slurm
        else []
    )
    result = iisft(*argv)
    assert result.code == 0, result.err
    text = file.read_bytes()
    assert [
        line for line in text.split(b"\n") if line.startswith((b"touch", b"#SBATCH --output=PWNED"))
    ] == []
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "scontrol").write_text("#!/bin/sh\necho host\n")
    (stubs / "srun").write_text('#!/bin/sh\nSLURM_NODEID=0 exec "$@"\n')
    for stub in stubs.iterdir():
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    work = tmp_path / "work"
    work.mkdir()
    env = {
        **os.environ,
        "PATH": f"{stubs}:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "host",
    }
    done = subprocess.run(
        ["bash", str(file)], cwd=work, env=env, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert list(Path(os.environ["IISFT_HOME"]).rglob("started"))
    assert list(work.iterdir()) == []
    assert not list(tmp_path.rglob("PWNED")) + list(Path(os.environ["IISFT_HOME"]).rglob("PWNED"))


def test_a_file_of_the_model_can_not_end_the_text_that_it_stands_in(tmp_path: Path) -> None:
    text = "a\nIISFT_END_OF_FILE\ntouch PWNED\nIISFT_END_OF_FILE_\ntouch PWNED\n"
    lines = "\n".join(["run=.", *script._file("config.json", text)])
    subprocess.run(["bash", "-c", lines], cwd=tmp_path, check=True)
    assert (tmp_path / "config.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_plan_that_is_printed_can_be_pasted(iisft: CLI, tmp_path: Path) -> None:
    argv = (
        "train",
        "-p",
        "mi50",
        "--gpus",
        "1",
        "--set",
        "env.X=a\ntouch PWNED; $(touch PWNED)",
        "--dry-run",
    )
    lines = [line for line in iisft(*argv).out.splitlines() if line.startswith("export ")]
    subprocess.run(["bash", "-c", "\n".join(lines)], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []
