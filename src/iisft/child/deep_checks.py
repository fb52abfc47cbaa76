"""Small computations that show whether a GPU (or the CPU) does what training needs.

Runs in the training interpreter: python deep_checks.py '[{"check": "matmul", "device": "cuda:0",
...}, ...]'. One JSON object per line: {"begin": INDEX} before a check, {"done": INDEX, ...facts}
after it. A check that aborts the process or exceeds its limit (faulthandler then ends it) leaves an
index begun and not done.
"""

import faulthandler
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

Spec = dict[str, Any]
Facts = dict[str, Any]

BUDGET_S = 0.3  # seconds of products per measurement


def main(specs: list[Spec]) -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(document: dict[str, Any]) -> None:
        channel.write(json.dumps(document) + "\n")
        channel.flush()

    for index, spec in enumerate(specs):
        say({"begin": index})
        faulthandler.dump_traceback_later(spec["limit_s"] + 15, exit=True)
        try:
            facts = CHECKS[spec["check"]](spec)
        except Exception as error:
            facts = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
        faulthandler.cancel_dump_traceback_later()
        say({"done": index, **facts})
    os._exit(0)


def matmul(spec: Spec) -> Facts:
    """TFLOP/s of n x n products, and whether a small one is right."""
    import torch

    device, dtype = torch.device(spec["device"]), getattr(torch, spec["dtype"])
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(256, 256, generator=generator)
    product = (small.to(device, dtype) @ small.to(device, dtype)).to("cpu", torch.float64)
    exact = small.to(dtype).double() @ small.to(dtype).double()
    off = ((product - exact).abs().max() / exact.abs().max()).item()
    if not off < 0.05:
        return {"error": f"wrong values: {off:.3g} from the exact product"}
    n = spec["n"]
    left = torch.randn(n, n, generator=generator).to(device, dtype)
    right = torch.randn(n, n, generator=generator).to(device, dtype)
    left @ right
    _wait(device)
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < BUDGET_S:
        left @ right
        _wait(device)
        count += 1
    return {"tflops": float(f"{2 * n**3 * count / spent / 1e12:.4g}")}


def memory(spec: Spec) -> Facts:
    """GiB that can be allocated and written, up to the amount wanted."""
    import torch

    device = torch.device(spec["device"])
    held: list[torch.Tensor] = []
    piece = min(1.0, spec["wanted_gib"])
    try:
        while len(held) * piece < spec["wanted_gib"] - 1e-6:
            held.append(torch.ones(int(piece * 2**30), dtype=torch.uint8, device=device))
        _wait(device)
    except RuntimeError as error:
        return {"gib": round(len(held) * piece, 2), "error": str(error).splitlines()[0][:300]}
    return {"gib": round(len(held) * piece, 2)}


def copy(spec: Spec) -> Facts:
    """GB/s from one device to the other, and whether the data arrives intact."""
    import torch

    source, target = torch.device(spec["source"]), torch.device(spec["device"])
    data = torch.randint(0, 256, (spec["mib"] * 2**20,), dtype=torch.uint8).to(source)
    if source.type == "cpu" and target.type != "cpu":
        data = data.pin_memory()
    arrived = data.to(target, copy=True)
    _wait(target)
    began = time.perf_counter()
    for _ in range(5):
        arrived = data.to(target, copy=True)
    _wait(target)
    spent = time.perf_counter() - began
    if not torch.equal(arrived.cpu(), data.cpu()):
        return {"error": "what arrived is not what was sent"}
    return {"gbps": float(f"{5 * data.numel() / spent / 1e9:.4g}")}


def sdpa(spec: Spec) -> Facts:
    """fp16 attention on scores beyond fp16's range, against eager attention in fp16 and float32."""
    import torch

    device = torch.device(spec["device"])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 128, 64, generator=generator) for _ in range(3))
    q, k = q * 150, k * 150  # q.k up to 1e6 before the scale, beyond fp16's 65504
    q, k, v = (one.to(device, torch.float16) for one in (q, k, v))

    def eager(a: Any, b: Any, c: Any) -> Any:
        scores = (a @ b.transpose(-1, -2)) / math.sqrt(64)
        return scores.softmax(dim=-1, dtype=torch.float32).to(c.dtype) @ c

    found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    exact = eager(q.float(), k.float(), v.float())
    off = (found.float() - exact).abs().max().item()
    return {
        "finite": bool(torch.isfinite(found).all()),
        "eager_finite": bool(torch.isfinite(eager(q, k, v)).all()),
        "off": round(off, 4) if math.isfinite(off) else None,
    }


def all_reduce(spec: Spec) -> Facts:
    """Start the ranks and give them 60 s: the bandwidth, or that they hang and what they said."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ranks.log"
        env = {**os.environ, "NCCL_DEBUG": "INFO"}
        with log.open("wb") as stream:
            ranks = [
                subprocess.Popen(
                    [sys.executable, __file__, "--rank", str(rank), json.dumps(spec), folder],
                    stdout=stream,
                    stderr=stream,
                    env=env,
                )
                for rank in range(spec["world"])
            ]
        deadline = time.monotonic() + spec["limit_s"]
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
            if any(rank.poll() for rank in ranks):
                break  # one failed: the others would wait for it
            time.sleep(0.05)
        late = [rank for rank in ranks if rank.poll() is None]
        failed = [rank.returncode for rank in ranks if rank.returncode]
        for rank in late:
            rank.kill()
        said = log.read_text(errors="replace")
        answer = Path(folder) / "answer.json"
        if failed:
            return {"died": f"a rank ended with {failed[0]}", "said": _complaint(said)}
        if late:
            return {"died": f"did not return within {spec['limit_s']} s", "said": _complaint(said)}
        transports = sorted(set(re.findall(r" via (P2P|SHM|NET)", said)))
        return {**json.loads(answer.read_text()), "transports": transports}


def _complaint(said: str) -> str:
    """The last warning, or the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    warnings = [line for line in lines if " WARN " in line or "Error" in line]
    return (warnings or lines or [""])[-1][:300]


def _rank(rank: int, spec: Spec, folder: str) -> None:
    import torch
    import torch.distributed as dist

    world, on_gpu = spec["world"], spec["backend"] == "nccl"
    device = torch.device("cuda", spec["devices"][rank]) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        spec["backend"],
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(hours=1),  # the parent ends ranks that hang
    )
    data = torch.ones(spec["mib"] * 2**18, device=device)
    dist.all_reduce(data)
    _wait(device)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(3):
        dist.all_reduce(data)
    _wait(device)
    spent = (time.perf_counter() - began) / 3
    if data[0].item() != float(world) ** 4:
        raise SystemExit(f"Error: the sum is {data[0].item()}, not {float(world) ** 4}")
    if rank == 0:
        gbps = data.numel() * 4 / spent / 1e9 * 2 * (world - 1) / world
        (Path(folder) / "answer.json").write_text(
            json.dumps({"gbps": float(f"{gbps:.4g}"), "gpus": on_gpu})
        )
    dist.barrier()
    os._exit(0)  # destroying a broken process group can hang


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


CHECKS = {"matmul": matmul, "memory": memory, "copy": copy, "sdpa": sdpa, "all-reduce": all_reduce}

if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        _rank(int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4])
    else:
        main(json.loads(sys.argv[1]))
