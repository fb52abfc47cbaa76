"""Every shipped preset, by the glob that the product uses: sound, explained, and compiled to a
train.yaml.
"""

from pathlib import Path

import pytest
import yaml

from iisft.llamafactory import explain
from iisft.llamafactory.arguments import compile_arguments
from iisft.presets import checking, documents
from iisft.workspace import Workspace

NAMES = sorted(path.stem for path in documents.shipped_presets_folder().glob("*.yaml"))


def load(name: str) -> checking.LoadedPreset:
    return checking.check(documents.read_document(name, Workspace.current()))


def test_the_presets_of_the_readmes_are_shipped() -> None:
    assert NAMES == [
        "ampere",
        "cuda-16g",
        "cuda-24g",
        "demo",
        "mi50",
        "mi50-14b",
        "mi50-14b-single",
        "mi50-8b",
        "mi50-8b-single",
        "mi50-9b",
        "mi50-9b-single",
        "mi50-fp16",
        "mi50-recorded",
        "p100",
        "p40",
        "qlora-24g",
        "t4",
        "v100",
    ]
    for readme in ("README.md", "README_zh.md"):
        text = (Path(__file__).parents[2] / readme).read_text(encoding="utf-8")
        assert [name for name in NAMES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_itself_what_it_is_and_where_it_ran(name: str) -> None:
    """`extends` would inherit another's claim."""
    text = (documents.shipped_presets_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    assert {"summary", "run_on"} <= yaml.safe_load(text).keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_sound_and_every_value_is_explained(name: str) -> None:
    loaded = load(name)
    assert loaded.preset.run_on
    explanations = explain.explain(loaded)
    assert [item.key for item in explanations if not item.meaning] == []
    yaml = compile_arguments(
        loaded.preset, model=Path("/m"), dataset_dir=Path("/d"), output_dir=Path("/o"), on_cpu=False
    )
    assert yaml["per_device_train_batch_size"] == loaded.preset.train.batch_size


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_the_global_batch_is_64_and_no_vendor_has_anothers_environment(name: str) -> None:
    preset = load(name).preset
    assert preset.global_batch(preset.hardware.gpus) == 64
    if preset.hardware.vendor == "nvidia":
        assert preset.env == {}


def test_the_recorded_run_differs_from_mi50_by_what_went_wrong_in_it() -> None:
    ours, his = (load(name).preset.model_dump() for name in ("mi50", "mi50-recorded"))
    flat = [
        {f"{key}.{sub}" if isinstance(value, dict) else key: item
         for key, value in preset.items()
         for sub, item in (value.items() if isinstance(value, dict) else [("", value)])}
        for preset in (ours, his)
    ]  # fmt: skip
    assert {key for key in flat[0] if flat[0][key] != flat[1][key]} == {
        "summary", "run_on", "precision", "train.cutoff_len", "data.overlong",
        "train.gradient_checkpointing", "train.logits", "attention",
    }  # fmt: skip


def test_explain_gives_the_presets_own_reason_the_place_and_the_arguments() -> None:
    loaded = load("mi50-fp16")
    [item] = [item for item in explain.explain(loaded) if item.key == "attention"]
    assert item.value == "eager_blocks"
    assert item.source.endswith("mi50-fp16.yaml:11")
    assert item.reason.startswith("Eager overflows q.k in fp16 on Qwen2.x")
    assert item.arguments == {"flash_attn": "disabled"}


def test_the_schema_names_every_section() -> None:
    schema = explain.schema()
    assert set(schema["properties"]) == {
        "extends", "summary", "run_on", "hardware", "model", "precision", "weights", "attention",
        "lora", "train", "sharding", "data", "save", "watch", "track", "notify", "env",
        "llamafactory",
    }  # fmt: skip
