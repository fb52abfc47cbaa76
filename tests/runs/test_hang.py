"""What is put on record about a hang."""

from collections.abc import Callable
from pathlib import Path

import pytest

from iisft import process
from iisft.hardware.telemetry import GpuSample
from iisft.runs import hang
from iisft.runs.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "运行 run")
    made.logs.mkdir(parents=True)
    return made


@pytest.fixture
def py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(body: str) -> None:
        program = tmp_path / "bin" / "py-spy"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        monkeypatch.setattr(process, "rank_processes", lambda marker: [41, 42])

    return install


def test_py_spy_is_asked_for_every_rank(folder: RunFolder, py_spy: Callable[[str], None]) -> None:
    py_spy('echo "$@: all_reduce"')
    said = hang.collect_stacks(folder)
    (file,) = folder.logs.iterdir()
    assert said == f"stacks are in {file}"
    assert file.read_text() == "dump --pid 41: all_reduce\n\ndump --pid 42: all_reduce\n"


def test_a_py_spy_that_may_not_look_is_quoted(folder: RunFolder, py_spy: Callable[[str], None]) -> None:
    py_spy("echo Permission denied >&2; exit 1")
    hang.collect_stacks(folder)
    (file,) = folder.logs.iterdir()
    assert file.read_text() == "Permission denied\n\nPermission denied\n"


def test_how_busy_each_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = GpuSample("nvidia", "", None, None, None, None, None, throttled=None)
    busy = GpuSample("amd", "MI50", 100.0, 20.0, 32.0, 60.0, 225.0, throttled=False)
    monkeypatch.setattr(hang.telemetry, "sample", lambda: [busy, unknown])
    assert hang.gpu_use() == "; GPUs busy 100 %, ?"
    monkeypatch.setattr(hang.telemetry, "sample", lambda: [])
    assert hang.gpu_use() == ""


@pytest.mark.parametrize(
    ("vendor", "ranks", "expected"), [("amd", 2, "iommu=pt"), ("nvidia", 2, "NCCL_P2P_DISABLE=1"), ("amd", 1, "stacks")]
)
def test_the_known_causes_are_those_of_the_hardware(vendor: str, ranks: int, expected: str) -> None:
    record = {"preset": {"hardware": {"vendor": vendor}}, "expected": {"world_size": ranks}}
    assert expected in hang.likely_causes(record)
