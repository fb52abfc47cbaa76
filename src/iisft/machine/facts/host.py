"""The host: processor, memory, kernel and its command line, drivers, container or not.

From files alone.
"""

import re
from dataclasses import dataclass

from iisft.machine.facts.reader import Reader

_CONTAINER_FILES = {".dockerenv": "docker", "run/.containerenv": "podman"}
_CONTAINER_GROUPS = re.compile(r"docker|kubepods|containerd|lxc|libpod")
_UNLIMITED = 1 << 60
_KERNELS = "TensileLibrary_lazy_"  # one such file for each architecture that rocBLAS knows


@dataclass(frozen=True)
class Host:
    """Unknown is "", None or an empty tuple. Memory in GiB; `rocm` is /opt/rocm's version, for
    example 6.4.0-47.

    `blas_archs`: those that the rocBLAS of /opt/rocm has kernels for.

    `amdgpu` is None without that driver, "" for the kernel's own and a version for amdgpu-dkms.
    """

    os_name: str = ""
    os_family: str = ""
    kernel: str = ""
    cmdline: tuple[str, ...] = ()
    cpu: str = ""
    cpu_vendor: str = ""
    cpu_flags: frozenset[str] = frozenset()
    sockets: int = 1
    cores: int = 0
    memory_gib: float | None = None
    memory_limit_gib: float | None = None
    numa_balancing: int | None = None
    iommus: tuple[str, ...] = ()
    container: str = ""
    amdgpu: str | None = None
    rocm: str = ""
    nvidia_driver: str = ""
    amd_smi_library: bool = False
    blas_archs: tuple[str, ...] = ()
    boot_id: str = ""

    @property
    def nvidia_major(self) -> int | None:
        match = re.match(r"\d+", self.nvidia_driver)
        return int(match[0]) if match else None

    @property
    def rocm_release(self) -> tuple[int, int] | None:
        match = re.match(r"(\d+)\.(\d+)", self.rocm)
        return (int(match[1]), int(match[2])) if match else None


def probe(reader: Reader) -> Host:
    """Read the host's files."""
    release = dict(
        re.findall(r'^(\w+)="?([^"\n]*)"?$', reader.text("etc/os-release"), re.MULTILINE)
    )
    processors = reader.text("proc/cpuinfo")
    flags = re.search(r"^flags\s*:\s*(.*)$", processors, re.MULTILINE)
    return Host(
        os_name=release.get("PRETTY_NAME", ""),
        os_family=f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".strip(),
        kernel=reader.text("proc/sys/kernel/osrelease"),
        cmdline=tuple(reader.text("proc/cmdline").split()),
        cpu=_field(processors, "model name"),
        cpu_vendor=_field(processors, "vendor_id"),
        cpu_flags=frozenset(flags[1].split()) if flags else frozenset(),
        sockets=len(set(re.findall(r"^physical id\s*:\s*(\d+)$", processors, re.MULTILINE))) or 1,
        cores=len(re.findall(r"^processor\s*:", processors, re.MULTILINE)),
        memory_gib=_memory_gib(reader),
        memory_limit_gib=_memory_limit_gib(reader),
        numa_balancing=reader.number("proc/sys/kernel/numa_balancing"),
        iommus=tuple(reader.names("sys/class/iommu")),
        container=_container(reader),
        amdgpu=reader.text("sys/module/amdgpu/version")
        if reader.exists("sys/module/amdgpu")
        else None,
        rocm=reader.text("opt/rocm/.info/version"),
        nvidia_driver=_nvidia_driver(reader),
        blas_archs=tuple(
            name.removeprefix(_KERNELS).removesuffix(".dat")
            for name in reader.names("opt/rocm/lib/rocblas/library", f"{_KERNELS}gfx*.dat")
        ),
        amd_smi_library=reader.exists("opt/rocm/lib/libamd_smi.so"),
        boot_id=reader.text("proc/sys/kernel/random/boot_id"),
    )


def _field(processors: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.*)$", processors, re.MULTILINE)
    return match[1].strip() if match else ""


def _memory_gib(reader: Reader) -> float | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB$", reader.text("proc/meminfo"), re.MULTILINE)
    return int(match[1]) / 2**20 if match else None


def _memory_limit_gib(reader: Reader) -> float | None:
    """The limit of this control group (version 2, then 1)."""
    for path in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = reader.number(path)
        if limit is not None and 0 < limit < _UNLIMITED:
            return limit / 2**30
    return None


def _container(reader: Reader) -> str:
    for path, name in _CONTAINER_FILES.items():
        if reader.exists(path):
            return name
    match = _CONTAINER_GROUPS.search(reader.text("proc/1/cgroup"))
    return match[0] if match else ""


def _nvidia_driver(reader: Reader) -> str:
    """The version in /proc/driver/nvidia/version: the first number with two or three parts."""
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", reader.text("proc/driver/nvidia/version"))
    return match[1] if match else ""
