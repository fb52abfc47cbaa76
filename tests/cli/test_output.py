"""What becomes of output that its place can't take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest


def iisft(
    *argv: str, stdout: int | IO[bytes] = subprocess.PIPE, encoding: str = "utf-8"
) -> tuple[int, bytes, bytes]:
    """A real process, because the streams of one that runs tests are not a terminal's."""
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-m", "iisft", *argv], stdout=stdout, stderr=subprocess.PIPE, env=env
    )
    return done.returncode, done.stdout or b"", done.stderr


@pytest.fixture
def run() -> str:
    folder = Path(os.environ["IISFT_HOME"]) / "runs" / "情报"
    folder.mkdir(parents=True)
    (folder / "exit.json").write_text(
        json.dumps({"state": "finished", "reason": "all 4 steps", "preset": "mi50"})
    )
    return folder.name


def test_a_terminal_without_chinese_letters_ends_nothing(run: str) -> None:
    escaped = b"\\u60c5\\u62a5"
    for command in (("status", run), ("runs",), ("runs", "--quiet")):
        code, out, err = iisft(*command, encoding="ascii")
        assert (code, escaped in out, err) == (0, True, b"")


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str, run: str) -> None:
    _, out, _ = iisft("status", run, "--json", encoding=encoding)
    assert json.loads(out.decode(encoding))["id"] == run


def test_output_to_a_full_disk_is_no_bug() -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = iisft("preset", "list", stdout=full)
    assert (code, err.startswith(b"error: No space left on device\n")) == (4, True)
