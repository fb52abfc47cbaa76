"""What a person names is written whole, over nothing unasked; what is there is left as it is."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_machines import MACHINES

from helpers import CLI
from iisft import files


@pytest.fixture
def writers(
    model: Path, rows: Path, fake_trainer: Callable[..., None], iisft: CLI, tmp_path: Path
) -> list[tuple[str, ...]]:
    """Each command that writes a file which a person names, up to that name."""
    iisft("data", "stage", str(rows), "--name", "rows")
    machine = MACHINES["t4"].build(tmp_path / "machine")
    train = ("train", "-p", "mi50", "--model", str(model), "--data", "rows", "--gpus", "1")
    return [
        (*train, "--script"),
        ("env-check", "--from", str(machine), "--fix-plan"),
        ("env-check", "--collect"),
        ("data", "check", str(rows), "-p", "mi50", "--model", str(model), "--html"),
        ("preset", "copy", "mi50"),
    ]


def test_nothing_is_written_over_unasked(
    writers: list[tuple[str, ...]], iisft: CLI, tmp_path: Path
) -> None:
    precious, link = tmp_path / "precious", tmp_path / "link"
    precious.write_text("untouched")
    link.symlink_to(precious)
    for argv in writers:
        for place in (precious, link):
            result = iisft(*argv, str(place))
            assert (result.code, "the file exists" in result.err) == (6, True), (argv, result.err)
    assert (precious.read_text(), link.is_symlink()) == ("untouched", True)


def test_devices_and_pipes_are_written_to_and_stay_what_they_are(
    writers: list[tuple[str, ...]], iisft: CLI, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for argv in writers:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)  # room for a whole script: nobody takes it
        assert iisft(*argv, "/dev/null").code in (0, 4), argv
        iisft(*argv, str(pipe))
        os.close(reader)
        assert iisft(*argv, str(pipe)).code in (2, 3, 4)  # nobody reads it
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()


def test_standard_output_is_a_place_too(writers: list[tuple[str, ...]], iisft: CLI) -> None:
    for name in ("-", "/dev/stdout"):
        assert iisft(*writers[0], name).out.startswith("#!/usr/bin/env bash\n")
        assert iisft(*writers[1], name).out.startswith("#!/usr/bin/env bash\n")


def test_a_full_disk_is_the_machines_matter(
    writers: list[tuple[str, ...]], iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes_atomically", full)
    for number, argv in enumerate(writers):
        result = iisft(*argv, str(tmp_path / f"new-{number}"))
        assert (result.code, "No space left on device" in result.err) == (4, True), argv


def test_a_page_and_a_document_are_one_answer(
    writers: list[tuple[str, ...]], iisft: CLI, tmp_path: Path
) -> None:
    for argv in (writers[3], (*writers[3][:3], "--html")):
        result = iisft(*argv, str(tmp_path / f"{len(argv)}.html"), "--json")
        json.loads(result.out)
        assert result.code in (0, 2)


def test_a_link_to_a_run_is_removed_and_not_the_run(
    iisft: CLI, workspace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "elsewhere"
    run.mkdir()
    (run / "exit.json").write_text('{"state": "finished"}')
    (workspace / "runs").mkdir()
    (workspace / "runs" / "link").symlink_to(run)
    assert iisft("runs", "rm", "link", "--yes").code == 0
    assert (run / "exit.json").exists()
    assert not (workspace / "runs" / "link").is_symlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing_in_tmp(
    number: signal.Signals, tmp_path: Path
) -> None:
    code = (
        "import sys, tempfile, time, types\n"
        "from iisft import __main__\n"
        "def main(argv):\n"
        "    with tempfile.TemporaryDirectory(prefix='iisft-'):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.modules['iisft.cli.app'] = types.SimpleNamespace(main=main)\n"
        "__main__.run()\n"
    )
    env = os.environ | {"TMPDIR": str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    child.send_signal(number)
    child.communicate(timeout=30)
    assert (child.returncode, list(tmp_path.iterdir())) == (128 + number, [])


@pytest.mark.parametrize("name", ["w${x", "w${x}", "a ${oc.env:HOME} b"])
def test_a_workspace_that_llamafactory_would_read_as_a_reference(
    name: str, iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IISFT_HOME", str(tmp_path / name))
    argv = ("train", "-p", "mi50", "--gpus", "1", "--dry-run", "--json")
    found = [one["id"] for one in json.loads(iisft(*argv).out)["findings"]]
    assert "train-yaml-reference" in found


@pytest.mark.parametrize(
    "home", ["~", "~nobody-of-that-name/x", "loop/x", "a\0b"[:1] + "/" * 5000 + "x"]
)
def test_workspaces_that_are_none(
    home: str, iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IISFT_HOME", home)
    if home == "~":
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(
            "pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user"))
        )
    for argv in (("runs",), ("preset", "list"), ("train", "-p", "mi50", "--dry-run")):
        result = iisft(*argv)
        assert "bug in iisft" not in result.err
        assert result.code in (0, 2, 3, 4)
