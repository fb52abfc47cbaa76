"""Which GPUs somebody's processes are on now, whoever started them.

AMD: the kernel's list of processes with a compute context (linux amdkfd, kfd_process.c: in
kfd/proc/PID stand vram_GPU in bytes and a folder for each queue, whose `gpuid` is the node's
gpu_id) and amdgpu's memory and load. NVIDIA: nvidia-smi --help-query-compute-apps. In a container
neither need name the processes of another one: then memory and load tell. What can't be found out
counts as in use.
"""

from collections.abc import Callable, Collection, Sequence

from iisft.machine.facts.gpus import NODES, Gpu, bus_of_node
from iisft.machine.facts.nvidia_smi import ask_for_processes, ask_for_use
from iisft.machine.facts.reader import Reader

_PROCESSES = "sys/class/kfd/kfd/proc"
# A desktop holds some hundred MiB, a compute context of another container at least as much.
_MEMORY_GIB = 1.0
_LOAD_PERCENT = 10.0
# A runtime that only looks at a card may hold a little of its memory.
_LOOKING_BYTES = 64 * 2**20

WhyNot = Callable[[Gpu], str]


def why_not_free(
    gpus: Sequence[Gpu], own: Collection[int] = (), reader: Reader | None = None
) -> list[str]:
    """For each of the machine's GPUs who is on it, "" where nobody is.

    Args:
        gpus: all of them, as iisft.machine.facts.gpus tells them.
        own: processes whose GPUs are known otherwise, so that they don't count here.
        reader: where the machine's files lie.
    """
    reader = reader or Reader()
    judges: dict[str, WhyNot] = {}
    for vendor in {gpu.vendor for gpu in gpus}:
        judges[vendor] = _amd(reader, own) if vendor == "amd" else _nvidia(own)
    return [judges[gpu.vendor](gpu) for gpu in gpus]


def _amd(reader: Reader, own: Collection[int]) -> WhyNot:
    ids = {
        bus_of_node(reader, node): reader.number(f"{NODES}/{node}/gpu_id")
        for node in reader.names(NODES, "[0-9]*")
    }
    told = reader.exists(_PROCESSES)
    pids = [pid for pid in reader.names(_PROCESSES, "[0-9]*") if int(pid) not in own]

    def why(gpu: Gpu) -> str:
        card = ids.get(gpu.bus)
        if not told or not card:
            return f"unknown: the kernel names no processes of GPUs ({_PROCESSES})"
        on_it = [pid for pid in pids if _is_on(reader, pid, card)]
        if on_it:
            return f"process {', '.join(on_it)} is on it"
        device = f"sys/bus/pci/devices/{gpu.bus}"
        used = reader.number(f"{device}/mem_info_vram_used")
        return _busy(used / 2**30 if used else None, reader.number(f"{device}/gpu_busy_percent"))

    return why


def _is_on(reader: Reader, pid: str, card: int) -> bool:
    place = f"{_PROCESSES}/{pid}"
    if (reader.number(f"{place}/vram_{card}") or 0) > _LOOKING_BYTES:
        return True
    queues = reader.names(f"{place}/queues", "[0-9]*")
    return any(reader.number(f"{place}/queues/{queue}/gpuid") == card for queue in queues)


def _nvidia(own: Collection[int]) -> WhyNot:
    processes, use, ours = ask_for_processes(), ask_for_use(), set(map(str, own))

    def why(gpu: Gpu) -> str:
        if processes is None or use is None or gpu.uuid not in use:
            return "unknown: nvidia-smi does not tell who is on it"
        # a name that no card has (a slice of one) may be any of them
        on_it = [
            pid
            for uuid, pid in processes
            if pid not in ours and (uuid == gpu.uuid or uuid not in use)
        ]
        return f"process {', '.join(on_it)} is on it" if on_it else _busy(*use[gpu.uuid])

    return why


def _busy(used_gib: float | None, load: float | None) -> str:
    if used_gib is not None and used_gib > _MEMORY_GIB:
        return f"{used_gib:.1f} GiB of it are in use"
    return f"it is at {load:.0f} % load" if load is not None and load >= _LOAD_PERCENT else ""
