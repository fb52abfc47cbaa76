"""A run's folder is data, whoever made it: what lies in it is never run, and names no process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI
from iisft import process
from iisft.runs.record.folder import RunFolder


@pytest.fixture
def stopped(
    iisft: CLI, workspace: Path, model: Path, rows: Path, fake_trainer: Callable[..., None]
) -> RunFolder:
    """A run that came to checkpoint-2 of 4 and was lost."""
    iisft("data", "stage", str(rows), "--name", "rows")
    fake_trainer("crash-at-2")
    argv = ["train", "-p", "mi50", "--model", str(model), "--data", "rows", "--gpus", "1"]
    assert iisft(*argv, "--name", "run", "--set", "watch.restarts=0").code == 1
    fake_trainer("ok")
    return RunFolder(workspace / "runs" / "run")


def change(folder: RunFolder, **values: Any) -> None:
    record = json.loads(folder.record.read_text())
    folder.record.write_text(json.dumps(record | values))


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, Path]:
    """A program, and the file that is there when it was run."""
    trace, program = tmp_path / "PWNED", tmp_path / "evil bin" / "python"
    program.parent.mkdir()
    for name in ("python", "llamafactory-cli"):
        place = program.with_name(name)
        place.write_text(f'#!/bin/sh\ntouch "{trace}"\n')
        place.chmod(0o755)
    return program, trace


def test_resume_imports_nothing_from_the_runs_folder(
    stopped: RunFolder, iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "PWNED"
    for name in ("iisft", "json", "yaml", "signal", "sitecustomize", "usercustomize", "runpy"):
        (stopped.path / name).mkdir(exist_ok=True)
        (stopped.path / name / "__init__.py").write_text(f"open({str(trace)!r}, 'w')\n")
    monkeypatch.setenv("PYTHONPATH", ":.")
    monkeypatch.chdir(tmp_path)
    for argv in (
        ("resume", "run", "--accept-drift"),
        ("status", "run"),
        ("wait", "run"),
        ("stop", "run"),
    ):
        iisft(*argv)
    assert not trace.exists()
    assert json.loads(stopped.exit.read_text())["state"] == "finished"


@pytest.mark.parametrize("command", ["resume", "chat", "predict", "export", "serve", "status"])
def test_the_records_interpreter_and_command_are_never_run(
    command: str, stopped: RunFolder, evil: tuple[Path, Path], iisft: CLI
) -> None:
    program, trace = evil
    argv = [str(program.with_name("llamafactory-cli")), "train", "train.yaml"]
    change(stopped, interpreter={"path": str(program), "python": "3.11.7"}, argv=argv)
    result = iisft(command, "run")
    assert not trace.exists()
    if command == "resume":
        assert result.code == 6
        assert f"interpreter {program} -> {os.environ['IISFT_PYTHON']}" in result.err
        assert iisft("resume", "run", "--accept-drift").code == 0
        assert not trace.exists()


@pytest.mark.parametrize(
    "variable",
    [
        "LD_PRELOAD",
        "LD_AUDIT",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "BASH_ENV",
        "PATH",
        "LD_LIBRARY_PATH",
        "BASH_FUNC_touch%%",
        "ENV",
        "X;Y",
        "IISFT_PYTHON",
    ],
)
@pytest.mark.parametrize("place", ["env", "shell"])
def test_the_record_brings_no_code_into_the_environment(
    variable: str, place: str, stopped: RunFolder, iisft: CLI
) -> None:
    values = json.loads(stopped.record.read_text())[place]
    change(stopped, **{place: values | {variable: f"{stopped.path}/evil"}})
    result = iisft("resume", "run")
    said = f"variable {variable} of the record would bring code of its own: it is left out"
    assert (result.code, said in result.err) == (6, True)
    assert iisft("resume", "run", "--accept-drift").code == 0


@pytest.mark.parametrize(
    "name",
    [
        "modeling_iisft.py",
        "products_iisft.py",
        "step_iisft.py",
        "stopping_iisft.py",
        "witness_iisft.py",
        "constants_iisft.py",
        "more.py",
    ],
)
def test_code_of_the_view_is_this_iisfts_own(name: str, stopped: RunFolder, iisft: CLI) -> None:
    file = stopped.model / name
    file.write_text(
        (file.read_text() if file.exists() else "") + "\nimport os; os.system('touch PWNED')\n"
    )
    view = json.loads(stopped.record.read_text())["view"]
    import hashlib

    change(stopped, view=view | {name: hashlib.sha256(file.read_bytes()).hexdigest()})
    result = iisft("resume", "run")
    assert (result.code, f"model/{name} is not the code of this iisft" in result.err) == (6, True)
    assert iisft("resume", "run", "--accept-drift").code == 0
    assert not file.exists() or "PWNED" not in file.read_text()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


@pytest.mark.parametrize("roles", [("supervisor",), ("trainer",), ("supervisor", "trainer")])
@pytest.mark.parametrize("option", [(), ("--now",)])
def test_a_forged_list_of_processes_ends_nobody_and_keeps_nobody_waiting(
    roles: tuple[str, ...], option: tuple[str, ...], stopped: RunFolder, iisft: CLI, bystander: Any
) -> None:
    stopped.exit.unlink()
    identity = process.identity_of(bystander.pid)
    assert identity is not None
    forged = {"run": stopped.marker} | dict.fromkeys(roles, identity.as_json())
    stopped.processes.write_text(json.dumps(forged))
    for command in (("status", "run"), ("stop", "run", *option), ("wait", "run")):
        iisft(*command)
    assert json.loads(iisft("status", "run", "--json").out)["state"] == "lost"
    assert bystander.poll() is None


def test_a_copied_run_has_its_base_model_outside(
    stopped: RunFolder, iisft: CLI, model: Path
) -> None:
    inside = stopped.path / "base"
    shutil.copytree(model, inside)
    record = json.loads(stopped.record.read_text())
    change(stopped, model=record["model"] | {"folder": str(inside)})
    result = iisft("chat", "run", "--checkpoint", "2")
    assert (result.code, "inside of the run's own folder" in result.err) == (3, True)


def test_the_command_itself_imports_nothing_from_where_it_is_called(
    stopped: RunFolder, tmp_path: Path
) -> None:
    (stopped.path / "yaml.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\n")
    script = Path(sys.executable).with_name("iisft")
    subprocess.run(
        [str(script), "status", "run"], cwd=stopped.path, capture_output=True, check=False
    )
    assert not (tmp_path / "PWNED").exists()
