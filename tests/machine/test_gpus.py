"""Whole machines as folders of files."""

from dataclasses import replace
from pathlib import Path

import pytest

from iisft.machine.facts.gpus import Gpu, amd_gpus, masked, nvidia_gpus
from iisft.machine.facts.nvidia_smi import NvidiaCard, parse_nvidia_smi


def kfd_node(root: Path, number: int, version: int, gib: int, vendor: int = 0x1002) -> None:
    node = root / "sys/class/kfd/kfd/topology/nodes" / str(number)
    (node / "mem_banks/0").mkdir(parents=True)
    (node / "properties").write_text(
        f"cpu_cores_count 0\nvendor_id {vendor}\ngfx_target_version {version}\n"
    )
    (node / "name").write_text("vega20\n")
    (node / "mem_banks/0/properties").write_text(f"heap_type 1\nsize_in_bytes {gib * 2**30}\n")


@pytest.fixture
def two_mi50(tmp_path: Path) -> Path:
    kfd_node(tmp_path, 0, 0, 64, vendor=0)  # the CPU is a node too
    kfd_node(tmp_path, 1, 90006, 32)
    kfd_node(tmp_path, 10, 90006, 32)
    return tmp_path


MI50 = Gpu("amd", "gfx906", 32.0, "vega20")


def test_two_mi50_as_the_kernel_tells_them(two_mi50: Path) -> None:
    assert amd_gpus(two_mi50) == [MI50, MI50]


@pytest.mark.parametrize(
    ("version", "arch"),
    [(90010, "gfx90a"), (90402, "gfx942"), (100300, "gfx1030"), (110001, "gfx1101")],
)
def test_names_of_architectures(tmp_path: Path, version: int, arch: str) -> None:
    kfd_node(tmp_path, 1, version, 16)
    assert amd_gpus(tmp_path)[0].arch == arch


def test_a_machine_without_gpus(tmp_path: Path) -> None:
    assert [*amd_gpus(tmp_path), *nvidia_gpus(tmp_path)] == []


@pytest.mark.parametrize(
    ("name", "mask", "count"),
    [
        ("HIP_VISIBLE_DEVICES", "0,1", 2),
        ("ROCR_VISIBLE_DEVICES", "1", 1),
        ("CUDA_VISIBLE_DEVICES", "", 0),
        ("HIP_VISIBLE_DEVICES", "-1", 0),
        ("HIP_VISIBLE_DEVICES", "0,7,1", 1),
    ],
)
def test_masks(two_mi50: Path, name: str, mask: str, count: int) -> None:
    assert len(masked(amd_gpus(two_mi50), {name: mask})) == count


P40 = Gpu("nvidia", "sm_61", 24.0, "Tesla P40", uuid="GPU-aa")
RTX3090 = Gpu("nvidia", "sm_86", 24.0, "RTX 3090", uuid="GPU-bb")


@pytest.mark.parametrize(
    ("mask", "left"),
    [
        ("GPU-bb", [RTX3090]),
        ("gpu-B,0", [RTX3090, P40]),
        ("GPU-cc,0", []),
        ("MIG-11,0", [Gpu("nvidia", "", 0.0), P40]),
    ],
)
def test_a_uuid_names_its_card(mask: str, left: list[Gpu]) -> None:
    assert masked([P40, RTX3090], {"CUDA_VISIBLE_DEVICES": mask}) == left


def test_where_no_uuid_is_known_only_cards_that_are_alike_are(two_mi50: Path) -> None:
    assert masked(amd_gpus(two_mi50), {"ROCR_VISIBLE_DEVICES": "GPU-1f"}) == [MI50]
    unlike = [replace(P40, uuid=""), RTX3090]
    assert masked(unlike, {"CUDA_VISIBLE_DEVICES": "GPU-bb"}) == [Gpu("nvidia", "", 0.0)]


def test_nvidia_cards_are_counted_without_nvidia_smi(tmp_path: Path) -> None:
    for card in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / card).mkdir(parents=True)
    assert nvidia_gpus(tmp_path) == [
        Gpu("nvidia", "", 0.0, "", "0000:01:00.0"),
        Gpu("nvidia", "", 0.0, "", "0000:02:00.0"),
    ]


def test_what_nvidia_smi_says() -> None:
    long = (
        "Tesla V100-SXM2-32GB, 7.0, 32768, 570.133.20, 00000000:1A:00.0, 8, 16, 61, 250.00, "
        "300.00, GPU-12\n"
    )
    old = "Tesla T4, 7.5, 15360\n"
    assert parse_nvidia_smi(f"{long}{old}Failed to query\nNVIDIA X, [N/A], 1\n") == [
        NvidiaCard(
            "Tesla V100-SXM2-32GB",
            "sm_70",
            32.0,
            "570.133.20",
            "0000:1a:00.0",
            8,
            16,
            61.0,
            250.0,
            300.0,
            "GPU-12",
        ),
        NvidiaCard("Tesla T4", "sm_75", 15.0),
    ]
