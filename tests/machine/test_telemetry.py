"""GPUs at work as folders of files, and a stand-in for NVIDIA's library."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iisft.machine.facts.sensors import GpuSample, sample

MI50_FILES = {
    "vendor": "0x1002\n",
    "device": "0x66a1\n",
    "product_name": "AMD INSTINCT MI50 32GB\n",
    "gpu_busy_percent": "97\n",
    "mem_info_vram_used": f"{24 * 2**30}\n",
    "mem_info_vram_total": f"{32 * 2**30}\n",
    "hwmon/hwmon3/temp1_label": "edge\n",
    "hwmon/hwmon3/temp1_input": "71000\n",
    "hwmon/hwmon3/temp1_crit": "100000\n",
    "hwmon/hwmon3/temp2_label": "junction\n",
    "hwmon/hwmon3/temp2_input": "83000\n",
    "hwmon/hwmon3/temp2_crit": "105000\n",
    "hwmon/hwmon3/temp3_label": "mem\n",
    "hwmon/hwmon3/temp3_input": "88000\n",
    "hwmon/hwmon3/temp3_crit": "94000\n",
    "hwmon/hwmon3/power1_average": "223500000\n",
}
MI50 = GpuSample("amd", "AMD INSTINCT MI50 32GB", 97.0, 24.0, 32.0, 83.0, 223.5, False)


def card(root: Path, number: int, **changes: str | None) -> Path:
    """An MI50 as card `number`; names in `changes` end a path, None removes the file."""
    device = root / f"sys/class/drm/card{number}/device"
    for name, text in MI50_FILES.items():
        text = changes.get(name.rpartition("/")[2], text)
        if text is not None:
            (device / name).parent.mkdir(parents=True, exist_ok=True)
            (device / name).write_text(text)
    return device


def test_two_mi50_at_work(tmp_path: Path) -> None:
    card(tmp_path, 10, gpu_busy_percent="0\n", temp2_input="40500\n", temp3_input="41000\n")
    card(tmp_path, 1)
    (tmp_path / "sys/class/drm/card1-DP-1/device").mkdir(parents=True)  # a connector, no card
    (tmp_path / "sys/class/drm/card1-DP-1/device/vendor").write_text("0x1002\n")
    assert sample(tmp_path) == [
        MI50,
        GpuSample("amd", "AMD INSTINCT MI50 32GB", 0.0, 24.0, 32.0, 71.0, 223.5, False),
    ]


@pytest.mark.parametrize(
    ("sensor", "millidegrees", "throttled"),
    [
        ("temp2_input", "102999", False),
        ("temp2_input", "103000", True),
        ("temp2_input", "108000", True),
        ("temp3_input", "92000", True),
        ("temp1_input", "98500", True),
    ],
)
def test_throttled_is_two_degrees_before_any_sensors_limit(
    tmp_path: Path, sensor: str, millidegrees: str, throttled: bool
) -> None:
    card(tmp_path, 0, **{sensor: millidegrees})
    assert sample(tmp_path)[0].throttled is throttled


def test_without_the_dies_sensors_the_hottest_of_the_others_is_shown(tmp_path: Path) -> None:
    card(tmp_path, 0, temp1_label=None, temp2_label=None, temp3_label=None)
    assert sample(tmp_path)[0].temperature_c == 88.0


def test_newer_kernels_have_power1_input(tmp_path: Path) -> None:
    device = card(tmp_path, 0, power1_average=None)
    (device / "hwmon/hwmon3/power1_input").write_text("19000000\n")
    assert sample(tmp_path)[0].power_w == 19.0


def test_files_that_are_garbage_or_missing_are_unknown_and_hide_nothing_else(
    tmp_path: Path,
) -> None:
    device = card(
        tmp_path,
        0,
        product_name="",
        gpu_busy_percent="65535\n",
        mem_info_vram_used="gar\x00bage",
        temp1_input="-273150\n",
        temp2_input="",
        temp3_crit="0\n",
        power1_average="-1\n",
    )
    (device / "mem_info_vram_total").unlink()
    (device / "mem_info_vram_total").mkdir()
    assert sample(tmp_path) == [GpuSample("amd", "1002:66a1", None, None, None, 88.0, None, None)]


def test_a_card_with_nothing_but_its_vendor(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x1002\n")
    assert sample(tmp_path) == [GpuSample("amd", "")]


def test_a_machine_without_gpus_and_one_of_another_vendor(tmp_path: Path) -> None:
    assert sample(tmp_path) == []
    card(tmp_path, 0, vendor="0x8086\n")
    assert sample(tmp_path) == []


class FakeNvml:
    """One GPU; what `broken` names raises, as the driver does for what a GPU can't tell."""

    def __init__(self, *broken: str, reasons: int = 0x1) -> None:
        self.broken = broken
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": object(),
            "nvmlDeviceGetName": b"Tesla V100-SXM2-32GB",
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=99, memory=40),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=8 * 2**30, total=32 * 2**30),
            "nvmlDeviceGetTemperature": 64,
            "nvmlDeviceGetPowerUsage": 290500,
            "nvmlDeviceGetCurrentClocksThrottleReasons": reasons,
        }

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> Any:
            if name in self.broken:
                raise RuntimeError("NVML: Not Supported")
            return self.answers[name]

        return call


def nvidia(monkeypatch: pytest.MonkeyPatch, library: object) -> list[GpuSample]:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return [gpu for gpu in sample() if gpu.vendor == "nvidia"]


V100 = GpuSample("nvidia", "Tesla V100-SXM2-32GB", 99.0, 8.0, 32.0, 64.0, 290.5, False)


def test_what_nvidias_library_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvidia(monkeypatch, FakeNvml()) == [V100]


@pytest.mark.parametrize(
    ("reasons", "throttled"), [(0x0, False), (0x4, False), (0x20, True), (0x48, True)]
)
def test_only_heat_counts_as_throttled(
    monkeypatch: pytest.MonkeyPatch, reasons: int, throttled: bool
) -> None:
    assert nvidia(monkeypatch, FakeNvml(reasons=reasons))[0].throttled is throttled


def test_what_a_gpu_cant_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    )
    assert nvidia(monkeypatch, FakeNvml(*broken)) == [
        GpuSample("nvidia", "Tesla V100-SXM2-32GB", 99.0, None, None, 64.0, None, None)
    ]


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    assert nvidia(monkeypatch, FakeNvml(broken)) == []


def test_nvidias_library_is_asked_about_the_real_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert sample(tmp_path) == []


def test_nvidias_library_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvidia(monkeypatch, None) == []
