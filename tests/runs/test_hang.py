"""What is put on record about a hang."""

from collections.abc import Callable
from pathlib import Path

import pytest

from iisft import process
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.host import Host
from iisft.machine.facts.machine import Machine
from iisft.machine.facts.pci import Card
from iisft.machine.facts.sensors import GpuSample
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord
from iisft.runs.supervise import watchdogs


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
    said = watchdogs.collect_stacks(folder)
    (file,) = folder.logs.iterdir()
    assert said == f"stacks are in {file}"
    assert file.read_text() == "dump --pid 41: all_reduce\n\ndump --pid 42: all_reduce\n"


def test_a_py_spy_that_may_not_look_is_quoted(
    folder: RunFolder, py_spy: Callable[[str], None]
) -> None:
    py_spy("echo Permission denied >&2; exit 1")
    watchdogs.collect_stacks(folder)
    (file,) = folder.logs.iterdir()
    assert file.read_text() == "Permission denied\n\nPermission denied\n"


def test_how_busy_each_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = GpuSample("nvidia", "", None, None, None, None, None, throttled=None)
    busy = GpuSample("amd", "MI50", 100.0, 20.0, 32.0, 60.0, 225.0, throttled=False)
    monkeypatch.setattr(watchdogs.sensors, "sample", lambda: [busy, unknown])
    assert watchdogs.gpu_use() == "; GPUs busy 100 %, ?"
    monkeypatch.setattr(watchdogs.sensors, "sample", lambda: [])
    assert watchdogs.gpu_use() == ""


def record(vendor: str, ranks: int) -> RunRecord:
    return RunRecord.from_json(
        {"preset": {"hardware": {"vendor": vendor}}, "expected": {"world_size": ranks}}
    )


def two_mi50(iommu: str) -> Machine:
    gpus = tuple(Gpu("amd", "gfx906", 32.0, bus=f"0000:{bus}:00.0") for bus in ("03", "83"))
    cards = tuple(Card("amd", gpu.bus, iommu=iommu, iommu_group="17") for gpu in gpus)
    return Machine(
        gpus, cards, Host(cpu_vendor="GenuineIntel", cmdline=("intel_iommu=on",), amdgpu="6.10.5")
    )


def test_a_hang_is_explained_by_the_rules_that_fire_on_this_machine() -> None:
    told = watchdogs.likely_causes(record("amd", 2), two_mi50("DMA-FQ"))
    assert told.startswith(
        "R08 the IOMMU translates the GPUs' DMA: several GPUs can hang at their first all-reduce"
    )
    assert "add iommu=pt to GRUB_CMDLINE_LINUX_DEFAULT" in told


def test_a_hang_that_nothing_here_explains() -> None:
    told = watchdogs.likely_causes(record("amd", 2), two_mi50("identity"))
    assert told.startswith("none of the known causes shows on this machine; look at the stacks")
    assert "iisft env-check --deep" in told


@pytest.mark.parametrize(("vendor", "ranks"), [("amd", 1), ("cpu", 2)])
def test_a_hang_without_several_gpus_is_no_matter_of_links(vendor: str, ranks: int) -> None:
    assert (
        watchdogs.likely_causes(record(vendor, ranks))
        == "look at the stacks and at the load of the machine"
    )
