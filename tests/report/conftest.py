"""A run with curves, a restart, findings, and predictions that try to be script."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from iisft.runs.record.folder import RunFolder

EVIL = (
    '</script><script>window.owned = 1</script><img src=x onerror="window.owned = 2">\'"`${1}\u2028'
)


def events() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"time": 1000.0, "kind": "state", "state": "running", "from_step": 0}
    ]
    for step in range(1, 41):
        loss: Any = "nan" if step == 30 else round(3 / step + 0.2, 4)
        found.append(
            {
                "time": 1000.0 + 5 * step + (60 if step > 25 else 0),
                "kind": "metrics",
                "step": step,
                "total_steps": 40,
                "loss": loss,
                "learning_rate": 1e-5 * step,
                "grad_norm": 2.0,
                "step_s": 5.0,
                "vram_allocated_gib": 19.5,
            }
        )
        if step == 20:
            found.append(
                {
                    "time": 1101.0,
                    "kind": "metrics",
                    "step": 20,
                    "total_steps": 40,
                    "eval_loss": 0.61,
                }
            )
            found.append({"time": 1101.5, "kind": "checkpoint", "step": 20})
        if step == 25:
            message = "rank 1 was killed (SIGKILL); again in 5 s"
            found.append(
                {"time": 1130.0, "kind": "state", "state": "restarting", "message": message}
            )
            found.append({"time": 1170.0, "kind": "state", "state": "running", "from_step": 20})
            found.append(
                {"time": 1175.0, "kind": "redone", "step": 21, "total_steps": 40, "loss": 9.0}
            )
        if step == 33:
            text = {
                "id": "gpu-throttled",
                "severity": "warn",
                "message": f"GPU 1 throttles {EVIL}",
                "fix": "cool it",
            }
            found.append({"time": 1250.0, "kind": "finding", **text})
    return found


def predictions(wrong: int) -> list[dict[str, Any]]:
    """24 rows: the first ones wrong, the last but one an error, the last one broken JSON."""
    rows = []
    for i in range(24):
        reference = {"keep": i % 2 == 0, "place": "利马 Lima", "why": f"reason {i} {EVIL}"}
        answer = reference | ({"keep": i % 2 == 1, "place": "北京"} if i < wrong else {})
        rows.append(
            {
                "row": i + 1,
                "prompt": f"bulletin {i} {EVIL}",
                "reference": json.dumps(reference, ensure_ascii=False),
                "prediction": json.dumps(answer, ensure_ascii=False) if i < 23 else '{"keep": tru',
                "error": None,
                "stop": "eos",
                "source": f"情报 {EVIL}" if i % 3 else "chat",
            }
        )
    rows[22] |= {"prediction": "", "error": f"CUDA out of memory {EVIL}"}
    return rows


def make_run(name: str, wrong: dict[str, int]) -> RunFolder:
    """A finished run whose checkpoints have predicted, each with so many wrong answers."""
    folder = RunFolder(Path(os.environ["IISFT_HOME"]) / "runs" / name)
    (folder.path / "predictions").mkdir(parents=True)
    record = {
        "id": name,
        "created": 1000.0,
        "preset_name": "mi50",
        "preset": {"summary": f"a preset {EVIL}", "train": {"learning_rate": 1e-5, "epochs": 3}},
        "expected": {"world_size": 2, "arithmetic": "float32"},
        "observed": {"world_size": 2, "arithmetic": "float32", "global_batch": 64, "rows": 1000},
        "model": {
            "id": "Qwen/Qwen2.5-7B-Instruct",
            "architecture": "Qwen2ForCausalLM",
            "parameters": 7615616512,
        },
        "data": [{"name": "情报", "rows": 1000, "sha256": "ab" * 32}],
        "gpus": ["gfx906", "gfx906"],
        "packages": {"torch": "2.7.1+rocm6.3"},
    }
    folder.record.write_text(json.dumps(record))
    folder.exit.write_text(
        json.dumps({"state": "finished", "reason": "all 40 steps", "ended": 1300.0})
    )
    folder.events.write_text(
        "".join(json.dumps(event) + "\n" for event in events()) + '{"time": 1, "kin'
    )
    for checkpoint, count in wrong.items():
        file = folder.path / "predictions" / f"情报 val@{checkpoint}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions(count))
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def run() -> RunFolder:
    return make_run("跑 <b>1", {"20": 10, "final": 4, "base": 24})
