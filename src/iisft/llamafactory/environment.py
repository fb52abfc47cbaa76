"""The trainer's environment: what iisft sets, and what of the caller's shell must not reach the
trainer.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iisft import files
from iisft.errors import ExitCode, Finding
from iisft.llamafactory.interpreter import Interpreter
from iisft.presets.checking import LoadedPreset
from iisft.presets.schema import Preset
from iisft.quoting import is_variable
from iisft.secrets import redact

# Each changes what LLaMA-Factory runs: another launcher, other ranks, unchecked arguments.
CLEARED = (
    "ALLOW_EXTRA_ARGS",
    "HIPBLASLT_ALLOW_TF32",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "FORCE_TORCHRUN",
    "GROUP_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MAX_NNODES",
    "MIN_NNODES",
    "NNODES",
    "NODE_RANK",
    "NPROC_PER_NODE",
    "RANK",
    "RDZV_ID",
    "USE_KT",
    "USE_MCA",
    "USE_MEGATRON_BRIDGE",
    "USE_RAY",
    "USE_V1",
    "WORLD_SIZE",
)
# What the libraries below the trainer read: which GPUs there are, how they talk, which kernels they
# take.
_STEERING = re.compile(
    r"(CUDA|HIP|ROCR|HSA|ROC|AMD|GPU|NCCL|RCCL|GLOO|UCX|MIOPEN|HIPBLASLT|ROCBLAS|CUBLAS|PYTORCH|TORCH|OMP|MKL|OPENBLAS"
    r"|NUMEXPR|DS|BNB)_\w+|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH|PYTHONHASHSEED"
)
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
# CUDA's own default counts the fastest card first, nvidia-smi and the kernel count along the bus:
# index 1 of CUDA_VISIBLE_DEVICES would be another card than the one that was looked at.
GPU_ORDER, _BY_BUS = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
# accelerate takes mixed precision, sharding and compilation from them
CLEARED_PREFIX = "ACCELERATE_"
# What a preset's env may not say: keys of the preset or iisft decide it. Where torchrun listens is
# free.
_DECIDED = (
    *(name for name in CLEARED if name not in ("MASTER_ADDR", "MASTER_PORT")),
    "HF_MODULES_CACHE",
    "LLAMAFACTORY_VERBOSITY",
    "MAX_RESTARTS",
)
# What lets a preset of unknown origin run code of its own. ROCm's recipes set LD_LIBRARY_PATH.
_CODE = ("PATH", "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "IFS", "PS4", "PROMPT_COMMAND",
         "GCONV_PATH", "LD_LIBRARY_PATH", "CC", "CXX", "HIPCC", "NVCC",
         "TRITON_PTXAS_PATH")  # fmt: skip
_SEARCHED = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH")
_CODE_PREFIXES = ("LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP",
                  "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONUSERBASE", "PYTHONEXECUTABLE",
                  "PYTHONPLATLIBDIR", "BASH_FUNC", "IISFT_")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placement:
    """How many processes run where. `ranks` is per node; `rendezvous` is host:port of node 0."""

    ranks: int = 1
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    on_cpu: bool = False

    @property
    def world_size(self) -> int:
        return self.ranks * self.nodes


def compile_environment(
    preset: Preset, interpreter: Interpreter, placement: Placement, caches: Mapping[str, str]
) -> dict[str, str]:
    """The variables that iisft sets for the trainer, the preset's own ones last.

    `caches` name where its libraries write on the way.
    """
    env = {
        "PATH": f"{interpreter.path.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "LLAMAFACTORY_VERBOSITY": "INFO",  # the trainer's summary is part of the proof
        "RECORD_VRAM": "1",  # peak memory of the GPU in each logged step
        "HF_HUB_OFFLINE": "1",
        **caches,
        "NPROC_PER_NODE": str(placement.ranks),
        # torchrun's own restart would change the world size and with it the global batch
        "MAX_RESTARTS": "0",
    }
    if placement.world_size > 1:
        env["FORCE_TORCHRUN"] = "1"
    if placement.nodes > 1:
        host, _, port = (placement.rendezvous or "").rpartition(":")
        env |= node_environment(str(placement.nodes), str(placement.node_rank), host, port)
    if preset.hardware.vendor == "amd":
        # LLaMA-Factory would force expandable_segments, which ROCm does not have
        env["OPTIM_TORCH"] = "0"
    if preset.hardware.vendor == "nvidia" and GPU_ORDER not in os.environ:
        env[GPU_ORDER] = _BY_BUS
    if placement.on_cpu:
        env |= NO_GPU
    return env | preset.env


def gpu_order(env: Mapping[str, str]) -> dict[str, str]:
    """The variables for a child that looks at the GPUs: it counts them as the trainer will."""
    return {GPU_ORDER: _BY_BUS, **env}


def env_findings(loaded: LoadedPreset) -> list[Finding]:
    """Objections to the preset's `env` section: variables that would change the run behind its
    other keys' back.
    """
    found = []
    for name in loaded.preset.env:
        where = loaded.document.source(("env", name)).text
        if name in _DECIDED or name.startswith(CLEARED_PREFIX):
            found.append(
                Finding(
                    "env-decided",
                    f"env.{name} would change what runs behind the preset's back",
                    where=where,
                    fix="drop it; precision, hardware.gpus, --gpus, --nodes and the other keys "
                    "decide that",
                )
            )
        elif brings_code(name):
            found.append(
                Finding(
                    "env-code",
                    f"env.{name} decides which programs and libraries are run as the trainer",
                    where=where,
                    fix="keep it only in a preset that you wrote yourself",
                    severity="info" if name == "LD_LIBRARY_PATH" else "warn",
                )
            )
    return found


# Where each finds its login without a question, and the modes that need none. Sources:
# wandb/sdk/lib/apikey.py, swanlab/package.py.
_LOGINS = {
    "wandb": (("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"), "~/.netrc", "WANDB_MODE", "offline"),
    "swanlab": (("SWANLAB_API_KEY",), "~/.swanlab/.netrc", "SWANLAB_MODE", "local"),
}


def tracker_findings(preset: Preset, shell: Mapping[str, str]) -> list[Finding]:
    """Trackers that would ask for a login, which nobody answers: the run would end there."""
    found, env = [], {**shell, **preset.env}
    for tracker in preset.track:
        keys, file, mode, offline = _LOGINS.get(tracker, ((), "", "", ""))
        logged_in = any(env.get(key) for key in keys) or env.get(mode) in (offline, "disabled")
        host: str = tracker
        if tracker == "wandb":  # its own server may be elsewhere, and so may the file
            with contextlib.suppress(ValueError):  # no URL
                host = urlsplit(env.get("WANDB_BASE_URL", "")).hostname or host
            file = env.get("NETRC") or file
        if file and not logged_in and host not in _text(file):
            found.append(
                Finding(
                    "tracker-login",
                    f"{tracker} has no login here and would end the run by asking for one",
                    where="track",
                    fix=f"{tracker} login, or --set env.{mode}={offline}",
                    exit_code=ExitCode.ENVIRONMENT,
                )
            )
    return found


def _text(name: str) -> str:
    try:
        return files.read_text(Path(name).expanduser())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return ""


def brings_code(name: str) -> bool:
    """Whether a variable of this name decides which programs and libraries are run."""
    return name in _CODE or name.startswith(_CODE_PREFIXES)


def of_record(values: Mapping[str, Any], folder: Path) -> tuple[dict[str, str], list[str]]:
    """What a run's record may say about the environment, and the names of what it may not.

    A run's folder is data, whoever made it: nothing in it is run as a program or a library. What
    this shell has itself stays.
    """
    kept = {
        name: value
        for name, value in values.items()
        if is_variable(name)
        and isinstance(value, str)
        and "\0" not in value
        and (
            not brings_code(name)
            or os.environ.get(name) == value
            or not _inside(name, value, folder)
        )
    }
    return kept, [name for name in values if name not in kept]


def _inside(name: str, value: str, folder: Path) -> bool:
    """Whether a search path may lead into the folder; what is no search path may do anything."""
    if name not in _SEARCHED:
        return True
    entries = re.split("[: ]" if name.startswith("LD_") else ":", value)
    return any(
        not entry.startswith("/") or Path(os.path.realpath(entry)).is_relative_to(folder)
        for entry in entries
        if entry
    )


def node_environment(nodes: str, node_rank: str, host: str, port: str) -> dict[str, str]:
    """What tells LLaMA-Factory's torchrun which of several machines this is.

    Values may be shell expressions.
    """
    return {"NNODES": nodes, "MASTER_ADDR": host, "MASTER_PORT": port, "NODE_RANK": node_rank}


def inherited(env: Mapping[str, str]) -> dict[str, str]:
    """The caller's variables without those that would change the run behind the preset's back.

    The trainer works in its run's folder: where the caller's PYTHONPATH names its own directory,
    that is meant.
    """
    kept = {
        name: value
        for name, value in env.items()
        if name not in CLEARED and not name.startswith(CLEARED_PREFIX)
    }
    if path := kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    return kept


def steering(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a shell that decide how the trainer's libraries work.

    A resume elsewhere needs them again.
    """
    return redact(
        {name: value for name, value in inherited(env).items() if _STEERING.fullmatch(name)}
    )
