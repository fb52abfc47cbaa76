"""Small computations on every GPU, in child processes with time limits.

On the CPU where there is none.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from iisft import process
from iisft.llamafactory.capabilities import last_moments
from iisft.llamafactory.environment import gpu_order
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.doctor.engine import SMALLEST_GIB, Case

_SCRIPT = Path(__file__).parents[2] / "child" / "deep_checks.py"
_LIMIT_S = 60
_START_S = 120.0  # to import torch
# the child ends a late check itself, 15 s after its limit; the parent only one that can't be
_LEEWAY_S = 20.0
_DTYPES = ("float32", "float16", "bfloat16")
_SHARE_OF_MEMORY = 0.9
_SHARE_WITHOUT_PRESET = 0.5
_CPU_GIB = 1.0


def checks(case: Case) -> list[dict[str, Any]]:
    """What to compute for this case: each GPU by itself, each pair, then all of them together.

    Else the CPU.
    """
    found = _of_gpus(case) if case.gpus else _of_the_cpu()
    return [{**one, "limit_s": _LIMIT_S} for one in found]


def _of_the_cpu() -> list[dict[str, Any]]:
    cpu = {"device": "cpu"}
    return [
        *({"check": "matmul", **cpu, "dtype": dtype, "n": 512} for dtype in _DTYPES),
        {"check": "memory", **cpu, "wanted_gib": _CPU_GIB},
        {"check": "copy", "source": "cpu", **cpu, "mib": 64},
        {"check": "sdpa", **cpu},
        {"check": "all-reduce", "backend": "gloo", "world": 2, "mib": 16},
    ]


def _of_gpus(case: Case) -> list[dict[str, Any]]:
    gpus = _as_torch_counts(case)
    found: list[dict[str, Any]] = []
    for index, memory_gib in gpus:
        device = f"cuda:{index}"
        found += [
            {"check": "matmul", "device": device, "dtype": dtype, "n": 2048} for dtype in _DTYPES
        ]
        found += [
            {
                "check": "memory",
                "device": device,
                "wanted_gib": round(_wanted_gib(case, memory_gib), 2),
            }
        ]
        found += [{"check": "copy", "source": "cpu", "device": device, "mib": 256}]
        found += [{"check": "copy", "source": device, "device": "cpu", "mib": 256}]
        found += [{"check": "sdpa", "device": device}]
    for (one, _), (other, _) in combinations(gpus, 2):
        found.append(
            {"check": "copy", "source": f"cuda:{one}", "device": f"cuda:{other}", "mib": 256}
        )
    if len(gpus) > 1:
        devices = [index for index, _ in gpus]
        found.append(
            {
                "check": "all-reduce",
                "backend": "nccl",
                "world": len(gpus),
                "devices": devices,
                "mib": 64,
            }
        )
    return found


def _as_torch_counts(case: Case) -> list[tuple[int, float]]:
    """Index and memory of the GPUs that would train, in torch's order.

    The kernel's where torch told none.
    """
    told = case.machine.capabilities.devices if case.machine.capabilities else None
    sizes = [float(one.get("memory_gib", 0.0)) for one in told or []] or [
        gpu.memory_gib for gpu in case.gpus
    ]
    large = [(index, size) for index, size in enumerate(sizes) if not 0 < size < SMALLEST_GIB]
    return large[: case.ranks or len(large)]


def _wanted_gib(case: Case, memory_gib: float) -> float:
    """What the plan says that the preset takes; else most of its card.

    Without a preset half of the card.
    """
    if case.need_gib:
        return case.need_gib
    if case.preset is not None and case.preset.hardware.memory_gib:
        return case.preset.hardware.memory_gib * _SHARE_OF_MEMORY
    return (memory_gib or 2.0) * _SHARE_WITHOUT_PRESET


def sound(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a file of results says, without what can't be one: a file that a person sent may hold
    anything.
    """
    results = document.get("results") if document else None
    if not isinstance(results, list):
        return None
    kept = [
        {name: value for name, value in one.items() if _FIELDS.get(name, _any)(value)}
        for one in results
        if isinstance(one, dict) and isinstance(one.get("check"), str)
    ]
    return {"date": str((document or {}).get("date", "")), "results": kept}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _any(value: Any) -> bool:
    return True


_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("tflops", "gbps", "gib", "wanted_gib"), _number),
    "off": lambda value: value is None or _number(value),
    "transports": lambda value: (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    ),
    **dict.fromkeys(
        ("died", "error", "said", "device", "dtype"), lambda value: isinstance(value, str)
    ),
}


def run(
    interpreter: Interpreter, wanted: list[dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Do the checks; one that aborts or hangs costs only itself. Never raises.

    Returns:
        {"date": ..., "results": [{"check": ..., "device": ..., and what was found, "error" or
        "died"}, ...]}
    """
    say(f"{len(wanted)} checks in child processes, each with a limit of a minute")
    results: list[dict[str, Any]] = []
    while len(results) < len(wanted):
        remaining = wanted[len(results) :]
        done, death = _child(interpreter, remaining)
        results += [{**spec, **facts} for spec, facts in zip(remaining, done, strict=False)]
        if death is None:
            break
        here = remaining[len(done)]
        results.append({**here, **death})
        if not death.get("begun"):  # it dies before any check: so it would at the next
            results += [{**spec, **death} for spec in remaining[len(done) + 1 :]]
    for result in results:
        result.pop("begun", None)
    return {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "results": results}


def _child(
    interpreter: Interpreter, specs: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """What the checks found in order, and how the child died before the last."""
    argv = [str(interpreter.path), str(_SCRIPT), json.dumps(specs)]
    limit = _START_S + sum(spec["limit_s"] + _LEEWAY_S for spec in specs)
    silence = max(_START_S, *(spec["limit_s"] + _LEEWAY_S for spec in specs))
    try:
        ended = process.run(argv, timeout_s=limit, silence_s=silence, env=gpu_order(os.environ))
        stdout, stderr, code = ended.stdout, ended.stderr, ended.returncode
    except process.RanTooLong as late:
        stdout, stderr, code = late.stdout, late.stderr, None
    except OSError as error:
        return [], {"died": "did not start", "said": str(error)}
    done: list[dict[str, Any]] = []
    begun = False
    for line in stdout.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        begun = "begin" in document
        if document.pop("done", None) is not None:
            done.append(document)
    if len(done) == len(specs):
        return done, None
    return done, {**last_moments(code, stderr), "begun": begun}
