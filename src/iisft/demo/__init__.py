"""The demo's model and data: everything `iisft train --preset demo` needs, without a network."""

from pathlib import Path

_HERE = Path(__file__).parent

PRESET = "demo"
MODEL_ID = "iisft/demo-qwen2"
DATASET = "demo"
TRAIN_ROWS = _HERE / "triage.jsonl"
EVAL_ROWS = _HERE / "triage_eval.jsonl"
BUILD_SCRIPT = _HERE.parent / "child" / "build_demo_model.py"
