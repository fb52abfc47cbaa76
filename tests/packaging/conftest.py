"""Installing for real: these tests build, resolve and install with the ordinary package index."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Taken before a test's own world begins: the downloads that this machine has already made are in
# its cache.
MACHINE = {
    name: value
    for name, value in os.environ.items()
    if name not in ("VIRTUAL_ENV", "PYTHONPATH", "IISFT_HOME")
}
NO_INDEX = (
    "failed to fetch",
    "error sending request",
    "dns error",
    "connection error",
    "could not connect",
)

Uv = Callable[..., str]


@pytest.fixture(scope="session")
def machine_environment() -> Mapping[str, str]:
    return MACHINE


@pytest.fixture(scope="session")
def checkout() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def uv() -> Uv:
    """Run uv in the checkout; its output comes back, a failure ends the test."""
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.exists() else shutil.which("uv")
    if program is None:
        pytest.fail(
            "uv is missing: scripts/setup.sh installs it where the package index can be reached"
        )

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments],
            cwd=ROOT,
            env=MACHINE,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        output = done.stdout + done.stderr
        if done.returncode and any(sign in output.lower() for sign in NO_INDEX):
            pytest.fail(
                f"this test needs the ordinary package index, and it can't be reached:\n{output}"
            )
        if done.returncode:
            pytest.fail(f"uv {' '.join(arguments)} failed:\n{output}")
        return output

    return run


@pytest.fixture
def empty_venv(uv: Uv, tmp_path: Path) -> Path:
    folder = tmp_path / "empty venv"
    uv("venv", "--python", sys.executable, str(folder))
    return folder
