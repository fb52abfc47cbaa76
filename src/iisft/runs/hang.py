"""What is worth knowing about a hang: where every thread stands, and what usually causes it on this hardware."""

import shutil
import time
from typing import Any

from iisft import files, process
from iisft.hardware import telemetry
from iisft.runs.folder import RunFolder

_PY_SPY_TIMEOUT_S = 20.0
_STACKS_S = 2.0
_CAUSES = {  # gpu-pitfalls R08, R09, R16; NCCL's troubleshooting guide
    "amd": "several AMD GPUs hang at the first all-reduce without iommu=pt on the kernel command line, with in-tree "
    "amdgpu (export HSA_ENABLE_IPC_MODE_LEGACY=0), or with P2P (export NCCL_P2P_DISABLE=1)",
    "nvidia": "several GPUs hang with a translating IOMMU or broken P2P: try export NCCL_P2P_DISABLE=1, and look at "
    "/dev/shm",
    "cpu": "look at the stacks and at the load of the machine",
}


def collect_stacks(folder: RunFolder) -> str:
    """Write the stacks of every rank to a file (py-spy) or to the trainer's log, and say where they are."""
    ranks = process.rank_processes(folder.marker)
    program = shutil.which("py-spy")
    if program is None:
        process.ask_for_stacks(ranks)
        time.sleep(_STACKS_S)  # each thread's stack is written by a signal handler, then the trainer is killed
        return f"stacks are in {folder.train_log}"
    texts = []
    for pid in ranks:
        try:
            dumped = process.run([program, "dump", "--pid", str(pid)], timeout_s=_PY_SPY_TIMEOUT_S)
            texts.append(dumped.stdout or dumped.stderr)
        except (OSError, TimeoutError) as error:
            texts.append(f"process {pid}: {error}")
    file = folder.logs / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        files.write_text_atomically(file, "\n".join(texts))
    except OSError as error:
        return f"stacks can't be written: {error.strerror}"
    return f"stacks are in {file}"


def gpu_use() -> str:
    """How busy each GPU is: all at 100 % beside a standing run is a collective that waits, 0 % a rank that does."""
    shares = ["?" if gpu.busy_percent is None else f"{gpu.busy_percent:.0f} %" for gpu in telemetry.sample()]
    return f"; GPUs busy {', '.join(shares)}" if shares else ""


def likely_causes(record: dict[str, Any]) -> str:
    """The known causes for the run's hardware."""
    vendor = str(record["preset"]["hardware"]["vendor"])
    several = int(record["expected"]["world_size"]) > 1
    return _CAUSES.get(vendor, _CAUSES["cpu"]) if several else _CAUSES["cpu"]
