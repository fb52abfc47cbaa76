"""The tape against the real code: LLaMA-Factory, peft, transformers on small models of every
family, without data.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded import shape_of

from helpers import UNTRACED
from iisft.estimate.architecture import read_architecture
from iisft.estimate.memory import estimate_memory
from iisft.estimate.shape import Layout

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "src" / "iisft" / "child" / "trace_step.py"
PYTHON = os.environ.get("IISFT_PYTHON") or sys.executable
SCALED = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
DELTA = {
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
    "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64,
    "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
        "mrope_section": [4, 2, 2], "mrope_interleaved": True,
    },
}  # fmt: skip
FAMILIES = {
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 64}),
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 8}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "gemma": (
        "GemmaForCausalLM",
        {"num_key_value_heads": 1, "head_dim": 96, "tie_word_embeddings": True},
    ),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 64, "tie_word_embeddings": True}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"head_dim": 64, "num_hidden_layers": 6, "tie_word_embeddings": True},
    ),
    "glm": ("GlmForCausalLM", {"head_dim": 64, "attention_bias": True}),
    "glm4": ("Glm4ForCausalLM", {"head_dim": 64, "attention_bias": True}),
    "phi3": ("Phi3ForCausalLM", {}),
    "qwen3_5_text": (
        "Qwen3_5ForCausalLM",
        {"head_dim": 64, "num_hidden_layers": 8, **DELTA},
    ),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        {
            "head_dim": 64,
            "global_head_dim": 96,
            "num_hidden_layers": 6,
            "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 4,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "tie_word_embeddings": True,
            "final_logit_softcapping": 30.0,
        },
    ),
    "ministral3": ("Ministral3ForCausalLM", {"head_dim": 64, "rope_parameters": SCALED}),
}
STEPS = (
    {"arithmetic": "float32", "attention": "eager", "checkpointing": True},
    {"autocast": "float16", "attention": "math", "checkpointing": False, "batch": 2, "length": 256},
)
KEPT = {"layers_kept": 2, "logits": "trained", "positions": 200}
BLOCKS: dict[str, Any] = {"attention": "eager_blocks", "length": 768}
MORE = (
    {"arithmetic": "float32", **BLOCKS, **KEPT},
    {"weights": "float32", **BLOCKS, "length": 200, "batch": 2, "checkpointing": False},
    {"autocast": "float16", **BLOCKS, "batch": 2, **KEPT, "layers_kept": 4},
    {"arithmetic": "float32", "attention": "eager", **KEPT},
    {"arithmetic": "float32", "attention": "math", **KEPT, "layers_kept": 4, "chunk": 64},
    {"autocast": "bfloat16", "attention": "flash", **KEPT, "positions": 512, "chunk": 128},
    {"weights": "float32", "attention": "eager", "batch": 2, **KEPT, "layers_kept": 3},
    {"autocast": "bfloat16", "attention": "flash", "optimizer": "adamw_torch_fused"},
    {"weights": "float32", "attention": "efficient", "checkpointing": False, "optimizer": "sgd"},
    {"weights": "float32", "attention": "eager", "sharding": "fsdp", "ranks": 2},
    {"autocast": "bfloat16", "attention": "flash", "length": 2048, "sharding": "fsdp", "ranks": 4},
    {
        "attention": "eager",
        "optimizer": "adafactor",
        "target": "q_proj,v_proj",
        "dropout": 0.0,
        "rank": 256,
        "length": 16,
    },
)


# Layers of two kinds: three of four carry a state
DELTA_KEPT: tuple[dict[str, Any], ...] = (
    {"arithmetic": "float32", **BLOCKS, **KEPT, "layers_kept": 4},
    {"autocast": "float16", "attention": "math", **KEPT, "layers_kept": 8},
)
# Layers that attend to a window, with narrower heads; in E2B and E4B the last ones take keys and
# values of earlier ones, are twice as wide, and all have inputs of their own
PATTERN = ["sliding_attention"] * 2 + ["full_attention"]
GEMMA4 = {"num_hidden_layers": 12, "layer_types": PATTERN * 4}
GEMMA4_SMALL = {
    "num_hidden_layers": 9,
    "layer_types": PATTERN * 3,
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": 4096,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}
FLASH = {"autocast": "bfloat16", "attention": "flash"}
GEMMA4_STEPS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    (GEMMA4, {**FLASH, "length": 2048, **KEPT, "layers_kept": 0}),
    (GEMMA4, {"arithmetic": "float32", **BLOCKS, **KEPT, "layers_kept": 3}),
    *((GEMMA4_SMALL, step) for step in STEPS),
    (GEMMA4_SMALL, {**FLASH, "length": 2048, **KEPT, "layers_kept": 0}),
    (GEMMA4_SMALL, {"arithmetic": "float32", **BLOCKS, **KEPT, "layers_kept": 4}),
)
# Gemma 2 caps its scores and has two masks
BLOCK_FAMILIES = ("gemma2", "phi3")


def case(kind: str, sizes: dict[str, Any] | None = None, /, **step: Any) -> dict[str, Any]:
    name, special = FAMILIES[kind]
    config = {
        "model_type": kind, "architectures": [name], "hidden_size": 512, "intermediate_size": 1792,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 4096, "tie_word_embeddings": False, "pad_token_id": 0,
        **special, **(sizes or {}),
    }  # fmt: skip
    return {
        "config": config, "weights": "bfloat16", "arithmetic": "native", "autocast": None,
        "batch": 1, "length": 512, "checkpointing": True, "rank": 16, "dropout": 0.05,
        "target": "all", "optimizer": "adamw_torch", **step,
    }  # fmt: skip


def predicted(one: dict[str, Any]) -> int:
    model = read_architecture(one["config"], one["target"])
    assert model is not None
    layout = Layout(
        one.get("ranks", 1), one.get("sharding", "none"), one["optimizer"], 1, bool(one["autocast"])
    )
    return estimate_memory(model, shape_of(one), layout, 1.0).step_peak


@pytest.mark.parametrize(
    ("cases", "traced"),
    [
        pytest.param(
            [
                *(case(kind, **step) for kind in FAMILIES for step in STEPS),
                *(case("qwen3_5_text", **step) for step in DELTA_KEPT),
                *(case("gemma4_text", sizes, **step) for sizes, step in GEMMA4_STEPS),
                *(case(kind, arithmetic="float32", **BLOCKS) for kind in BLOCK_FAMILIES),
            ],
            False,
            id="every family",
        ),
        pytest.param([case("qwen2", **step) for step in MORE], True, id="every step"),
    ],
)
def test_the_counted_peak_is_the_traced_one(cases: list[dict[str, Any]], traced: bool) -> None:
    env = dict(os.environ) if traced else os.environ | UNTRACED
    done = subprocess.run(
        [PYTHON, str(SCRIPT)],
        input=json.dumps(cases), env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases)
    missed = []
    for one, answer in zip(cases, answers, strict=True):
        assert "error" not in answer, (one, answer)
        ratio = predicted(one) / answer["peak"]
        if abs(ratio - 1) > 0.01:
            missed.append((round(ratio, 4), one))
    assert missed == []


def test_a_case_that_can_not_be_traced_answers_with_its_error() -> None:
    broken = case("qwen2", attention="eager")
    broken["config"]["num_attention_heads"] = 7
    done = subprocess.run(
        [PYTHON, str(SCRIPT), json.dumps([broken])], capture_output=True, text=True, check=True
    )
    assert "error" in json.loads(done.stdout)


def test_the_command_line_traces_what_it_planned(iisft: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "模型 small"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(case("mistral")["config"] | {"torch_dtype": "bfloat16"})
    )
    result = iisft(
        "plan",
        "-p",
        "mi50",
        "--model",
        str(folder),
        "--set",
        "train.cutoff_len=512",
        "--trace",
        "--json",
    )
    found = json.loads(result.out)
    assert (result.code, found["trace"]["phase"]) == (0, found["phase"])
    assert found["trace"]["predicted_over_traced"] == pytest.approx(1, abs=0.01)
    assert found["trace"]["parts"]["ddp buckets"] > 0
    refused = json.loads(iisft("plan", "-p", "qlora-24g", "--trace", "--json").out)
    assert refused["trace"] == {
        "error": "a trace covers neither nf4 weights nor ZeRO, and needs config.json"
    }
