import json
import os
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from models_on_disk import CONFIG, write_json, write_safetensors

from iisft.errors import InputError
from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.models.folder.text_part import LEFT_OUT, NAMES, text_name
from iisft.models.view.build import ViewPlan, build_view, plan_view, restore_base_model_name

CODE = resources.files("iisft").joinpath("child", "modeling_iisft.py").read_text(encoding="utf-8")


def plan(
    folder: Path, precision: str = "fp32", weights: str = "stored", trust: bool = False
) -> ViewPlan:
    return plan_view(
        inspect_checkpoint(folder), precision=precision, weights=weights, trust_remote_code=trust
    )


def refusal(folder: Path, **choice: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        plan(folder, **choice)
    return caught.value


def test_the_whole_plan_of_exact_float32(model_folder: Path) -> None:
    made = plan(model_folder)
    assert made.config == {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 8,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "auto_map": {"AutoModelForCausalLM": "modeling_iisft.Qwen2ForCausalLM"},
        "iisft_arithmetic": "float32",
    }
    assert made.links == {
        name: model_folder / name
        for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert sorted(made.texts) == [
        "attention_iisft.py",
        "clock_iisft.py",
        "config.json",
        "constants_iisft.py",
        "modeling_iisft.py",
        "products_iisft.py",
        "step_iisft.py",
        "stopping_iisft.py",
        "trackers_iisft.py",
        "witness_iisft.py",
    ]
    assert json.loads(made.texts["config.json"]) == made.config
    assert made.texts["modeling_iisft.py"] == CODE
    assert (made.expected_weights_dtype, made.expected_compute_dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("precision", "weights", "dtype", "arithmetic", "held", "computed"),
    [
        ("fp32", "stored", "bfloat16", "float32", "bfloat16", "float32"),
        ("fp32", "fp16", "float16", "float32", "float16", "float32"),
        ("fp32", "bf16", "bfloat16", "float32", "bfloat16", "float32"),
        ("fp32", "nf4", "bfloat16", "float32", "nf4", "float32"),
        ("fp32", "fp32", "float32", "native", "float32", "float32"),
        ("fp16", "stored", "bfloat16", "native", "bfloat16", "float16"),
        ("fp16", "fp32", "float32", "native", "float32", "float16"),
        ("bf16", "nf4", "bfloat16", "native", "nf4", "bfloat16"),
        ("weights", "stored", "bfloat16", "native", "bfloat16", "bfloat16"),
        ("weights", "fp16", "float16", "native", "float16", "float16"),
    ],
)
def test_precision_and_weights_decide_dtype_and_arithmetic(
    model_folder: Path,
    precision: str,
    weights: str,
    dtype: str,
    arithmetic: str,
    held: str,
    computed: str,
) -> None:
    made = plan(model_folder, precision, weights)
    assert (made.config["dtype"], made.config["torch_dtype"]) == (dtype, dtype)
    assert made.config["iisft_arithmetic"] == made.arithmetic == arithmetic
    assert (made.expected_weights_dtype, made.expected_compute_dtype) == (held, computed)


def test_stored_means_what_the_headers_show_whatever_the_config_claims(
    model_folder: Path, change_config: Callable[..., None]
) -> None:
    change_config(torch_dtype="float32")
    write_safetensors(model_folder / "model.safetensors", {"a.weight": ("F16", [3])})
    assert plan(model_folder).config["torch_dtype"] == "float16"


def test_float32_checkpoints_need_no_retyping(
    model_folder: Path, change_config: Callable[..., None]
) -> None:
    change_config(num_experts=8)
    write_safetensors(model_folder / "model.safetensors", {"a.weight": ("F32", [3])})
    assert (plan(model_folder).arithmetic, plan(model_folder).config["dtype"]) == (
        "native",
        "float32",
    )


def test_shards_and_their_index_are_linked(sharded_folder: Path) -> None:
    assert set(plan(sharded_folder).links) == {
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_only_what_the_run_needs_is_linked(model_folder: Path) -> None:
    for name in (
        "evil.py",
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "training_args.bin",
        "README.md",
        ".hidden.json.py",
        "stray.safetensors",
    ):
        (model_folder / name).write_text("x")
    write_json(model_folder / "adapter_config.json", {"base_model_name_or_path": "elsewhere"})
    (model_folder / "broken.json").write_text("{")
    (model_folder / "dangling.json").symlink_to(model_folder / "gone")
    (model_folder / "merges.txt").write_text("")
    (model_folder / "chat_template.jinja").write_text("")
    (model_folder / "original").mkdir()
    assert set(plan(model_folder).links) == {
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "merges.txt",
        "chat_template.jinja",
    }


@pytest.mark.parametrize("place", ["config", "tokenizer"])
def test_a_model_that_needs_its_own_code_is_refused_with_the_files(
    model_folder: Path, change_config: Callable[..., None], place: str
) -> None:
    if place == "config":
        change_config(
            architectures=["ToyForCausalLM"],
            auto_map={"AutoModelForCausalLM": "toy.ToyForCausalLM"},
        )
    else:
        write_json(
            model_folder / "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["toy.Toy", None]}},
        )
        (model_folder / "tokenizer.json").unlink()
    error = refusal(model_folder)
    assert (error.code, error.exit_code) == ("model-needs-code", 3)
    assert "toy.py" in error.message and "trust_remote_code" in error.fix


def test_a_stock_architecture_leaves_untrusted_code_behind(
    model_folder: Path, change_config: Callable[..., None]
) -> None:
    change_config(
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        nested={"auto_map": {"AutoModel": "evil.Model"}, "kept": 1},
    )
    write_json(
        model_folder / "tokenizer_config.json",
        {"a": 1, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "b": [{"auto_map": None}]},
    )
    write_json(
        model_folder / "processor_config.json",
        {"inner": [{"auto_map": {"x": "evil.P"}, "kept": 1}]},
    )
    (model_folder / "evil.py").write_text("raise SystemExit")
    made = plan(model_folder)
    assert made.config["auto_map"] == {"AutoModelForCausalLM": "modeling_iisft.Qwen2ForCausalLM"}
    assert made.config["nested"] == {"kept": 1}
    assert json.loads(made.texts["tokenizer_config.json"]) == {"a": 1, "b": [{}]}
    assert json.loads(made.texts["processor_config.json"]) == {"inner": [{"kept": 1}]}
    assert set(made.links) == {"model.safetensors", "tokenizer.json"}
    assert "evil" not in "".join(made.texts.values())


def test_a_trusted_tokenizer_on_a_stock_model(model_folder: Path) -> None:
    write_json(
        model_folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["toy.Toy", None]}}
    )
    (model_folder / "toy.py").write_text("")
    made = plan(model_folder, trust=True)
    assert made.arithmetic == "float32" and made.texts["modeling_iisft.py"] == CODE
    assert {"toy.py", "tokenizer_config.json"} <= set(made.links)


def trusted_folder(folder: Path, change_config: Callable[..., None]) -> Path:
    change_config(
        architectures=["ToyLMForCausalLM"],
        auto_map={
            "AutoConfig": "toy_config.ToyConfig",
            "AutoModelForCausalLM": "toy.ToyForCausalLM",
        },
    )
    write_json(
        folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["toy_tok.Toy", None]}}
    )
    for name in ("toy_config.py", "toy.py", "toy_tok.py", "toy_helper.py"):
        (folder / name).write_text("")
    return folder


def test_trusted_code_becomes_the_base_of_our_class(
    model_folder: Path, change_config: Callable[..., None]
) -> None:
    made = plan(trusted_folder(model_folder, change_config), "bf16", trust=True)
    assert made.config["auto_map"] == {
        "AutoConfig": "toy_config.ToyConfig",
        "AutoModelForCausalLM": "modeling_iisft.ToyForCausalLM",
    }
    assert {
        "toy_config.py",
        "toy.py",
        "toy_tok.py",
        "toy_helper.py",
        "tokenizer_config.json",
    } <= set(made.links)
    changed = set(made.texts["modeling_iisft.py"].splitlines()) - set(CODE.splitlines())
    assert [line.partition("  #")[0] for line in changed] == [
        "from .toy import ToyForCausalLM as TRUSTED"
    ]


def test_trusted_code_is_not_promised_exact(
    model_folder: Path, change_config: Callable[..., None]
) -> None:
    error = refusal(trusted_folder(model_folder, change_config), trust=True)
    assert error.code == "exact-unsupported" and "weights=fp32" in error.fix


@pytest.mark.parametrize("damage", ["missing", "elsewhere", "no model", "injection"])
def test_trusted_code_that_cant_be_used(
    model_folder: Path, change_config: Callable[..., None], damage: str
) -> None:
    trusted_folder(model_folder, change_config)
    if damage == "missing":
        (model_folder / "toy.py").unlink()
    if damage == "elsewhere":
        change_config(auto_map={"AutoModelForCausalLM": "owner/repo--toy.ToyForCausalLM"})
    if damage == "no model":
        change_config(auto_map={"AutoModel": "toy.ToyForCausalLM"})
    if damage == "injection":
        change_config(
            auto_map={"AutoModelForCausalLM": "toy.A as B\nimport os\nfrom os import path"}
        )
    assert refusal(model_folder, precision="bf16", trust=True).code == "model-code-incomplete"


@pytest.mark.parametrize(
    ("keys", "choice", "code", "reason"),
    [
        (
            {"num_experts": 8, "architectures": ["Qwen3MoeForCausalLM"]},
            {},
            "exact-unsupported",
            "experts",
        ),
        (
            {"num_local_experts": 8, "architectures": ["MixtralForCausalLM"]},
            {},
            "exact-unsupported",
            "experts",
        ),
        ({"architectures": ["OPTForCausalLM"]}, {}, "exact-unsupported", "OPTForCausalLM"),
        (
            {"architectures": ["OPTForCausalLM"]},
            {"weights": "nf4"},
            "exact-unsupported",
            "OPTForCausalLM",
        ),
        ({"vision_config": {}}, {"precision": "bf16"}, "model-not-text", "text"),
        (
            {"architectures": ["Gemma3ForConditionalGeneration"]},
            {"weights": "fp32"},
            "model-not-text",
            "text",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            {"precision": "bf16"},
            "model-quantized",
            "quantised",
        ),
    ],
)
def test_what_cant_be_held_is_refused_with_the_reason(
    model_folder: Path,
    change_config: Callable[..., None],
    keys: dict[str, Any],
    choice: dict[str, Any],
    code: str,
    reason: str,
) -> None:
    change_config(**keys)
    error = refusal(model_folder, **choice)
    assert error.code == code and reason in error.message and error.fix
    assert error.where == str(model_folder / "config.json")


def test_the_way_out_of_a_refusal_works(
    model_folder: Path, change_config: Callable[..., None]
) -> None:
    change_config(num_experts=8, architectures=["Qwen3MoeForCausalLM"])
    assert "weights=fp32" in refusal(model_folder).fix
    assert plan(model_folder, weights="fp32").arithmetic == "native"


@pytest.mark.parametrize("odd", ["F32", "F16"])
def test_mixed_checkpoints_that_loading_would_round_are_not_exact(
    model_folder: Path, odd: str
) -> None:
    write_safetensors(
        model_folder / "model.safetensors",
        {"a.weight": ("BF16", [9]), "norm.weight": (odd, [1, 3])},
    )
    assert "mixes" in refusal(model_folder).message
    assert plan(model_folder, "bf16").arithmetic == "native"


def test_vectors_stored_as_float32_are_kept_so_in_float32_arithmetic(model_folder: Path) -> None:
    """Qwen3.5's decay and one of its norms; a matrix, or one layer's alone, would be rounded."""
    tensors = {
        "a.weight": ("BF16", [9]),
        "layers.0.decay": ("F32", [3]),
        "layers.1.decay": ("F32", [3]),
    }
    write_safetensors(model_folder / "model.safetensors", tensors)
    assert plan(model_folder).config["iisft_kept_float32"] == ["layers.*.decay"]
    assert "iisft_kept_float32" not in plan(model_folder, "bf16").config
    assert "iisft_kept_float32" not in plan(model_folder, weights="bf16").config
    write_safetensors(
        model_folder / "model.safetensors", tensors | {"layers.1.decay": ("BF16", [3])}
    )
    assert "mixes" in refusal(model_folder).message


def test_integer_checkpoints_are_refused(model_folder: Path) -> None:
    write_safetensors(model_folder / "model.safetensors", {"a.qweight": ("I32", [9])})
    assert refusal(model_folder).code == "model-stored-dtype"


def test_building_writes_texts_and_absolute_links_and_leaves_the_model_alone(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in model_folder.iterdir()}
    monkeypatch.chdir(model_folder.parent)
    made = plan(Path("tiny"))  # relative, as a person may give it
    view = tmp_path / "runs" / "跑 1" / "model"
    build_view(made, view)
    assert {p.name for p in view.iterdir()} == made.links.keys() | made.texts.keys()
    for name, target in made.links.items():
        assert (view / name).is_symlink() and (
            view / name
        ).readlink() == target == model_folder / name
    for name, text in made.texts.items():
        assert not (view / name).is_symlink() and (view / name).read_text(encoding="utf-8") == text
    assert {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in model_folder.iterdir()
    } == before
    assert [p.name for p in view.parent.iterdir()] == ["model"]


def test_rebuilding_replaces_the_view_and_never_the_weights(
    model_folder: Path, tmp_path: Path
) -> None:
    view = tmp_path / "view"
    build_view(plan(model_folder), view)
    (view / "left over").touch()
    build_view(plan(model_folder, weights="fp32"), view)
    assert json.loads((view / "config.json").read_text())["dtype"] == "float32"
    assert not (view / "left over").exists()
    assert (model_folder / "model.safetensors").stat().st_size > 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failed_build_leaves_the_old_view(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = tmp_path / "view"
    build_view(plan(model_folder), view)

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "symlink_to", no_space)
    with pytest.raises(OSError, match="No space"):
        build_view(plan(model_folder, weights="fp32"), view)
    assert json.loads((view / "config.json").read_text())["dtype"] == "bfloat16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["view", "模型 a"]


@pytest.mark.parametrize("kind", ["folder", "the model", "link", "file"])
def test_something_that_is_no_view_is_never_replaced(
    model_folder: Path, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    elif kind == "the model":
        shutil.copytree(model_folder, place)
    elif kind == "link":
        build_view(plan(model_folder), tmp_path / "real")
        place.symlink_to(tmp_path / "real")
    else:
        place.touch()
    with pytest.raises(InputError) as caught:
        build_view(plan(model_folder), place)
    assert caught.value.code == "view-occupied"
    assert place.exists()


def test_adapters_name_the_real_model_after_the_run(tmp_path: Path) -> None:
    output, view = tmp_path / "output 1", tmp_path / "run" / "model"
    for folder in (output, output / "checkpoint-4"):
        folder.mkdir(parents=True)
        write_json(folder / "adapter_config.json", {"base_model_name_or_path": str(view), "r": 8})
        (folder / "README.md").write_text(
            f"---\nbase_model: {view}\ntags:\n- base_model:adapter:{view}\n---\n情报\n"
        )
    other = {"base_model_name_or_path": "someone/else"}
    (output / "checkpoint-8").mkdir()
    write_json(output / "checkpoint-8" / "adapter_config.json", other)
    (output / "checkpoint-12").mkdir()
    (output / "checkpoint-12" / "adapter_config.json").write_text('{"base_model_na')
    restore_base_model_name(output, view, "Qwen/Qwen2.5-7B-Instruct")
    for folder in (output, output / "checkpoint-4"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config == {"base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "r": 8}
        assert (folder / "README.md").read_text() == (
            "---\nbase_model: Qwen/Qwen2.5-7B-Instruct\n"
            "tags:\n- base_model:adapter:Qwen/Qwen2.5-7B-Instruct\n---\n情报\n"
        )
    assert json.loads((output / "checkpoint-8" / "adapter_config.json").read_text()) == other
    assert (output / "checkpoint-12" / "adapter_config.json").read_text() == '{"base_model_na'
    restore_base_model_name(tmp_path / "no such", view, "x")


def test_planning_writes_nothing(model_folder: Path) -> None:
    before = sorted(model_folder.parent.rglob("*"))
    plan(model_folder)
    assert sorted(model_folder.parent.rglob("*")) == before
    assert json.loads((model_folder / "config.json").read_text()) == CONFIG


def with_tower(folder: Path, **published: Any) -> Path:
    """As published with a vision tower, with the names that transformers 4 wrote."""
    text = {"model_type": "gemma3_text", "hidden_size": 8}
    write_json(
        folder / "config.json",
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "torch_dtype": "bfloat16",
            "eos_token_id": [1, 106],
            "text_config": text,
            "vision_config": {"model_type": "siglip_vision_model"},
            **published,
        },
    )
    tensors = {
        "language_model.model.embed_tokens.weight": ("BF16", [4, 8]),
        "language_model.model.norm.weight": ("BF16", [8]),
        "vision_tower.vision_model.head.weight": ("F32", [5, 5]),
        "multi_modal_projector.weight": ("F32", [5]),
    }
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def test_the_view_of_a_model_with_a_tower_is_its_text_model_alone(model_folder: Path) -> None:
    made = plan(with_tower(model_folder))
    names = made.config.pop("iisft_names")
    assert made.config == {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 8,
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "auto_map": {"AutoModelForCausalLM": "modeling_iisft.Gemma3ForCausalLM"},
        "iisft_arithmetic": "float32",
        "iisft_left_out": list(LEFT_OUT),
    }
    assert names == NAMES
    found = inspect_checkpoint(model_folder)
    assert (found.dtypes, found.parameters, found.bytes_beside > 0) == ({"bfloat16": 40}, 40, True)
    assert sorted(found.tensors) == ["model.embed_tokens.weight", "model.norm.weight"]
    assert made.links["model.safetensors"] == model_folder / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.visual.blocks.0.attn.qkv.weight", None),
        ("mtp.layers.0.mlp.up_proj.weight", None),
        ("model.embed_vision.embedding_projection.weight", None),
        ("model.text_model.norm.weight", "model.norm.weight"),
        ("model.connector.modality_projection.proj.weight", None),
        ("model.image_newline", None),
    ],
)
def test_the_names_that_tensors_have_in_the_text_model(name: str, there: str | None) -> None:
    assert text_name(name) == there


@pytest.mark.parametrize(
    ("published", "code"),
    [
        ({"model_type": "glm4v"}, "model-not-text"),
        ({"quantization_config": {"quant_method": "fp8"}}, "model-quantized"),
    ],
)
def test_towers_of_other_families_and_quantised_ones_are_refused(
    model_folder: Path, published: dict[str, Any], code: str
) -> None:
    refused = refusal(with_tower(model_folder, **published))
    assert refused.code == code
    if code == "model-not-text":
        assert "(its config.json has vision_config)" in refused.finding.message
        assert "(gemma3, gemma4, idefics3, internvl," in str(refused.finding.fix)


@pytest.mark.parametrize("whole", [{}, {"model_type": "qwen3_5_moe"}])
def test_experts_beside_a_tower_are_refused_with_the_reason(
    model_folder: Path, whole: dict[str, Any]
) -> None:
    folder = with_tower(model_folder, **whole)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["text_config"]["num_experts"] = 128
    file.write_text(json.dumps(config), encoding="utf-8")
    refused = refusal(folder, precision="bf16")
    assert (refused.code, "has experts" in refused.message) == ("model-not-text", True)
    assert "dense" in str(refused.finding.fix)
