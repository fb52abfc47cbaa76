"""Whether the GPUs can be reached: driver, device files, permissions, masks, shared memory."""

from collections.abc import Iterator, Mapping

from iisft.errors import Finding
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import as_root, at_login, by_hand, container, export, unset
from iisft.machine.facts.live import Access
from iisft.quoting import is_name
from iisft.rules import Fix, rule, seen

_MIB = 2**20
_DEVICES = "--device=/dev/kfd --device=/dev/dri"
_MODPROBE = as_root(
    "sudo modprobe amdgpu", text="sudo modprobe amdgpu; if that fails, install amdgpu-dkms"
)


@rule(
    "R15",
    "kfd-permission",
    applies="AMD GPUs",
    source="ROCm-docker#116; rocminfo#38; ROCm: Running ROCm Docker containers",
)
def kfd_permission(case: Case) -> Iterator[Finding]:
    """ROCm opens /dev/kfd and every /dev/dri/renderD*.

    Without them torch says that there is no GPU, and not why.
    """
    devices = case.machine.answers.devices
    here = "amd" in {card.vendor for card in case.machine.cards} | {
        gpu.vendor for gpu in case.machine.gpus
    }
    # beside an NVIDIA GPU it is the processor's graphics
    trains = not case.nvidia and not case.on_cpu
    if not here or not devices or not trains or not _loaded(case):
        return
    closed = [path for path, about in devices.items() if about.exists and not about.usable]
    if missing := _missing_nodes(devices):
        where = "in this container" if case.machine.host.container else "on this machine"
        yield seen(
            f"{' and '.join(missing)} missing {where}: ROCm can't reach the AMD GPU",
            "/dev",
            container(
                f"{_DEVICES} --group-add video --group-add $(getent group render | cut -d: -f3)"
            )
            if case.machine.host.container
            else _MODPROBE,
        )
    elif closed:
        groups = sorted({devices[path].group for path in closed if devices[path].group})
        added = " ".join(f"--group-add {name}" for name in groups if is_name(name))
        yield seen(
            f"no permission for {', '.join(closed)} (group {', '.join(groups) or 'unknown'})",
            "os.access as this user",
            container(f"{_DEVICES} {added}")
            if case.machine.host.container
            else at_login(
                'sudo usermod -aG render,video "$USER"',
                text='sudo usermod -aG render,video "$USER", then log out and in again',
            ),
        )


def _missing_nodes(devices: Mapping[str, Access]) -> list[str]:
    kfd = devices.get("/dev/kfd")
    renders = any(path.startswith("/dev/dri/") and devices[path].exists for path in devices)
    missing = [] if kfd and kfd.exists else ["/dev/kfd"]
    return missing if renders else [*missing, "/dev/dri/renderD*"]


def _loaded(case: Case) -> bool:
    """In a container the module can't be seen to be missing."""
    return (
        case.machine.host.amdgpu is not None or bool(case.machine.host.container) or bool(case.amd)
    )


@rule(
    "R16",
    "dev-shm",
    applies="several GPUs, or data loader workers",
    source="RCCL init.cc; llama.cpp-gfx906#12; Docker's default is 64 MiB",
    hang=True,
)
def small_shared_memory(case: Case) -> Iterator[Finding]:
    """The ranks exchange gradients through /dev/shm where there is no direct path between GPUs.

    Docker gives 64 MiB.
    """
    space = case.machine.answers.spaces.get("/dev/shm")
    wanted = case.several or bool(case.argument("dataloader_num_workers"))
    if space is None or not wanted or space.total >= 1024 * _MIB:
        return
    yield seen(
        f"/dev/shm has {space.total // _MIB} MiB: too little for several ranks",
        "statvfs /dev/shm",
        container("--shm-size=16g")
        if case.machine.host.container
        else as_root("sudo mount -o remount,size=16G /dev/shm"),
        "error" if space.total < 256 * _MIB else "warn",
    )


@rule(
    "R24",
    "visible-devices",
    applies="AMD GPUs",
    source="ROCm: GPU isolation environment variables; torch.cuda._parse_visible_devices",
)
def visible_devices(case: Case) -> Iterator[Finding]:
    """ROCR_VISIBLE_DEVICES is applied first, HIP_ and CUDA_VISIBLE_DEVICES then count within what
    it left.
    """
    if not any(gpu.vendor == "amd" for gpu in case.machine.gpus) or case.on_cpu:
        return
    rocr, hip, cuda = (case.env.get(f"{name}_VISIBLE_DEVICES") for name in ("ROCR", "HIP", "CUDA"))
    inner = hip if hip is not None else cuda
    if rocr is not None and inner is not None:
        too_many = len(inner.split(",")) > len(rocr.split(","))
        yield seen(
            f"ROCR_VISIBLE_DEVICES={rocr} and "
            f"{'HIP' if hip is not None else 'CUDA'}_VISIBLE_DEVICES={inner} are both "
            "set: the second counts within what the first left"
            + (", and names more GPUs than are left: torch will refuse" if too_many else ""),
            "environment",
            unset("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
            "error" if too_many else "warn",
        )
    elif hip is not None and cuda is not None and hip != cuda:
        yield seen(
            f"HIP_VISIBLE_DEVICES={hip} and CUDA_VISIBLE_DEVICES={cuda} differ",
            "environment",
            unset("CUDA_VISIBLE_DEVICES"),
            "warn",
        )


@rule(
    "R25",
    "mixed-gpus",
    applies="AMD GPUs of different kinds",
    source="mi50-gfx906-unsloth-bnb4bit-lab; torch Context.cpp",
    basis="reported",
)
def mixed_gpus(case: Case) -> Iterator[Finding]:
    """An integrated or second AMD GPU beside the one that trains: kernels for one were sent to the
    other.

    torch's choice of BLAS looks at every visible GPU too.
    """
    amd = [gpu for gpu in case.machine.gpus if gpu.vendor == "amd"]
    visible = [gpu for gpu in case.machine.visible if gpu.vendor == "amd"]
    shown = {gpu.arch for gpu in visible}
    if not case.amd or len(shown) < 2 or case.env.get("ROCR_VISIBLE_DEVICES") is not None:
        return
    indexes = ",".join(str(index) for index, gpu in enumerate(amd) if gpu.arch == case.main_arch)
    yield seen(
        f"different AMD GPUs are visible ({', '.join(gpu.arch for gpu in visible)}): show torch "
        "only those that train",
        "/sys/class/kfd/kfd/topology/nodes",
        export(f"ROCR_VISIBLE_DEVICES={indexes}"),
        "warn",
    )


@rule(
    "driver-missing",
    applies="a GPU on the PCI bus without its driver",
    source="PCI classes 03xx and 12xx in sysfs",
)
def driver_missing(case: Case) -> Iterator[Finding]:
    """A GPU is plugged in, and no driver offers it: not loaded, not installed, or given to a
    virtual machine.
    """
    cards = [card for card in case.machine.cards if card.vendor]
    if case.machine.gpus or case.machine.visible or not cards or case.on_cpu:
        return
    first, host = cards[0], case.machine.host
    if first.vendor == "amd" and _kfd_is_missing(case):
        return  # R15 says it
    amd = first.vendor == "amd"
    fix = (
        _MODPROBE
        if amd
        else Fix(
            "install NVIDIA's driver (Ubuntu: sudo ubuntu-drivers install), then reboot",
            ("sudo ubuntu-drivers install",),
            "reboot",
            "nvidia-smi > /dev/null",
        )
    )
    if host.container and not amd:
        fix = container("--gpus all")
    bound = f", bound to {first.driver}" if first.driver else ", without a driver"
    yield seen(
        f"{len(cards)} {first.vendor.upper()} GPU(s) on the PCI bus, none offered for computing "
        f"({first.bus}{bound})",
        "/sys/bus/pci/devices",
        fix,
        "warn" if amd and host.amdgpu is not None else "error",
    )


def _kfd_is_missing(case: Case) -> bool:
    kfd = case.machine.answers.devices.get("/dev/kfd")
    return kfd is not None and not kfd.exists and _loaded(case)


@rule(
    "nvidia-smi",
    applies="NVIDIA GPUs",
    source="provoked: a wedged driver lets nvidia-smi wait for ever",
)
def nvidia_smi(case: Case) -> Iterator[Finding]:
    """nvidia-smi hangs or fails: the driver is wedged, or its kernel module and its libraries are
    of two versions.
    """
    smi = case.machine.answers.nvidia_smi
    if smi.status == "hangs":
        yield seen(
            "nvidia-smi does not return: the NVIDIA driver is wedged (a GPU fell off the bus, or "
            "a process hangs)",
            "killed after 10 s",
            by_hand("sudo dmesg | grep -i xid shows why; reboot"),
        )
    elif smi.status == "failed":
        said = smi.output.strip().splitlines()[-1:] or ["nothing"]
        yield seen(
            f"nvidia-smi fails: {said[0]}",
            "nvidia-smi",
            by_hand("after a driver update: reboot; else install the driver again"),
        )


@rule("unreadable", applies="any machine", source="errors of the kernel's files")
def unreadable(case: Case) -> Iterator[Finding]:
    """Files that the doctor needs are there and can't be read, so that it may have missed
    something.
    """
    lost = case.machine.unreadable
    if lost:
        path, reason = next(iter(lost.items()))
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield seen(
            f"/{path}{others} can't be read ({reason}): what depends on it was not checked",
            f"/{path}",
            by_hand("run it as a user who may read it (not in a sandbox), or sudo iisft env-check"),
            "warn",
        )


@rule("no-gpu", applies="machines without a GPU", source="iisft's own commands")
def no_gpu(case: Case) -> Iterator[Finding]:
    """Without a GPU most of iisft works: only training a real model in a useful time doesn't."""
    wants_cpu = case.preset is None or case.preset.hardware.vendor == "cpu"
    without = not case.machine.visible and not case.machine.cards
    if wants_cpu and (without or (case.preset is None and case.machine.visible and not case.gpus)):
        yield seen(
            "no GPU here. Still possible: check and stage data, download and verify models, plan "
            "for another machine, "
            "train tiny models on the CPU (iisft train --preset demo), evaluate answers, and "
            "diagnose another machine",
            "/sys/bus/pci/devices, /sys/class/kfd, /proc/driver/nvidia",
            by_hand("on the GPU machine: iisft env-check --collect gpu.tar.gz; here: env-check "
                    "--from gpu.tar.gz"),
            "info",
        )  # fmt: skip
