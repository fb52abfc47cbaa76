"""Whole machines as folders of files, laid out as below /, with what is no file under iisft/."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

GIB = 2**30
_CONSTRAINTS = shlex.quote(str(Path(__file__).parents[2] / "constraints.txt"))
SOUND = {"torchvision": "", "torchaudio": "", "transformers": "5.5.4", "peft": "0.18.1",
         "accelerate": "1.11.0",
         "datasets": "4.0.0", "llamafactory": "0.9.5"}  # fmt: skip
HEALTHY_STEPS = ("torchvision", "torchaudio", "transformers", "peft", "accelerate", "llamafactory")


def expected(file: str) -> str:
    """What a file beside this one says; where the constraints lie depends on the checkout."""
    text = (Path(__file__).parent / file).read_text()
    return text.replace("-c constraints.txt", f"-c {_CONSTRAINTS}")


@dataclass(frozen=True)
class Amd:
    """An AMD GPU; `version` is KFD's gfx_target_version."""

    bus: str = "0000:03:00.0"
    version: int = 90006
    gib: int = 32
    device: str = "0x66a1"
    name: str = ""
    numa: int = 0
    iommu: str = "identity"
    group: str = "1"
    visible_mib: int | None = None
    flags: int = 1
    junction_c: int = 45
    cap_w: int = 225
    default_w: int = 225
    width: int = 16


@dataclass(frozen=True)
class Nvidia:
    """An NVIDIA GPU; `capability` as nvidia-smi prints it."""

    name: str
    capability: str
    mib: int
    bus: str = "0000:03:00.0"
    iommu: str = "identity"
    group: str = "1"
    width: int = 16
    celsius: int = 40
    limit_w: int = 250
    uuid: str = ""


@dataclass(frozen=True)
class Torch:
    """What torch says about itself."""

    version: str
    hip: str | None = None
    cuda: str | None = None
    archs: tuple[str, ...] = ()
    blas: tuple[str, ...] | None = None
    sees: int | None = None
    peers: tuple[tuple[int, int], ...] = ()


ROCM63 = Torch("2.7.1+rocm6.3", "6.3.42131-fa1d09cbd", None,
               ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101"),
               ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100")
               )  # fmt: skip
ROCM64 = Torch("2.9.1+rocm6.4", "6.4.43484-123eb5128", None,
               ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101",
                "gfx1201"),
               ("gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"))  # fmt: skip
CU130 = Torch(
    "2.11.0+cu130", None, "13.0", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
)
CU126 = Torch(
    "2.9.1+cu126", None, "12.6", ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
)


@dataclass(frozen=True)
class Fake:
    """A machine. `build` writes it below a folder.

    `undriven`: NVIDIA GPUs on the bus without a driver.
    """

    amd: tuple[Amd, ...] = ()
    nvidia: tuple[Nvidia, ...] = ()
    undriven: tuple[str, ...] = ()
    torch: Torch | None = CU130
    cmdline: str = "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet iommu=pt"
    iommus: tuple[str, ...] = ()
    cpu: str = "Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz"
    cpu_vendor: str = "GenuineIntel"
    flags: str = "fpu sse sse2 avx avx2"
    sockets: int = 2
    memory_gib: int = 256
    memory_limit_gib: int | None = None
    system: str = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nID_LIKE=debian\n'
    container: bool = False
    amdgpu: str | None = None
    rocm: str = ""
    amd_smi: bool = False
    image_blas: tuple[str, ...] = ()
    driver: str = ""
    smi: str = "ok"
    smi_said: str = ""
    numa_balancing: int = 0
    shm_mib: int = 128 * 1024
    free_gib: int = 900
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, tuple[bool, bool, str]] | None = None
    programs: tuple[str, ...] = ("git", "gcc", "g++")
    python: str = "3.11.9"
    path: str = "/home/me/iisft-env/bin/python"
    launcher: str = "/home/me/iisft-env/lib/python3.11/site-packages/llamafactory/launcher.py"
    launcher_present: bool = True
    packages: Mapping[str, str] = field(default_factory=lambda: dict(SOUND))
    versions: Mapping[str, str] = field(default_factory=lambda: {"pip": "25.0"})
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    died: Mapping[str, str] | None = None
    deep: tuple[Mapping[str, Any], ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)

    def build(self, root: Path) -> Path:
        """Write the machine's files below `root`."""
        _host(self, root)
        for index, card in enumerate(self.amd):
            _amd_card(root, index + 1, card)
        for bus in self.undriven:
            _pci(root, bus, "0x10de", "0x030200", "", "", 16)
        for nvidia in self.nvidia:
            _pci(root, nvidia.bus, "0x10de", "0x030200", nvidia.iommu, nvidia.group, nvidia.width)
            _write(
                root,
                f"proc/driver/nvidia/gpus/{nvidia.bus}/information",
                f"Model: \t\t {nvidia.name}\n",
            )
        _write(
            root,
            "iisft/answers.json",
            json.dumps({"answers": self._answers(), "unreadable": dict(self.lost)}),
        )
        if self.torch is not None or self.packages or self.died:
            _write(root, "iisft/interpreter.json", json.dumps(self._interpreter()))
        if self.deep:
            _write(
                root,
                "iisft/deep.json",
                json.dumps({"date": "2026-11-24", "results": list(self.deep)}),
            )
        return root

    def _answers(self) -> dict[str, Any]:
        devices = self.devices
        if devices is None:
            nodes = [f"/dev/dri/renderD{128 + index}" for index in range(len(self.amd))]
            devices = {
                path: (True, True, "render") for path in (["/dev/kfd", *nodes] if self.amd else [])
            }
        lines = [
            f"{card.name}, {card.capability}, {card.mib}, {self.driver}, 0000{card.bus}, "
            f"{card.width}, 16, "
            f"{card.celsius}, {card.limit_w}, 250, {card.uuid}"
            for card in self.nvidia
        ]
        keys = ("exists", "usable", "group")
        return {
            "environment": dict(self.environment),
            "devices": {path: dict(zip(keys, about, strict=True))
                        for path, about in devices.items()},
            "spaces": {
                "/dev/shm": {"total": self.shm_mib * 2**20, "free": self.shm_mib * 2**20},
                "workspace": {"total": 2000 * GIB, "free": self.free_gib * GIB},
            },
            "programs": list(self.programs),
            "nvidia_smi": {"status": self.smi,
                           "output": "\n".join(lines) if self.smi == "ok" else self.smi_said}
            if self.nvidia
            else {"status": "missing", "output": ""},
        }  # fmt: skip

    def _interpreter(self) -> dict[str, Any]:
        packages = dict(self.packages)
        steps: dict[str, Any] = {"packages": {"versions": dict(self.versions)}}
        if self.torch is not None:
            tag = self.torch.version.partition("+")[2]
            base = self.torch.version.partition("+")[0]
            pairs = {"2.4.1": "0.19.1", "2.7.1": "0.22.1", "2.9.1": "0.24.1", "2.11.0": "0.26.0"}
            for name, version in (
                ("torch", base),
                ("torchvision", pairs.get(base, base)),
                ("torchaudio", base),
            ):
                if name == "torch" or packages.get(name) == "":
                    packages[name] = f"{version}+{tag}" if tag else version
            seen = (
                self.torch.sees
                if self.torch.sees is not None
                else len(self.amd if self.torch.hip else self.nvidia)
            )
            steps["torch"] = {
                "version": self.torch.version,
                "hip": self.torch.hip,
                "cuda": self.torch.cuda,
                "arch_list": list(self.torch.archs),
                "blas_archs": self.torch.blas,
            }
            steps["devices"] = {
                "available": seen > 0,
                "devices": [{"name": "GPU"}] * seen,
                "peers": self.torch.peers,
            }
            steps |= {name: {} for name in HEALTHY_STEPS}
        steps |= self.steps
        return {
            "path": self.path, "python": self.python,
            "packages": {k: v for k, v in packages.items() if v}, "launcher": self.launcher,
            "launcher_present": self.launcher_present,
            "report": {"steps": steps, "died": self.died},
        }  # fmt: skip


def _host(fake: Fake, root: Path) -> None:
    _write(root, "proc/cmdline", fake.cmdline)
    _write(root, "etc/os-release", fake.system)
    _write(root, "proc/sys/kernel/osrelease", "6.8.0-48-generic\n")
    _write(root, "proc/sys/kernel/numa_balancing", f"{fake.numa_balancing}\n")
    _write(root, "proc/meminfo", f"MemTotal:       {fake.memory_gib * 2**20} kB\n")
    processors = [
        f"processor\t: {number}\nvendor_id\t: {fake.cpu_vendor}\nmodel name\t: "
        f"{fake.cpu}\nphysical id\t: {number}\n"
        f"flags\t\t: {fake.flags}\n"
        for number in range(fake.sockets)
    ]
    _write(root, "proc/cpuinfo", "\n".join(processors))
    for name in fake.iommus:
        (root / "sys/class/iommu" / name).mkdir(parents=True)
    if fake.amdgpu is not None:
        (root / "sys/module/amdgpu").mkdir(parents=True)
        if fake.amdgpu:
            _write(root, "sys/module/amdgpu/version", fake.amdgpu)
    if fake.rocm:
        _write(root, "opt/rocm/.info/version", fake.rocm)
    for arch in fake.image_blas:
        _write(root, f"opt/rocm/lib/rocblas/library/TensileLibrary_lazy_{arch}.dat", "")
    if fake.amd_smi:
        _write(root, "opt/rocm/lib/libamd_smi.so", "")
    if fake.container:
        _write(root, ".dockerenv", "")
    if fake.memory_limit_gib:
        _write(root, "sys/fs/cgroup/memory.max", str(fake.memory_limit_gib * GIB))
    if fake.driver:
        text = (
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {fake.driver}  Release "
            "Build\nGCC version: gcc 11.4.0\n"
        )
        _write(root, "proc/driver/nvidia/version", text)


def _amd_card(root: Path, node: int, card: Amd) -> None:
    bus = int(card.bus[5:7], 16)
    base = f"sys/class/kfd/kfd/topology/nodes/{node}"
    _write(root, f"{base}/properties",
           f"vendor_id {0x1002}\nlocation_id {bus << 8}\ndomain 0\ngfx_target_version "
           f"{card.version}\n")  # fmt: skip
    _write(root, f"{base}/name", "vega20\n" if card.version == 90006 else "gpu\n")
    _write(root, f"{base}/mem_banks/0/properties", f"heap_type 1\nsize_in_bytes {card.gib * GIB}\n")
    _write(root, f"{base}/io_links/0/properties", f"type 2\nnode_to 0\nflags {card.flags}\n")
    device = _pci(root, card.bus, "0x1002", "0x038000", card.iommu, card.group, card.width)
    _write(root, f"{device}/device", card.device)
    if card.name:
        _write(root, f"{device}/product_name", card.name)
    _write(root, f"{device}/driver", "amdgpu")
    _write(root, f"{device}/numa_node", f"{card.numa}\n")
    _write(root, f"{device}/mem_info_vram_total", f"{card.gib * GIB}\n")
    visible = card.gib * GIB if card.visible_mib is None else card.visible_mib * 2**20
    _write(root, f"{device}/mem_info_vis_vram_total", f"{visible}\n")
    sensors = {
        "temp2_label": "junction",
        "temp2_input": card.junction_c * 1000,
        "temp2_crit": 105000,
        "power1_cap": card.cap_w * 10**6,
        "power1_cap_default": card.default_w * 10**6,
    }
    for name, text in sensors.items():
        _write(root, f"{device}/hwmon/hwmon3/{name}", f"{text}\n")


def _pci(root: Path, bus: str, vendor: str, kind: str, iommu: str, group: str, width: int) -> str:
    device = f"sys/bus/pci/devices/{bus}"
    _write(root, f"{device}/vendor", vendor)
    _write(root, f"{device}/class", kind)
    _write(root, f"{device}/current_link_speed", "8.0 GT/s PCIe")
    _write(root, f"{device}/current_link_width", str(width))
    _write(root, f"{device}/max_link_width", "16")
    if iommu:
        _write(root, f"sys/kernel/iommu_groups/{group}/type", iommu)
        (root / f"sys/kernel/iommu_groups/{group}/devices/{bus}").mkdir(parents=True)
    return device


def _write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def seen(*devices: tuple[str, str, float], buses: tuple[str, ...] = ()) -> dict[str, Any]:
    """The step in which torch tells its GPUs: name, architecture, GiB."""
    told = [{"name": name, "arch": arch, "memory_gib": gib} for name, arch, gib in devices]
    for device, bus in zip(told, buses, strict=False):
        device["bus"] = bus
    return {"devices": {"available": bool(told), "devices": told, "peers": []}}


MI50 = Fake(amd=(Amd(),), torch=ROCM63, amdgpu="6.10.5", rocm="6.3.1-48")
TWO_MI50 = replace(MI50, amd=(Amd(), Amd(bus="0000:83:00.0", numa=0, group="2")))
# design notes and record of the first user, December 2025
FIRST_USER = Fake(
    amd=(Amd(iommu="DMA-FQ", group="17"),
         Amd(bus="0000:83:00.0", numa=1, iommu="DMA-FQ", group="58")),
    torch=Torch("2.4.1+rocm6.1", "6.1.40091-a8dbc0c19", None,
                ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100"),
                ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100")),
    cmdline="BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet splash intel_iommu=on",
    iommus=("dmar0", "dmar1"),
    cpu="Intel(R) Xeon(R) CPU E5-2696 v2 @ 2.50GHz",
    flags="fpu sse sse2 sse4_2 avx f16c",
    amdgpu="6.12.12", rocm="6.4.0-47", numa_balancing=1,
    environment={"HSA_OVERRIDE_GFX_VERSION": "9.0.6", "HIP_VISIBLE_DEVICES": "0,1",
                 "PYTORCH_HIP_ALLOC_CONF": "expandable_segments:True", "MIOPEN_FIND_MODE": "1",
                 "DISABLE_VERSION_CHECK": "1"},
    python="3.10.12", path="/opt/conda/envs/iis_finetune/bin/python",
    packages={**SOUND, "transformers": "4.57.1", "llamafactory": "0.9.4", "deepspeed": "0.18.2"},
)  # fmt: skip
T4 = Fake(nvidia=(Nvidia("Tesla T4", "7.5", 15360),), driver="580.95.05")
P100 = Fake(nvidia=(Nvidia("Tesla P100-PCIE-16GB", "6.0", 16384),), driver="570.133.20")
H100 = Nvidia("NVIDIA H100 80GB HBM3", "9.0", 81559)
# A slice of a partitioned GPU, unlike cards, a processor's graphics, Windows' driver: torch sees
# other GPUs than the kernel and nvidia-smi tell.
MIG = Fake(
    nvidia=(H100,), driver="580.95.05",
    environment={"CUDA_VISIBLE_DEVICES": "MIG-11111111-2222-3333-4444-555555555555"},
    steps=seen(("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "sm_90", 9.5)),
)  # fmt: skip
P40_AND_3090 = Fake(
    nvidia=(Nvidia("Tesla P40", "6.1", 24576, uuid="GPU-00000000-0000-0000-0000-0000000000a0"),
            Nvidia("NVIDIA GeForce RTX 3090", "8.6", 24576, bus="0000:83:00.0", group="2",
                   uuid="GPU-deadbeef-0000-0000-0000-000000003090")),
    driver="570.133.20", torch=CU126,
)  # fmt: skip
RTX3090_ALONE = seen(("NVIDIA GeForce RTX 3090", "sm_86", 23.69))
P40_BY_INDEX = replace(
    P40_AND_3090, environment={"CUDA_VISIBLE_DEVICES": "1"},
    steps=seen(("Tesla P40", "sm_61", 23.9)),
)  # fmt: skip
RTX3090_BY_INDEX = replace(
    P40_BY_INDEX, environment={"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    steps=RTX3090_ALONE,
)  # fmt: skip
RTX3090_BY_UUID = replace(
    P40_AND_3090, environment={"CUDA_VISIBLE_DEVICES": "GPU-deadbeef"}, steps=RTX3090_ALONE
)
ROCM_1151 = replace(ROCM64, archs=(*ROCM64.archs, "gfx1151"), blas=(*(ROCM64.blas or ()),
                                                                    "gfx1151"))  # fmt: skip
APU = Fake(
    amd=(Amd(version=110501, gib=96, device="0x1586", name="Radeon 8060S"),),
    torch=ROCM_1151, amdgpu="", rocm="6.4.1-83", cpu="AMD RYZEN AI MAX+ 395",
    cpu_vendor="AuthenticAMD", sockets=1, memory_gib=31,
    steps=seen(("Radeon 8060S", "gfx1151", 15.49)),
)  # fmt: skip
APU_GTT = replace(
    APU, amd=(replace(APU.amd[0], gib=1),), memory_gib=123,
    steps=seen(("Radeon 8060S", "gfx1151", 110.0)),
)  # fmt: skip
WSL = Fake(
    torch=ROCM64, sockets=1, cpu="AMD Ryzen 9 7950X", cpu_vendor="AuthenticAMD", memory_gib=32,
    environment={"HSA_ENABLE_DXG_DETECTION": "1"},
    steps=seen(("AMD Radeon RX 7900 XTX", "gfx1100", 23.98)),
)  # fmt: skip
GB10 = Fake(
    nvidia=(Nvidia("NVIDIA GB10", "12.1", 0),), driver="580.95.05",
    torch=replace(CU130, archs=(*CU130.archs, "compute_120")), sockets=1, memory_gib=119,
    steps=seen(("NVIDIA GB10", "sm_121", 119.7)),
)  # fmt: skip
AMD_AND_NVIDIA = Fake(
    amd=(Amd(version=120001, gib=32, device="0x7551", name="Radeon AI PRO R9700"),),
    nvidia=(Nvidia("NVIDIA GeForce RTX 5070 Ti", "12.0", 16303, bus="0000:83:00.0", group="2"),),
    driver="580.95.05", torch=ROCM64, amdgpu="", rocm="6.4.1-83", sockets=1,
)  # fmt: skip
NONE = Fake(sockets=1, cpu="AMD EPYC 7763 64-Core Processor", cpu_vendor="AuthenticAMD")

MACHINES: dict[str, Fake] = {
    "first-user": FIRST_USER,
    "two-mi50-healthy": replace(TWO_MI50, environment={"TORCH_BLAS_PREFER_HIPBLASLT": "0"}),
    "container-without-kfd": replace(
        TWO_MI50,
        container=True,
        shm_mib=64,
        devices={"/dev/kfd": (False, False, "")},
        torch=replace(ROCM63, sees=0),
    ),
    "rdna3": Fake(
        amd=(Amd(version=110000, gib=24, device="0x744c", name="Radeon RX 7900 XTX"),),
        torch=ROCM64, amdgpu="", rocm="6.4.1-83", cpu="AMD Ryzen 9 "
                                                      "7950X", cpu_vendor="AuthenticAMD", sockets=1,
        memory_gib=64,
    ),
    "mixed-gpus": replace(
        MI50,
        amd=(Amd(version=100302, gib=8, device="0x73ff", name="Radeon RX 6600"),
             Amd(bus="0000:83:00.0", group="2")),
    ),
    "p100": P100,
    "t4": T4,
    "eight-h100": Fake(
        nvidia=tuple(replace(H100, bus=f"0000:{number:02x}:00.0", group=str(number))
                     for number in range(0x10, 0x18)),
        driver="580.95.05",
    ),
    "none": NONE,
    "mig-slice": MIG,
    "p40-3090-index-1": P40_BY_INDEX,
    "p40-3090-uuid": RTX3090_BY_UUID,
    "apu-96-of-which-15": APU,
    "apu-gtt": APU_GTT,
    "wsl-7900xtx": WSL,
    "gb10": GB10,
    "amd-and-nvidia": AMD_AND_NVIDIA,
}  # fmt: skip
