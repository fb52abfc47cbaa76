"""What is worth knowing about a hang: where every thread stands, and what usually causes it on this
hardware.
"""

import shutil
import time
from typing import TYPE_CHECKING

from iisft import files, process
from iisft.machine.facts import sensors
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord

if TYPE_CHECKING:
    from iisft.machine.facts.machine import Machine

_PY_SPY_TIMEOUT_S = 20.0
_STACKS_S = 2.0
_LOOK = "look at the stacks and at the load of the machine"


def collect_stacks(folder: RunFolder) -> str:
    """Write the stacks of every rank to a file (py-spy) or to the trainer's log, and say where they
    are.
    """
    ranks = process.rank_processes(folder.marker)
    program = shutil.which("py-spy")
    if program is None:
        process.ask_for_stacks(ranks)
        # each thread's stack is written by a signal handler, then the trainer is killed
        time.sleep(_STACKS_S)
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
    """How busy each GPU is: all at 100 % beside a standing run is a collective that waits, 0 % a
    rank that does.
    """
    shares = [
        "?" if gpu.busy_percent is None else f"{gpu.busy_percent:.0f} %" for gpu in sensors.sample()
    ]
    return f"; GPUs busy {', '.join(shares)}" if shares else ""


def likely_causes(record: RunRecord, machine: "Machine | None" = None) -> str:
    """The doctor's rules about hanging collectives that fire on this machine, for a run of several
    GPUs.
    """
    ranks = record.world_size or 1
    if record.setting("hardware.vendor") == "cpu" or ranks < 2:
        return _LOOK
    from iisft.machine.doctor import (
        engine,  # with pydantic, which the supervisor does without until now
        inspect,
    )

    case = engine.Case(ranks=ranks, machine=machine or inspect.last_known())
    causes = [f"{one.id} {one.message} ({one.fix})" for one in engine.causes_of_hang(case)]
    if causes:
        return "; ".join(causes)
    return (
        f"none of the known causes shows on this machine; {_LOOK}, try export NCCL_P2P_DISABLE=1, "
        "and let iisft env-check --deep test the all-reduce"
    )
