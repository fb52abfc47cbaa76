"""What the training interpreter can do: it imports what training imports, step by step.

Runs in the training interpreter: python trainer_report.py SECONDS_PER_STEP. One JSON object per
line: {"begin": STEP} before a step, {"step": STEP, ...facts} after it. An import that aborts the
process or hangs leaves a step begun and never ended; faulthandler ends a step that exceeds its
limit.
"""

import contextlib
import faulthandler
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

Facts = dict[str, Any]

MORE_PACKAGES = (
    "pip",
    "triton",
    "pytorch-triton-rocm",
    "liger-kernel",
    "unsloth",
    "flash-attn",
    "amdsmi",
    "pyrsmi",
    "rocm-sdk-core",
)
IMPORTS = ("torchvision", "torchaudio", "transformers", "peft", "accelerate")
ONLY_IF_INSTALLED = ("bitsandbytes", "deepspeed")
TRAINER = "llamafactory.train.tuner"  # what `llamafactory-cli train` imports


def main(limit_s: float) -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print goes to stderr

    def step(name: str, work: Callable[[], Facts]) -> Facts:
        _say(channel, {"begin": name})
        faulthandler.dump_traceback_later(limit_s, exit=True)
        began = time.monotonic()
        try:
            facts = work()
        except BaseException as error:  # amdsmi raises KeyError, others SystemExit
            facts = {"error": f"{type(error).__name__}: {error}"[:2000]}
        faulthandler.cancel_dump_traceback_later()
        _say(channel, {"step": name, "seconds": round(time.monotonic() - began, 2), **facts})
        return facts

    step("packages", lambda: {"versions": _versions(MORE_PACKAGES)})
    if not importlib.util.find_spec("torch"):
        _say(channel, {"end": True})
        return
    torch_facts = step("torch", _torch)
    if "error" in torch_facts:  # the others would only repeat it
        _say(channel, {"end": True})
        return
    step("devices", _devices)
    for name in (*IMPORTS, *ONLY_IF_INSTALLED):
        if importlib.util.find_spec(name):
            step(name, functools.partial(_import, name))
    if importlib.util.find_spec("bitsandbytes"):
        step("bitsandbytes-libraries", _bitsandbytes)
    if importlib.util.find_spec("llamafactory"):
        step("llamafactory", lambda: _import(TRAINER))
    _say(channel, {"end": True})
    channel.flush()
    os._exit(0)  # some packages hang in their exit handlers


def _say(channel: TextIO, document: Facts) -> None:
    channel.write(json.dumps(document) + "\n")
    channel.flush()


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _import(name: str) -> Facts:
    importlib.import_module(name)
    return {}


def _torch() -> Facts:
    import torch

    return {
        "version": torch.__version__,
        "hip": torch.version.hip,
        "cuda": torch.version.cuda,
        "arch_list": _arch_list(torch),
        "blas_archs": _blas_archs(torch),
    }


def _arch_list(torch: Any) -> list[str]:
    """get_arch_list() is empty where no GPU can be seen; the build's own list is not."""
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return flags.split() if flags else torch.cuda.get_arch_list()


def _blas_archs(torch: Any) -> list[str] | None:
    """Architectures that the rocBLAS which torch loads has kernel files for: beside torch, in
    packages of TheRock's own (one for each architecture, whose kernels may be packed), else the
    system's. None where there is no such folder.
    """
    package = Path(torch.__file__).parent
    site = package.parent
    folders = [package / "lib/rocblas/library", *site.glob("_rocm_sdk_*/lib/rocblas/library")]
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
    names += [path.name for path in site.glob("rocm_sdk_device_gfx*.dist-info")]
    if not names and torch.version.hip:
        own = Path(os.environ.get("ROCM_PATH") or "/opt/rocm") / "lib/rocblas/library"
        names = [path.name for path in own.iterdir()] if own.is_dir() else []
    return sorted(set(re.findall(r"gfx[0-9a-f]+", " ".join(names)))) if names else None


def _devices() -> Facts:
    import torch

    if not torch.cuda.is_available():
        return {"available": False, "devices": [], "peers": []}
    from constants_iisft import bus_of

    count = torch.cuda.device_count()
    devices = []
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        arch = (
            getattr(about, "gcnArchName", "").split(":")[0]
            if torch.version.hip
            else f"sm_{about.major}{about.minor}"
        )
        devices.append(
            {
                "name": about.name,
                "arch": arch,
                "memory_gib": round(about.total_memory / 2**30, 2),
                "bus": bus_of(about),
            }
        )
    peers = [
        [one, other]
        for one in range(count)
        for other in range(count)
        if one != other and torch.cuda.can_device_access_peer(one, other)
    ]
    return {"available": True, "devices": devices, "peers": peers}


def _bitsandbytes() -> Facts:
    """GPU architectures that the ROCm libraries of bitsandbytes name; None where it has none."""
    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return {"rocm_archs": None}
    folder = Path(spec.origin).parent
    libraries = list(folder.glob("libbitsandbytes_rocm*.so"))
    if not libraries:
        return {"rocm_archs": None}
    found = {
        name.decode()
        for path in libraries
        for name in re.findall(rb"gfx[0-9a-f]{3,4}", path.read_bytes())
    }
    return {"rocm_archs": sorted(found)}


if __name__ == "__main__":
    main(float(sys.argv[1]))
