"""Through LLaMA-Factory: steps that recompute less, and logits where they are trained."""

from array import array
from pathlib import Path
from typing import Any

import pytest
from harness import Batch, make_view

MODELS = ("qwen2-tied", "gemma2")
# layers that carry a state, and such that take keys and values of earlier ones
SEVERAL_KINDS = ("qwen3_5", "gemma4", "gemma4-shared")
KEPT = ("recompute all", "one layer kept", "both layers kept")
DTYPES = {"float32 over stored": ("fp32", "stored"), "bf16": ("bf16", "stored")}
STEPS: dict[str, dict[str, Any]] = {
    "recompute all": {},
    "one layer kept": {"iisft_layers_kept": 1},
    "both layers kept": {"iisft_layers_kept": 2},
    "logits where trained": {"iisft_logits": "trained"},
    "both": {"iisft_layers_kept": 2, "iisft_logits": "trained"},
    "in chunks": {"iisft_layers_kept": 1, "iisft_logits": "trained", "iisft_logits_chunk": 7},
}
# The loss of a step is a sum in another order: it differs in its last digits (float32 has 1.2e-7).
LOSS_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def batch(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Every model, dtype and step, in one process."""
    batch = Batch(tmp_path_factory.mktemp("steps") / "运行 steps")
    for dtype, way in DTYPES.items():
        for name in (*MODELS, *SEVERAL_KINDS):
            for step, keys in STEPS.items():
                if name in SEVERAL_KINDS and step not in KEPT:
                    continue
                case = f"{dtype} {name} {step}"
                folder = batch.folder / "views" / case.replace(" ", "-") / "model"
                view = make_view(models / name / "model", folder, *way, **keys)
                more = {"bf16": True} if dtype == "bf16" else {}
                start = {"adapter_name_or_path": str(models / name / "start")}
                batch.add(case, view, models / "data", **start, **more)
    return batch.run()


@pytest.mark.parametrize("name", (*MODELS, *SEVERAL_KINDS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", KEPT[1:])
def test_kept_layers_change_no_bit(batch: Batch, dtype: str, name: str, step: str) -> None:
    whole, kept = (batch.result(f"{dtype} {name} {one}") for one in ("recompute all", step))
    assert kept["logged"] == whole["logged"]
    assert kept["adapter"] == whole["adapter"]
    (line,) = batch.lines[f"{dtype} {name} {step}"]
    assert line["layers_kept"] == STEPS[step]["iisft_layers_kept"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", ["logits where trained", "both", "in chunks"])
def test_logits_where_they_are_trained(batch: Batch, dtype: str, name: str, step: str) -> None:
    whole, less = (batch.result(f"{dtype} {name} {one}") for one in ("recompute all", step))
    for before, after in zip(whole["logged"], less["logged"], strict=True):
        assert after == pytest.approx(before, rel=LOSS_TOLERANCE)
    for name_of, (kind, raw) in whole["adapter"].items():
        before, after = array("f", raw), array("f", less["adapter"][name_of][1])
        assert kind == "F32" and max(map(abs, before)) > 0
        assert after == pytest.approx(before, rel=1e-5, abs=1e-6 * max(map(abs, before)))
    (line,) = batch.lines[f"{dtype} {name} {step}"]
    made, all_positions = line["logit_positions"]
    assert 0 < made < all_positions
