"""Who is on which GPU, as folders of files and as answers of nvidia-smi."""

from pathlib import Path

import pytest

from fakes.two_cards import CARDS, write_two_cards
from iisft.machine.facts import nvidia_smi
from iisft.machine.facts.gpus import amd_gpus, nvidia_gpus
from iisft.machine.facts.in_use import why_not_free
from iisft.machine.facts.reader import Reader

GIB = 2**30
IDS = (51966, 47806)


@pytest.fixture
def two_mi50(tmp_path: Path) -> Path:
    """A processor and two cards that nobody is on."""
    nodes = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    write(nodes / "0/gpu_id", "0\n")
    write(nodes / "0/properties", "cpu_cores_count 16\nvendor_id 0\n")
    for number, (bus, name) in enumerate(zip((3, 0x83), IDS, strict=True), 1):
        write(nodes / f"{number}/gpu_id", f"{name}\n")
        write(
            nodes / f"{number}/properties",
            f"vendor_id 4098\nlocation_id {bus << 8}\ndomain 0\ngfx_target_version 90006\n",
        )
        device = tmp_path / f"sys/bus/pci/devices/0000:{bus:02x}:00.0"
        write(device / "mem_info_vram_used", f"{12 * 2**20}\n")
        write(device / "gpu_busy_percent", "0\n")
    (tmp_path / "sys/class/kfd/kfd/proc").mkdir()
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def judged(root: Path, *own: int) -> list[str]:
    reader = Reader(root)
    return why_not_free(amd_gpus(reader), own, reader)


def process(root: Path, pid: int, *, vram: dict[int, int], queues: tuple[int, ...] = ()) -> None:
    place = root / f"sys/class/kfd/kfd/proc/{pid}"
    for card, size in vram.items():
        write(place / f"vram_{card}", f"{size}\n")
    for number, card in enumerate(queues):
        write(place / f"queues/{number}/gpuid", f"{card}\n")


def test_cards_that_nobody_is_on_are_free(two_mi50: Path) -> None:
    assert judged(two_mi50) == ["", ""]


def test_a_process_is_on_the_cards_where_it_has_memory_or_a_queue(two_mi50: Path) -> None:
    # ROCm opens every card, and holds a little of each
    process(two_mi50, 4711, vram={IDS[0]: 2**20, IDS[1]: 9 * GIB}, queues=(IDS[1],))
    assert judged(two_mi50) == ["", "process 4711 is on it"]
    process(two_mi50, 815, vram={IDS[0]: 0}, queues=(IDS[0],))
    process(two_mi50, 4711, vram={IDS[0]: 200 * 2**20})
    assert judged(two_mi50) == ["process 815, 4711 is on it", "process 4711 is on it"]
    assert judged(two_mi50, 815, 4711) == ["", ""]


def test_another_containers_process_has_no_name_but_memory_and_load(two_mi50: Path) -> None:
    devices = two_mi50 / "sys/bus/pci/devices"
    write(devices / "0000:03:00.0/mem_info_vram_used", f"{3 * GIB}\n")
    write(devices / "0000:83:00.0/gpu_busy_percent", "97\n")
    assert judged(two_mi50) == ["3.0 GiB of it are in use", "it is at 97 % load"]


def test_a_kernel_that_names_no_processes_says_nothing_of_free_cards(two_mi50: Path) -> None:
    (two_mi50 / "sys/class/kfd/kfd/proc").rmdir()
    assert judged(two_mi50) == ["unknown: the kernel names no processes of GPUs "
                                "(sys/class/kfd/kfd/proc)"] * 2  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", ["", ""]),
        ("GPU-bbbb, 1", ["", "process 1 is on it"]),
        ("MIG-0123, 1", ["process 1 is on it"] * 2),  # a slice of any of them
        ("GPU-bbbb, [N/A]", ["", "process [N/A] is on it"]),
        ("exit 9", ["unknown: nvidia-smi does not tell who is on it"] * 2),
    ],
)
def test_nvidia_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: list[str]
) -> None:
    cards, env = write_two_cards(tmp_path)
    monkeypatch.setattr(nvidia_smi, "_FILES", (str(cards),))
    monkeypatch.setenv("PATH", env["PATH"])
    program = tmp_path / "programs" / "nvidia-smi"
    answer = said if said.startswith("exit") else f"echo '{said}'"
    program.write_text(
        program.read_text().replace("*compute-apps*)", f"*compute-apps*) {answer} ;;\n    never)")
    )
    gpus = nvidia_gpus()
    assert [gpu.uuid for gpu in gpus] == list(CARDS)
    assert why_not_free(gpus) == expected
