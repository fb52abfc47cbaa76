"""Every test has a workspace of its own, in a folder with a space and Chinese letters, and no
machine's settings.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from iisft.cli.app import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_world(
    tmp_path_factory: pytest.TempPathFactory, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("home") / "工作 space"
    home.mkdir()
    monkeypatch.setenv("IISFT_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    # With it every child compiles torch's and transformers' sources anew: half a minute each.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    for name in (
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "IISFT_DEBUG",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def iisft() -> Callable[..., Result]:
    """Run one command line in this process, with the real exit code."""

    def run(*argv: str) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
        return Result(int(code), out.getvalue(), err.getvalue())

    return run
