"""Traces the memory of one real training step, with the trainer's code on data-free tensors.

Runs in the training interpreter: python trace_step.py [CASES]. A JSON list of cases (see `trace`)
is the argument or standard input; standard output has one JSON line per case. Every tensor is fake
(torch's FakeTensorMode): shapes and dtypes are real, but no number is computed and no weight read,
so that a laptop can trace a 70B model.

It counts the live bytes of tensor storages, each rounded up to 512 bytes as in torch's CUDA
allocator: what torch.cuda.max_memory_allocated counts. Not seen: workspaces inside kernels,
communication buffers, fragmentation, the CUDA or HIP context. The first AdamW step is done before
the trace, because its moments exist from the second step on.
"""

import contextlib
import json
import os
import sys
import time

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""

from typing import Any

import torch
from live_bytes import LiveBytes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint  # noqa: F401 - loaded before any mode is active
from traced_model import (
    DTYPES,
    Case,
    build,
    cuda_dropout,
    inputs_for,
    label_some,
    materialize,
    optimizer_for,
    own_operations,
    real_dropout,
    shard,
)


def trace(case: Case) -> dict[str, Any]:
    """Peak bytes of one step, by phase, and what they consist of at the worst moment.

    `case`: config (config.json's content), weights (torch dtype of the base), arithmetic ("native"
    or "float32" over stored weights), autocast (torch dtype or null), attention ("eager",
    "eager_blocks", "math", "efficient", "flash"), batch, length (tokens per row), checkpointing,
    rank, dropout, target (names separated by commas, or "all"), optimizer. May be left out:
    sharding ("none" or "fsdp"), ranks, layers_kept, logits ("all" or "trained"), positions (with
    logits, of each row), chunk (of positions; all three as in step_iisft.py). DDP's buckets are in
    no trace.
    """
    started = time.perf_counter()
    sharded = case.get("sharding") == "fsdp"
    # accelerate and LLaMA-Factory read them to recognise FSDP2
    os.environ.update({"ACCELERATE_USE_FSDP": str(sharded).lower(), "FSDP_VERSION": "2"})
    model = build(case)
    label_some(case.get("positions"))
    if sharded and case["autocast"]:
        model.to(torch.float32)  # accelerate does so after sharding; the shards are the same
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    materialize(model, fake_mode)
    if sharded:
        shard(model, fake_mode, case)
    memory = LiveBytes(own_operations())
    _follow_weights(model, memory)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    functional.dropout = cuda_dropout
    with fake_mode, memory:
        optimizer = optimizer_for(case["optimizer"], trainable)
        _first_step(optimizer, trainable, memory)
        for parameter in trainable:
            parameter.register_post_accumulate_grad_hook(lambda p: memory.add(p.grad, "gradients"))
        _note_head(model, memory)
        _traced_step(model, case, optimizer, trainable, memory)
    functional.dropout = real_dropout
    phase, kinds = memory.at_peak
    return {
        "peak": memory.peaks[phase],
        "phase": phase,
        "phases": memory.peaks,
        "parts": kinds,
        "trainable": sum(p.numel() for p in trainable),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _follow_weights(model: Any, memory: LiveBytes) -> None:
    kinds = {True: "adapter", False: "weights"}
    for parameter in model.parameters():
        memory.add(parameter, kinds[parameter.requires_grad])
    for buffer in model.buffers():
        memory.add(buffer, "weights")


def _first_step(optimizer: Any, trainable: list[torch.nn.Parameter], memory: LiveBytes) -> None:
    """The optimizer's moments are made in its first step and are there from then on."""
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                memory.add(value, "optimizer")


def _traced_step(
    model: Any,
    case: Case,
    optimizer: Any,
    trainable: list[torch.nn.Parameter],
    memory: LiveBytes,
) -> None:
    from accelerate.utils.operations import convert_outputs_to_fp32

    dtype = DTYPES["float32"] if case["arithmetic"] == "float32" else DTYPES[case["weights"]]
    inputs = inputs_for(model, case, dtype)
    memory.begin("forward")
    if case["autocast"] is not None:  # as accelerate does
        autocast = torch.autocast("cpu", dtype=DTYPES[case["autocast"]])
        model.forward = convert_outputs_to_fp32(autocast(model.forward))
    loss = model(**inputs, num_items_in_batch=torch.tensor(1)).loss
    memory.enter("loss backward")
    loss.backward()
    del loss
    memory.enter("optimizer")
    if case.get("sharding") != "fsdp":
        torch.nn.utils.clip_grad_norm_(trainable, 1.0, foreach=True)
    optimizer.step()
    memory.enter("end")
    optimizer.zero_grad()


def _note_head(model: Any, memory: LiveBytes) -> None:
    """Note when the head begins in forward and when its backward ends."""

    def before(module: Any, arguments: tuple[Any, ...]) -> None:
        memory.enter("loss")
        if arguments[0].requires_grad:
            arguments[0].register_hook(lambda gradient: memory.enter("backward"))

    model.get_output_embeddings().register_forward_pre_hook(before)


def main() -> None:
    real_stdout = os.dup(1)
    os.dup2(2, 1)  # the libraries print
    with os.fdopen(real_stdout, "w") as out:
        for case in json.loads(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read()):
            try:
                answer = trace(case)
            except Exception as error:
                functional.dropout = real_dropout
                if os.environ.get("IISFT_DEBUG") == "1":
                    raise
                answer = {"error": f"{type(error).__name__}: {error}"}
            out.write(json.dumps(answer) + "\n")
            out.flush()
            with contextlib.suppress(Exception):
                torch._dynamo.reset()


if __name__ == "__main__":
    main()
