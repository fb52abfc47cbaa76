"""GPUs at work as folders of files, and a stand-in for nvidia-smi."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from iisft.machine.facts import nvidia_smi, sensors
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


V100 = GpuSample("nvidia", "Tesla V100-SXM2-32GB", 99.0, 8.0, 32.0, 64.0, 290.5, False)
SAID = "Tesla V100-SXM2-32GB, 99, 8192, 32768, 64, 290.50"


def nvidia(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *cases: str, else_: str = "exit 2"
) -> list[GpuSample]:
    """What is sampled where nvidia-smi answers so; a case is a word of the query and commands."""
    file = folder / "bin/nvidia-smi"
    file.parent.mkdir()
    arms = "".join(f"*{word}*) {then};; " for word, then in (one.split(":", 1) for one in cases))
    file.write_text(f'#!/bin/sh\ncase "$1" in {arms}*) {else_};; esac\n')
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(nvidia_smi, "_FILES", (str(folder),))
    return [gpu for gpu in sample() if gpu.vendor == "nvidia"]


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [("Not Active, Not Active", False), ("Active, Not Active", True), ("[N/A], Active", True),
     ("[N/A], [N/A]", None)],
)  # fmt: skip
def test_what_nvidia_smi_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reasons: str, throttled: bool | None
) -> None:
    found = nvidia(monkeypatch, tmp_path, f"event:echo '{SAID}, {reasons}'")
    assert found == [replace(V100, throttled=throttled)]


def test_older_drivers_have_other_words_for_heat_or_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "older").mkdir()
    old = nvidia(monkeypatch, tmp_path / "old", "event:exit 2", f"throttle:echo '{SAID}, Active,'")
    assert old == [replace(V100, throttled=True)]
    older = nvidia(
        monkeypatch, tmp_path / "older", "event:exit 2", "throttle:exit 2", else_=f"echo '{SAID}'"
    )
    assert older == [replace(V100, throttled=None)]


def test_what_a_gpu_cant_tell_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "NVIDIA GB10, 3, [N/A], [N/A], 41, [Not Supported], nan, "
    assert nvidia(monkeypatch, tmp_path, f"event:echo '{said}'; echo garbage") == [
        GpuSample("nvidia", "NVIDIA GB10", 3.0, None, None, 41.0, None, None)
    ]


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert nvidia(monkeypatch, tmp_path) == []


def test_nvidia_smi_is_asked_about_the_real_machine_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert nvidia(monkeypatch, tmp_path, f"event:echo '{SAID}, ,'")
    assert sample(tmp_path) == []


def test_samples_count_only_where_they_are_of_the_gpus_that_are_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia(monkeypatch, tmp_path, f"event:echo '{SAID}, ,'")
    assert len(sensors.samples_of([31.74])) == 1
    assert sensors.samples_of([9.5]) == []  # a slice of a partitioned card
    assert sensors.samples_of([31.74, 31.74]) == []
