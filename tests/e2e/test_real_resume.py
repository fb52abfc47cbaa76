"""What was interrupted and resumed equals what was never interrupted, bit for bit, with the real
LLaMA-Factory.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import until
from iisft import process
from iisft.models.folder.adapter import read_adapter
from iisft.runs.record.checkpoints import SEAL, checkpoints, eval_losses
from iisft.runs.record.folder import RunFolder

pytestmark = pytest.mark.slow

CLI = Callable[..., Any]


def curve(folder: RunFolder) -> dict[int, tuple[float, float]]:
    """Step -> loss and grad_norm; that of a step that was done again must be the same again."""
    found: dict[int, tuple[float, float]] = {}
    for event in folder.read_events():
        if event["kind"] in ("metrics", "redone") and "loss" in event:
            seen = (event["loss"], event["grad_norm"])
            assert found.setdefault(event["step"], seen) == seen, event
    return found


def best_and_newest(folder: RunFolder, ranks: int) -> list[int]:
    """The checkpoints of a run with two to keep, of which the best is the older one."""
    losses = eval_losses(folder.read_events())
    kept = [saved.step for saved in checkpoints(folder.output, ranks)]
    assert kept[0] == min(losses, key=lambda step: losses[step]), losses
    return kept


def kill_everything(folder: RunFolder) -> None:
    process.kill([json.loads(folder.processes.read_text())["supervisor"]["pid"]])
    process.kill_run(folder.marker)


@pytest.mark.parametrize(("ranks", "interrupt", "steps"), [(1, "kill -9", 60), (2, "stop", 60)])
def test_the_resumed_run_is_the_uninterrupted_one(
    ranks: int,
    interrupt: str,
    steps: int,
    iisft: CLI,
    train: CLI,
    workspace: Path,
    tiny_models: Path,
) -> None:
    # what is trained makes other letters less likely, so that the first checkpoint is the best
    others = workspace / "others.jsonl"
    row = {"instruction": "QZXW", "input": "", "output": "QQZZXXWWVV" * 3}
    others.write_text(f"{json.dumps(row)}\n" * 2)
    assert iisft("data", "stage", str(others), "--name", "others").code == 0
    values = (f"train.max_steps={steps}", "save.every_steps=7", "save.eval_every_steps=7",
              "data.eval=others", "save.best=true", "save.keep=2",
              "train.learning_rate=0.01")  # fmt: skip
    size = [part for value in values for part in ("--set", value)]
    start = tiny_models / "qwen2-tied" / "start" if interrupt == "kill -9" else None
    if start is not None:  # from an adapter that exists: a resume must not load that again
        lora = ("rank=8", "alpha=16", f"start={start}")
        size += [part for value in lora for part in ("--set", f"lora.{value}")]
    whole, part = (RunFolder(workspace / "runs" / name) for name in ("whole", "part"))
    assert train(*size, name="whole", gpus=ranks).code == 0
    assert train(*size, "--detach", name="part", gpus=ranks).code == 0
    if interrupt == "stop":
        until(lambda: curve(part))
        assert iisft("stop", "part").code == 0
    else:
        until(lambda: any(part.output.glob(f"checkpoint-*/{SEAL}")))
        kill_everything(part)
    assert len(curve(part)) < steps
    resumed = iisft("resume", "part")
    assert resumed.code == 0, resumed.err[-3000:]
    assert "goes on from checkpoint-" in resumed.err
    assert curve(part) == curve(whole)
    adapters = [folder.output / "adapter_model.safetensors" for folder in (whole, part)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert best_and_newest(part, ranks) == best_and_newest(whole, ranks)
    observed = [json.loads(folder.record.read_text())["observed"] for folder in (part, whole)]
    if start is not None:
        expected = json.loads(whole.record.read_text())["expected"]["adapter"]
        assert observed[1]["adapter"] == expected == read_adapter(start).digest
        assert observed[0]["adapter"] != expected
    # a resume begins with another row and the adapter of its checkpoint
    of_row = ("adapter", "first_batch", "logit_positions", "reach")
    batches = [[one.pop(name) for name in of_row] for one in observed]
    assert observed[0] == observed[1] and all(map(all, batches))
    assert observed[0]["layers_kept"] == 2  # all: mi50 says gradient_checkpointing: fit
