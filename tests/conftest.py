"""Every test has a workspace of its own, in a folder with a space and Chinese letters, and no
machine's settings.
"""

import contextlib
import io
import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import leftovers
from iisft.cli.app import main

FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Children begin with the default signals, also where this process was told to ignore some:
    SIGHUP under nohup, SIGINT in the background of a script. Exec resets what is handled, not
    what is ignored.
    """
    worker = hasattr(config, "workerinput")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN or (worker and number == signal.SIGHUP):
            signal.signal(number, lambda *_: None)
    if not worker:
        signal.signal(signal.SIGTERM, _interrupt)
        os.environ[leftovers.SESSION] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        leftovers.kill_all(leftovers.SESSION, str(os.getpid()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: no worker is left alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or not report.passed
    return report


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers: what the training interpreter can do takes ten seconds to find out."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _own_world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
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
    yield
    failed = request.node.stash.get(FAILED, False)
    left = leftovers.await_none("IISFT_HOME", str(home), 0 if failed else 10)
    leftovers.kill_all("IISFT_HOME", str(home))
    assert failed or not left, f"the test passed, but left processes behind: {left}"


@pytest.fixture
def workspace() -> Path:
    return Path(os.environ["IISFT_HOME"])


@pytest.fixture
def iisft() -> Callable[..., Result]:
    """Run one command line in this process, with the real exit code."""

    def run(*argv: str) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
        return Result(int(code), out.getvalue(), err.getvalue())

    return run
