"""What the trainer would make of a model folder, asked before the start: every fault is named, and
a sound model has none.
"""

import json
import shutil
import struct
from collections.abc import Callable
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

import pytest
from harness import HERE, run_python

from iisft.errors import Finding
from iisft.llamafactory.arguments import compile_arguments
from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.models.view import built_findings
from iisft.models.view.build import build_view, plan_view
from iisft.models.view.built import Built
from iisft.presets.schema import Preset
from iisft.presets.yaml12 import render_yaml

SOUND = (
    "qwen2-tied", "qwen2-untied", "qwen2-fp16", "qwen3", "llama-tied", "llama-untied", "mistral",
    "gemma2", "gemma3", "glm4", "phi3", "stablelm",
)  # fmt: skip
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


def preset(**over: Any) -> Preset:
    sections: dict[str, Any] = {
        "summary": "a test",
        "hardware": {"vendor": "nvidia", "arch": "sm_80", "gpus": 1, "memory_gib": 80},
        "model": {"id": "the/model", "template": "qwen"},
        "precision": "fp32",
        "weights": "stored",
        "attention": "eager",
        "train": {"cutoff_len": 96, "learning_rate": 1e-4, "accumulation": 1},
        "data": {"name": "rows"},
    }
    for name, value in over.items():
        known = sections.get(name)
        sections[name] = {**known, **value} if isinstance(known, dict) else value
    return Preset.model_validate(sections)


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


Tensors = dict[str, tuple[str, list[int], bytes]]


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    metadata = header.pop("__metadata__", {})
    tensors = {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
    fresh: dict[str, Any] = {"__metadata__": metadata}
    content = b""
    for name, (dtype, shape, data) in change(tensors).items():
        begin, content = len(content), content + data
        fresh[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(content)]}
    text = json.dumps(fresh).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def rows(tensors: Tensors, name: str, count: int) -> Tensors:
    dtype, shape, data = tensors[name]
    shape = [count, *shape[1:]]
    return tensors | {name: (dtype, shape, data[: 2 * prod(shape)])}


def without_head(folder: Path) -> None:
    change_weights(folder, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})


def other_prefix(folder: Path) -> None:
    change_weights(folder, lambda t: {f"language_model.{k}": v for k, v in t.items()})


def packed(folder: Path) -> None:
    change_weights(folder, lambda t: {k.replace("_proj.w", "_proj.qw"): v for k, v in t.items()})


def short_embedding(folder: Path) -> None:
    change_config(folder, vocab_size=257)
    change_weights(
        folder,
        lambda t: rows(rows(t, "model.embed_tokens.weight", 257), "lm_head.weight", 257),
    )


def other_end(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))


def sampling_without_do_sample(folder: Path) -> None:
    text = json.dumps({"eos_token_id": 258, "temperature": 0.1, "top_p": 0.9})
    (folder / "generation_config.json").write_text(text)


def just_too_short(folder: Path) -> None:
    """Rows for the whole tokenizer and none for what another template adds."""
    change_config(folder, vocab_size=259)
    change_weights(
        folder,
        lambda t: rows(rows(t, "model.embed_tokens.weight", 259), "lm_head.weight", 259),
    )


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no head": (
        "qwen2-untied", without_head,
        "tensors: 1 in no file, so that they would be random (lm_head.weight)",
    ),
    "other prefix": ("qwen2-untied", other_prefix, "27 in no file"),
    "packed": ("qwen2-untied", packed, "14 in the files and not in the model"),
    "layers missing": (
        "qwen2-untied", lambda f: change_config(f, num_hidden_layers=4, layer_types=None),
        "24 in no file, so that they would be random (model.layers.2.input_layernorm.weight",
    ),
    "layers too many": (
        "qwen2-untied", lambda f: change_config(f, num_hidden_layers=1, layer_types=None),
        "12 in the files and not in the model (model.layers.1.input_layernorm.weight",
    ),
    "other shape": (
        "qwen2-untied", lambda f: change_config(f, intermediate_size=160),
        "6 of another shape (model.layers.0.mlp.down_proj.weight ([64, 128] in the file, "
        "[64, 160] in the model)",
    ),
    "vocabulary differs": (
        "qwen2-tied", lambda f: change_config(f, vocab_size=300),
        "1 of another shape (model.embed_tokens.weight ([320, 64] in the file, [300, 64]",
    ),
}  # fmt: skip
BROKEN_CODE = "from transformers import NoSuchThing\n\nclass Toy: pass\n"


def trusted(folder: Path) -> None:
    change_config(
        folder,
        architectures=["ToyForCausalLM"],
        model_type="toy",
        auto_map={"AutoConfig": "toy.ToyConfig", "AutoModelForCausalLM": "toy.ToyForCausalLM"},
    )
    (folder / "toy.py").write_text(BROKEN_CODE)


@pytest.fixture(scope="module")
def ask(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """Every case in one process; the findings by its name."""
    home = tmp_path_factory.mktemp("built") / "模型 and files"
    presets: dict[str, Preset] = {}
    folders: dict[str, Path] = {}
    requests: dict[str, Any] = {}

    def add(
        name: str,
        model: str,
        change: Callable[[Path], None] | None = None,
        chosen: Preset | None = None,
    ) -> None:
        place = home / name
        shutil.copytree(models / model / "model", place / "source")
        if change:
            change(place / "source")
        one = presets[name] = chosen or preset()
        folders[name] = place / "source"
        view = plan_view(
            inspect_checkpoint(place / "source"),
            precision=one.precision,
            weights=one.weights,
            trust_remote_code=one.model.trust_remote_code,
        )
        build_view(view, place / "model")
        meant = compile_arguments(
            one, model=place / "model", dataset_dir=place, output_dir=place / "o", on_cpu=False
        )
        (place / "train.yaml").write_text(render_yaml(meant), encoding="utf-8")
        requests[name] = {
            "yaml": str(place / "train.yaml"), "meant": meant, "on_cpu": False,
            "distributed": False, "texts": ["<|im_start|>user\n问 q<|im_end|>"],
        }  # fmt: skip

    for model in SOUND:
        add(model, model)
        half = preset(precision="bf16", attention="sdpa" if model != "gemma2" else "eager")
        add(f"{model} bf16", model, chosen=half)
    for name, (model, change, _) in FAULTS.items():
        add(name, model, change)
    whole = {"precision": "fp32", "weights": "fp32"}
    add("experts", "qwen3-moe", chosen=preset(**whole))
    add(
        "experts named", "qwen3-moe", chosen=preset(**whole, lora={"target": ["q_proj", "up_proj"]})
    )
    add("only experts named", "qwen3-moe", chosen=preset(**whole, lora={"target": ["up_proj"]}))
    add("few named", "qwen3-moe", chosen=preset(**whole, lora={"target": sorted(ATTENTION)}))
    add("cap", "gemma2", chosen=preset(attention="sdpa"))
    add("gemma in fp16", "gemma3", chosen=preset(precision="fp16", attention="sdpa"))
    add("other end", "qwen3", other_end)
    add("invalid generation", "qwen3", sampling_without_do_sample)
    add("short embedding", "qwen2-untied", short_embedding)
    add("other template", "qwen2-untied", just_too_short, preset(model={"template": "llama3"}))
    add("positions", "qwen3", chosen=preset(train={"cutoff_len": 1024}))
    add(
        "tied trained", "qwen2-tied",
        chosen=preset(llamafactory={"additional_target": "embed_tokens,lm_head"}),
    )  # fmt: skip
    add("no such template", "qwen3", chosen=preset(model={"template": "qwem"}))
    for name, extra in {
        "tracker": {"report_to": "wandb"},
        "pixels": {"image_max_pixels": 1, "image_min_pixels": 2},
        "best": {"load_best_model_at_end": True},
        "galore": {"use_galore": True},
        "stream": {"streaming": True},
        "swanlab": {"use_swanlab": True},
    }.items():
        add(name, "qwen3", chosen=preset(llamafactory=extra))
    add(
        "broken code", "qwen3", trusted,
        preset(model={"trust_remote_code": True}, weights="fp32"),
    )  # fmt: skip
    asked = home / "requests.json"
    asked.write_text(json.dumps(requests), encoding="utf-8")
    with resources.as_file(resources.files("iisft") / "child" / "build_model.py") as script:
        run_python(HERE / "build_many.py", script, asked, folder=home)
    answers = json.loads(asked.with_suffix(".answers").read_text(encoding="utf-8"))
    # what an export would find of their tokenizers
    assert {name for name in SOUND if not answers[name]["tokenizer"]["published"]} == set()
    return {
        name: list(
            built_findings.findings(
                Built(facts), presets[name], inspect_checkpoint(folders[name])
            )
        )
        for name, facts in answers.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", [*SOUND, *(f"{name} bf16" for name in SOUND), "few named"])
def test_a_sound_model_has_no_finding(ask: dict[str, list[Finding]], name: str) -> None:
    assert ask[name] == []


@pytest.mark.parametrize("name", FAULTS)
def test_files_that_are_not_the_model_are_named(ask: dict[str, list[Finding]], name: str) -> None:
    [found] = ask[name]
    assert (found.id, found.severity) == ("weights-differ", "error")
    assert FAULTS[name][2] in found.message
    assert "a whole checkpoint" in found.fix


def test_adapters_that_reach_little_are_said(ask: dict[str, list[Finding]]) -> None:
    [found] = ask["experts"]
    assert (found.id, found.severity) == ("adapter-share", "warn")
    assert "k_proj, o_proj, q_proj, v_proj" in found.message and "mlp.experts (" in found.message


def test_targets_that_are_no_modules_are_refused(ask: dict[str, list[Finding]]) -> None:
    for name in ("experts named", "only experts named"):
        [found] = ask[name]
        assert (found.id, found.severity) == ("lora-target", "error")
        assert "has no module up_proj" in found.message


def test_nf4_leaves_experts_as_they_are() -> None:
    adapted = {"modules": {"q_proj": 2}, "parameters": {"self_attn.q_proj": 10}}
    facts = {"base": 100, "modules": {"mlp.experts": 80}, "adapted": adapted, "warnings": []}
    said = built_findings._share(facts, preset(weights="nf4", precision="bf16"))
    assert [one.message.partition("; ")[2] for one in said] == [
        "mlp.experts (80%) gets no adapter and is not quantised: nf4 takes linear layers"
    ]


def test_an_adapter_that_peft_refuses_has_the_targets_that_it_takes() -> None:
    modules = {"self_attn.q_proj": 1, "self_attn.o_proj": 1, "mamba.out_proj": 1, "mlp.up_proj": 1}
    facts = {"stage": "adapter", "error": "ValueError: 'out_proj'", "warnings": [], "base": 4}
    said = built_findings._ended(Built({**facts, "modules": modules}), preset())
    assert [(one.id, one.where, one.fix) for one in said] == [
        ("adapter-impossible", "lora", "--set 'lora.target=[q_proj, o_proj, up_proj]'")
    ]


def test_tokens_beyond_the_embedding_are_refused(ask: dict[str, list[Finding]]) -> None:
    [short] = ask["short embedding"]
    assert short.message == (
        "the template needs <|im_end|>, <|im_start|>, the embedding has 257 rows"
    )
    other = {found.id: found for found in ask["other template"]}
    assert {name: found.severity for name, found in other.items()} == {
        "ends-differ": "info",
        "template-new-tokens": "warn",
        "embedding-too-small": "error",
    }
    assert "adds <|eot_id|> to the tokenizer" in other["template-new-tokens"].message
    assert "<|eot_id|>" in other["embedding-too-small"].message


def test_rows_beyond_the_positions_are_said(ask: dict[str, list[Finding]]) -> None:
    [found] = ask["positions"]
    assert (found.id, found.severity) == ("positions-exceeded", "warn")
    assert found.message == "cutoff_len 1024, the model was made for 512 positions"


def test_a_cap_that_the_attention_leaves_out_is_refused(ask: dict[str, list[Finding]]) -> None:
    [found] = ask["cap"]
    assert (found.id, found.severity, found.fix) == ("attention-cap", "error", "attention: eager")


def test_families_that_leave_fp16_are_named(ask: dict[str, list[Finding]]) -> None:
    [found] = ask["gemma in fp16"]
    assert (found.id, found.severity) == ("beyond-fp16", "warn")


def test_another_end_than_the_model_s_is_noted(ask: dict[str, list[Finding]]) -> None:
    [found] = ask["other end"]
    assert (found.id, found.severity) == ("ends-differ", "info")


def test_a_generation_config_that_can_not_be_written_again_is_said(
    ask: dict[str, list[Finding]],
) -> None:
    found = {one.id: one for one in ask["invalid generation"]}["generation-config-invalid"]
    assert (found.severity, Path(found.where).name) == ("warn", "generation_config.json")
    assert "`do_sample` is set not to set `True`" in found.message
    assert "do_sample" in found.fix


def test_parting_tied_matrices_is_said(ask: dict[str, list[Finding]]) -> None:
    [found] = ask["tied trained"]
    assert (found.id, found.severity) == ("tied-head-trained", "warn")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no such template", "Template qwem does not exist"),
        ("tracker", "wandb"),
        ("pixels", "image_max_pixels"),
        ("best", "load_best_model_at_end"),
        ("galore", "GaLore"),
        ("stream", "max_steps"),
        ("swanlab", "swanlab"),
        ("broken code", "NoSuchThing"),
    ],
)
def test_what_the_trainer_would_refuse_is_said_before(
    ask: dict[str, list[Finding]], name: str, said: str
) -> None:
    [found] = ask[name]
    assert found.severity == "error"
    assert said in found.message
