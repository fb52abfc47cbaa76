"""The PCI functions of GPUs: driver, NUMA node, IOMMU, link, BAR, heat, power. Seen with or without
a working driver.

Files: docs.kernel.org/gpu/amdgpu (driver-misc, thermal), Documentation/ABI/testing/sysfs-bus-pci
and sysfs-kernel-iommu_groups (the type of a group: identity, DMA, DMA-FQ).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from iisft.gpu_table import PCI_NAMES
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.nvidia_smi import Smi, parse_nvidia_smi
from iisft.machine.facts.reader import Reader
from iisft.machine.facts.sensors import AMD_VENDOR, amd_devices, temperatures, watts

_VENDORS = {AMD_VENDOR: "amd", 0x10DE: "nvidia"}
_GPU_CLASSES = (0x03, 0x12)  # display controllers; processing accelerators
_PCI = "sys/bus/pci/devices"


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as PCI and its driver show it. Unknown is "", None; temperatures in degrees Celsius,
    power in watts.

    `iommu` is the type of its IOMMU group: "" without one, identity = not translated, DMA or DMA-FQ
    = translated.
    """

    vendor: str
    bus: str
    driver: str = ""
    name: str = ""
    memory_bytes: int | None = None
    visible_bytes: int | None = None
    numa_node: int | None = None
    iommu: str = ""
    iommu_group: str = ""
    link_speed: str = ""
    link_width: int | None = None
    link_width_max: int | None = None
    temperature_c: float | None = None
    critical_c: float | None = None
    power_cap_w: float | None = None
    power_default_w: float | None = None

    @property
    def large_bar(self) -> bool | None:
        """Whether the CPU can address all of the card's memory."""
        if not self.memory_bytes or self.visible_bytes is None:
            return None
        return self.visible_bytes >= self.memory_bytes


def cards(reader: Reader, gpus: Sequence[Gpu], smi: Smi) -> list[Card]:
    """Every AMD and NVIDIA GPU on the bus. Where /sys/bus is missing, those of /sys/class/drm."""
    groups = _iommu_groups(reader)
    found = [
        _card(reader, f"{_PCI}/{bus}", bus, groups)
        for bus in reader.names(_PCI)
        if _is_gpu(reader, bus)
    ]
    known = {card.bus for card in found}
    found += [card for card in _drm_cards(reader, gpus, groups) if card.bus not in known]
    return [_with_smi(card, smi) for card in found]


def _is_gpu(reader: Reader, bus: str) -> bool:
    kind = reader.number(f"{_PCI}/{bus}/class")
    return (
        kind is not None
        and kind >> 16 in _GPU_CLASSES
        and reader.number(f"{_PCI}/{bus}/vendor") in _VENDORS
    )


def _drm_cards(reader: Reader, gpus: Sequence[Gpu], groups: dict[str, str]) -> Iterable[Card]:
    buses = [gpu.bus for gpu in gpus if gpu.vendor == "amd"]
    for index, folder in enumerate(amd_devices(reader)):
        slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", reader.text(f"{folder}/uevent"), re.MULTILINE)
        bus = slot[1] if slot else ""
        if not bus and index < len(buses):
            bus = buses[index]  # both are in the order of the driver's discovery
        yield _card(reader, folder, bus, groups)


def _card(reader: Reader, folder: str, bus: str, groups: dict[str, str]) -> Card:
    vendor = _VENDORS.get(reader.number(f"{folder}/vendor") or 0, "")
    group = groups.get(bus, "") or reader.link(f"{folder}/iommu_group")
    numa = reader.number(f"{folder}/numa_node")
    common = Card(
        vendor,
        bus,
        driver=reader.link(f"{folder}/driver"),
        name=reader.text(f"{folder}/product_name")
        or PCI_NAMES.get(reader.number(f"{folder}/device") or 0, ""),
        numa_node=numa if numa is not None and numa >= 0 else None,
        iommu=reader.text(f"sys/kernel/iommu_groups/{group}/type") if group else "",
        iommu_group=group,
        link_speed=reader.text(f"{folder}/current_link_speed"),
        link_width=reader.number(f"{folder}/current_link_width"),
        link_width_max=reader.number(f"{folder}/max_link_width"),
    )
    return _with_sensors(reader, folder, common) if vendor == "amd" else common


def _with_sensors(reader: Reader, folder: str, card: Card) -> Card:
    found = temperatures(reader, folder)
    junction = next((one for one in found if one.label == "junction"), None)
    return replace(
        card,
        memory_bytes=reader.number(f"{folder}/mem_info_vram_total"),
        visible_bytes=reader.number(f"{folder}/mem_info_vis_vram_total"),
        temperature_c=junction.celsius if junction else None,
        critical_c=junction.critical if junction else None,
        power_cap_w=watts(reader, folder, "power1_cap") or None,
        power_default_w=watts(reader, folder, "power1_cap_default") or None,
    )


def _with_smi(card: Card, smi: Smi) -> Card:
    told = next((one for one in parse_nvidia_smi(smi.output) if one.bus == card.bus), None)
    if told is None:
        return card
    return replace(
        card,
        name=told.name,
        link_width=told.link_width or card.link_width,
        link_width_max=told.link_width_max or card.link_width_max,
        temperature_c=told.temperature_c,
        power_cap_w=told.power_limit_w,
        power_default_w=told.power_default_w,
    )


def _iommu_groups(reader: Reader) -> dict[str, str]:
    """Bus -> group."""
    base = "sys/kernel/iommu_groups"
    return {
        bus: group
        for group in reader.names(base)
        for bus in reader.names(f"{base}/{group}/devices")
    }
