"""Through LLaMA-Factory: float32 arithmetic over stored weights equals float32 weights, bit for
bit.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import WAYS, Batch, make_view

from helpers import UNTRACED
from iisft.models.view.build import restore_base_model_name

pytestmark = pytest.mark.slow

ARCHITECTURES = {
    "qwen2-tied": "Qwen2ForCausalLM",
    "qwen2-untied": "Qwen2ForCausalLM",
    "qwen2-fp16": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama-tied": "LlamaForCausalLM",
    "llama-untied": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
    "qwen3_5": "Qwen3_5ForCausalLM",
}
SOFTMAXES = {"qwen3_5": 1}  # a gated delta layer has none
RESUMED = "qwen3"
FRESH = "fresh adapter"


def add_case(
    batch: Batch, models: Path, name: str, way: tuple[str, str] | None, case: str = "", **more: Any
) -> None:
    """All views are folders named `model`, and so share one slot in transformers' module cache."""
    model = models / name / "model"
    case = case or name
    if way is not None:
        model = make_view(model, batch.folder / "视 图" / case / "model", *way)
    start = {"adapter_name_or_path": str(models / name / "start")}
    batch.add(case, model, models / "data", **{**start, **more})


@pytest.fixture(scope="module")
def ways(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Batch]:
    """Every architecture, one process for each way."""
    batches = {}
    for way, choice in WAYS.items():
        batch = Batch(tmp_path_factory.mktemp("ways") / f"{way} 运行")
        for name in ARCHITECTURES:
            add_case(batch, models, name, choice)
        if way != "plain":
            saving = {"save_strategy": "steps", "save_steps": 3, "adapter_name_or_path": None}
            add_case(batch, models, RESUMED, choice, FRESH, **saving)
        batches[way] = batch.run(**UNTRACED if way != "exact" else {})
    return batches


def names_of_base(folder: Path) -> str:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"])


@pytest.fixture(scope="module")
def resumed(
    ways: dict[str, Batch], models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Batch:
    """The run with a fresh adapter again, from step 3, after the base model's name was restored
    there.
    """
    batch = Batch(tmp_path_factory.mktemp("resumed"))
    checkpoint = batch.folder / "from" / "checkpoint-3"
    view = ways["exact"].folder / "视 图" / FRESH / "model"
    shutil.copytree(ways["exact"].folder / FRESH / "checkpoint-3", checkpoint)
    shutil.copy(ways["exact"].folder / FRESH / "README.md", checkpoint.parent)
    assert names_of_base(checkpoint) == str(view)
    restore_base_model_name(checkpoint.parent, view, "owner/the-real-base")
    assert names_of_base(checkpoint) == "owner/the-real-base"
    for card in (checkpoint / "README.md", checkpoint.parent / "README.md"):
        text = card.read_text(encoding="utf-8")
        assert "base_model: owner/the-real-base\n" in text and str(view) not in text
    more = {"resume_from_checkpoint": str(checkpoint), "adapter_name_or_path": None}
    add_case(batch, models, RESUMED, WAYS["exact"], FRESH, **more)
    return batch.run()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stored_weights_in_float32_arithmetic_equal_float32_weights(
    ways: dict[str, Batch], name: str
) -> None:
    exact, float32, plain = (ways[way].result(name) for way in WAYS)
    assert len(exact["logged"]) == 6
    assert exact["logged"] == float32["logged"]
    assert exact["adapter"] == float32["adapter"]
    assert {dtype for dtype, _ in exact["adapter"].values()} == {"F32"}
    assert plain["logged"][0] != exact["logged"][0], "the toy would not show bf16 arithmetic"
    assert plain["adapter"] != exact["adapter"]


# [sliding window, keys that a row's last token sees, later keys that its middle one sees, layers]
REACHES = {
    "mistral": [[32, 32, 0, 2]],
    "gemma2": [[32, 32, 0, 1], [None, 96, 0, 1]],
    "gemma3": [[32, 32, 0, 2]],
    "gemma4": [[32, 32, 0, 1], [None, 96, 0, 1]],
    "qwen3_5": [[None, 96, 0, 1]],
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_proof_says_what_ran(ways: dict[str, Batch], name: str) -> None:
    (exact,), (float32,) = ways["exact"].lines[name], ways["float32"].lines[name]
    common = {
        "rank": 0,
        "world_size": 1,
        "local_rank": 0,
        "class": ARCHITECTURES[name],
        "autocast": None,
        "attention": "eager",
        "attention_dtype": "float32",
        "linear_dtype": "float32",
        "device": "cpu",
        "cards": None,
        "float32_matmul_precision": "highest",
        "trainable_parameters": exact["trainable_parameters"],
        "layers_kept": 0,
        "logit_positions": exact["logit_positions"],
    }
    for name_of_line in (
        "loaded", "adapted", "adapter", "softcap", "capped", "first_batch", "left_out", "packed",
        "reach",
    ):  # fmt: skip
        common[name_of_line] = exact[name_of_line]
    assert exact["reach"] == {"tokens": 96, "layers": REACHES.get(name, [[None, 96, 0, 2]])}
    assert exact["loaded"] == {"missing": [0], "unexpected": [0], "mismatched": [0]}
    assert exact["capped"] == (exact["softcap"] is not None) == (name == "gemma2")
    kernels = {"sdpa": 0, "eager": SOFTMAXES.get(name, 2), "eager_blocks": 0}
    assert exact["kernels"] == kernels == float32.pop("kernels")
    assert list(exact.pop("products")) == list(float32.pop("products")) == ["float32"]
    del exact["kernels"]
    number = sum(exact["weights"].values())
    kept = {"float32": 8 + 4} if name == "qwen3_5" else {}  # one layer's norm and decay
    stored = "float16" if name.endswith("fp16") else "bfloat16"
    assert exact == {
        **common,
        "arithmetic": "float32",
        "weights": {stored: number - sum(kept.values()), **kept},
    }
    assert float32 == {**common, "arithmetic": "native", "weights": {"float32": number}}
    assert ways["plain"].lines[name] == []
    trained = sum(len(raw) // 4 for _, raw in ways["exact"].result(name)["adapter"].values())
    assert exact["trainable_parameters"] == trained


def test_a_fresh_adapter_starts_from_the_float32_draw(ways: dict[str, Batch]) -> None:
    """peft rounds it to the dtype of stored weights; then a run differs from its second step on."""
    exact, float32 = (ways[way].result(FRESH) for way in ("exact", "float32"))
    assert exact == float32


def test_resumed_equals_uninterrupted(ways: dict[str, Batch], resumed: Batch) -> None:
    whole, rest = ways["exact"].result(FRESH), resumed.result(FRESH)
    # the trainer's state brings the first three steps along
    assert rest["logged"] == whole["logged"]
    assert rest["adapter"] == whole["adapter"]
    steps = (resumed.folder / FRESH / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["current_steps"] for line in steps if "loss" in line] == [4, 5, 6]
    assert [line["arithmetic"] for line in resumed.lines[FRESH]] == ["float32"]


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["checkpointing off", "sdpa", "both"])
def test_full_matrix(models: Path, tmp_path: Path, way: str) -> None:
    switches: dict[str, Any] = {}
    if way != "sdpa":
        switches["disable_gradient_checkpointing"] = True
    if way != "checkpointing off":
        switches["flash_attn"] = "sdpa"
    batches = []
    for choice in ("exact", "float32"):
        batch = Batch(tmp_path / choice)
        for name in ARCHITECTURES:
            add_case(batch, models, name, WAYS[choice], **switches)
        batches.append(batch.run())
    exact, float32 = batches
    assert ("Gradient checkpointing enabled." in exact.log) == (way == "sdpa")
    for name in ARCHITECTURES:
        assert exact.result(name) == float32.result(name), name
        expected = "eager" if way == "checkpointing off" else "sdpa"
        assert [line["attention"] for line in exact.lines[name]] == [expected], name


@pytest.mark.matrix
def test_the_optimizer_must_be_named_on_both_sides(models: Path, tmp_path: Path) -> None:
    """Why presets name `adamw_torch`: transformers' default is the fused one, whose last bits
    differ.
    """
    batch = Batch(tmp_path)
    add_case(batch, models, "qwen3", WAYS["exact"], "named")
    add_case(batch, models, "qwen3", WAYS["exact"], "fused", optim="adamw_torch_fused")
    batch.run()
    assert batch.result("named")["adapter"] != batch.result("fused")["adapter"]
