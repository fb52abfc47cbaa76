"""The text model alone, out of a folder with a vision tower: it answers as the whole model does, is
trained as any other, and goes back into the whole.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from harness import HERE, WAYS, Batch, make_view, run_python

from helpers import TEXT_PARTS
from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.runs.record.proof import Expected, Observed, differences

pytestmark = pytest.mark.slow

TRAINED = ("gemma3-vision", "gemma4-vision", "ministral3-vision", "qwen3_5-vision")
COMPARED = {
    **TEXT_PARTS,
    "mistral-vision": ("MistralForCausalLM", "Mistral3ForConditionalGeneration"),
}
RESUMED = "{} resumed"
SHARED = "gemma4-shared"


@pytest.fixture(scope="module")
def trained(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Batch]:
    """Each family over its stored weights, resumed at step 3 too, and over float32 ones."""
    batches = {}
    for way in ("exact", "float32"):
        batch = Batch(tmp_path_factory.mktemp("text parts") / way)
        for name in TRAINED:
            view = make_view(
                models / name / "model", batch.folder / "views" / name / "model", *WAYS[way]
            )
            more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
            batch.add(name, view, models / "data", **more)
            if way == "exact":
                more["resume_from_checkpoint"] = str(batch.folder / name / "checkpoint-3")
                batch.add(RESUMED.format(name), view, models / "data", **more)
        if way == "exact":
            add_shared(batch, models)
        batches[way] = batch.run()
    return batches


def add_shared(batch: Batch, models: Path) -> None:
    """With and without gradient checkpointing."""
    for case, recomputed in ((SHARED, True), (f"{SHARED} kept", False)):
        model, start = models / SHARED / "model", models / SHARED / "start"
        view = make_view(model, batch.folder / "views" / case / "model", *WAYS["exact"])
        more = {"disable_gradient_checkpointing": not recomputed}
        batch.add(case, view, models / "data", adapter_name_or_path=str(start), **more)


@pytest.fixture(scope="module")
def compared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("with tower")
    request = []
    for name in COMPARED:
        model = models / name / "model"
        request.append(
            {
                "name": name,
                "model": str(model),
                "view": str(make_view(model, folder / name / "model", *WAYS["float32"])),
                "adapter": str(models / name / "start"),
                "stored": "bfloat16",
                "part": inspect_checkpoint(model).part,
                "target": str(folder / name / "merged"),
            }
        )
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    done = run_python(HERE / "ask_text_parts.py", folder / "request.json", folder=folder)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", COMPARED)
def test_it_answers_as_the_whole_model_and_goes_back_into_it(
    compared: dict[str, dict[str, Any]], name: str
) -> None:
    found = compared[name]
    changed = found.pop("changed")
    assert found == {
        "name": name,
        "report": {
            "missing_keys": 0, "unexpected_keys": 0, "mismatched_keys": 0, "error_msgs": 0,
        },
        "same": True,
        "exported": [0, 0],
        "class": COMPARED[name][1],
        "as merged": True,
        "dtypes": True,
        "names": True,
    }  # fmt: skip
    towers = ("vis", "projector", "connector", "newline")
    assert changed and not any(word in one for one in changed for word in towers)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_over_stored_weights_it_equals_float32_weights(
    trained: dict[str, Batch], name: str
) -> None:
    exact, float32 = (trained[way].result(name) for way in ("exact", "float32"))
    assert exact == float32
    (line,) = trained["exact"].lines[name]
    assert line["class"] == TEXT_PARTS[name][0]
    assert line["loaded"] == {"missing": [0], "unexpected": [0], "mismatched": [0]}
    assert list(line["products"]) == ["float32"] and "bfloat16" in line["weights"]
    expected = Expected("bfloat16", "float32", None, "eager", "float32", 1, 4, None)
    observed = Observed({0: line}, {"global_batch": 4})
    assert differences(expected, observed, 1, is_first_node=True) == []


@pytest.mark.parametrize("name", TRAINED)
def test_resumed_it_equals_the_uninterrupted_run(trained: dict[str, Batch], name: str) -> None:
    exact = trained["exact"]
    assert exact.result(RESUMED.format(name)) == exact.result(name)


def test_shared_keys_and_values_get_their_gradients_through_checkpointing(
    trained: dict[str, Batch],
) -> None:
    """Reentrant checkpointing, LLaMA-Factory's, loses those of the layers that share them."""
    assert trained["exact"].result(SHARED) == trained["exact"].result(f"{SHARED} kept")
