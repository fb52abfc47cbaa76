"""The counted peak against the reference's figures and against recorded traces of the real step."""

import json
from pathlib import Path
from typing import Any

import pytest
from recorded import shape_of

from iisft.estimate.architecture import Architecture, read_architecture
from iisft.estimate.memory import GIB, estimate_memory
from iisft.estimate.shape import Layout, StepShape
from iisft.estimate.timing import micro_batch_flops
from iisft.models.folder.known import model_facts

RECORDED = json.loads(Path(__file__).with_name("traces.json").read_text(encoding="utf-8"))


def architecture(config: dict[str, Any], target: str = "all") -> Architecture:
    model = read_architecture(config, target)
    assert model is not None
    return model


@pytest.fixture(scope="module")
def qwen_7b() -> Architecture:
    facts, _ = model_facts("Qwen/Qwen2.5-7B-Instruct", Path("/nowhere"))
    assert facts is not None
    return architecture(facts.config)


def peak_gib(model: Architecture, *, ranks: int = 2, sharding: str = "none", **shape: Any) -> float:
    given = {
        "weights": "bfloat16", "way": "native", "autocast": None, "attention": "eager", "batch": 1,
        "length": 1024, "checkpointing": True, "rank": 64, "dropout": 0.05,
    } | shape  # fmt: skip
    layout = Layout(ranks, sharding, "adamw_torch", 1, given["autocast"] is not None)
    return estimate_memory(model, StepShape(**given), layout, 31.98).step_peak / GIB


def test_the_published_sizes_are_counted_right(qwen_7b: Architecture) -> None:
    assert qwen_7b.parameters == 7_615_616_512
    assert qwen_7b.adapter_parameters(64) == 161_480_704


@pytest.mark.parametrize(
    ("gib", "shape"),
    [
        (32.92, {"weights": "float32"}),
        (25.03, {"weights": "float32", "sharding": "fsdp"}),
        (12.99, {"sharding": "fsdp"}),
        (18.54, {}),
        (18.56, {"autocast": "bfloat16"}),
        (19.62, {"way": "exact"}),
        (20.88, {"way": "exact", "length": 2048}),
        (35.07, {"weights": "float32", "length": 2048}),
        (32.32, {"weights": "float32", "ranks": 1}),
        (33.94, {"weights": "float32", "autocast": "bfloat16"}),
        (24.37, {"autocast": "bfloat16", "batch": 4}),
    ],
)
def test_qwen_7b_is_what_the_reference_traces_say(
    qwen_7b: Architecture, gib: float, shape: dict[str, Any]
) -> None:
    assert peak_gib(qwen_7b, **shape) == pytest.approx(gib, rel=0.002)


def test_every_recorded_trace_is_met_within_a_fifth_of_a_percent() -> None:
    assert len(RECORDED["cases"]) > 80
    missed = []
    for case in RECORDED["cases"]:
        model = architecture(RECORDED["models"][case["model"]], case["target"])
        shape = shape_of(case)
        layout = Layout(1, "none", case["optimizer"], 1, case["autocast"] is not None)
        ratio = estimate_memory(model, shape, layout, 80.0).peak / case["peak"]
        if abs(ratio - 1) > 0.002:
            missed.append(
                (round(ratio, 4), {name: value for name, value in case.items() if name != "peak"})
            )
    assert missed == []


def test_more_layers_are_extended_from_two_and_three_as_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = architecture(RECORDED["models"]["qwen2.5-7b 4 layers"])
    for shape in ({}, {"checkpointing": False}, {"autocast": "float16", "attention": "math"}):
        extended = peak_gib(model, **shape)
        with monkeypatch.context() as counted:
            counted.setattr("iisft.estimate.memory._COUNTED_LAYERS", (4, 4))
            assert peak_gib(model, **shape) == pytest.approx(extended, rel=1e-6)


def test_parts_sum_to_the_peak_and_gradients_of_earlier_micro_batches_are_held(
    qwen_7b: Architecture,
) -> None:
    shape = StepShape("bfloat16", "exact", None, "eager", 1, 1024, True, 64, 0.05)
    once, often = (
        estimate_memory(
            qwen_7b, shape, Layout(2, "none", "adamw_torch", accumulation, False), 31.98
        )
        for accumulation in (1, 32)
    )
    assert once.peak == often.peak == sum(often.parts.values())
    held = often.overhead["accumulated gradients"] - once.overhead["accumulated gradients"]
    assert held == 4 * qwen_7b.adapter_parameters(64)


@pytest.mark.parametrize(
    ("gib", "fits"), [(31.98, "no"), (34.6, "yes"), (34.2, "tight"), (33.0, "no")]
)
def test_the_verdict_has_a_margin(qwen_7b: Architecture, gib: float, fits: str) -> None:
    shape = StepShape("float32", "native", None, "eager", 1, 1024, True, 64, 0.05)
    memory = estimate_memory(qwen_7b, shape, Layout(2, "none", "adamw_torch", 32, False), gib)
    assert memory.fits(gib) == fits


def test_four_bit_weights_take_about_a_quarter_of_bf16(qwen_7b: Architecture) -> None:
    shape = StepShape("bfloat16", "nf4", "bfloat16", "flash", 1, 1024, True, 64, 0.05)
    memory = estimate_memory(qwen_7b, shape, Layout(1, "none", "adamw_torch", 1, True), 24.0)
    matrices = qwen_7b.matrices
    rest = 2 * (qwen_7b.parameters - matrices)
    assert memory.parts["weights"] - rest == pytest.approx(matrices * 0.516, rel=0.001)


@pytest.mark.parametrize("sharding", ["fsdp", "zero3"])
def test_more_ranks_share_the_weights(qwen_7b: Architecture, sharding: str) -> None:
    peaks = [
        peak_gib(qwen_7b, ranks=ranks, sharding=sharding, weights="float32") for ranks in (2, 4, 8)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] - peaks[1] > 6


def test_every_rank_loads_the_whole_model_before_fsdp_makes_shards(qwen_7b: Architecture) -> None:
    shape = StepShape("bfloat16", "native", "bfloat16", "flash", 1, 1024, True, 64, 0.05)
    memory = estimate_memory(qwen_7b, shape, Layout(4, "fsdp", "adamw_torch", 1, True), 24.0)
    stored, shards = 2 * qwen_7b.parameters, qwen_7b.parameters  # float32 over four ranks
    assert (memory.phase, memory.parts["weights"], memory.parts["shards"]) == (
        "loading", stored, shards,
    )  # fmt: skip
    assert memory.phases["loading"] == memory.peak > memory.step_peak


def test_chatglms_own_names_are_understood() -> None:
    config = {
        "model_type": "chatglm", "hidden_size": 4096, "num_layers": 40, "num_attention_heads": 32,
        "kv_channels": 128, "multi_query_group_num": 2, "ffn_hidden_size": 13696,
        "padded_vocab_size": 151552, "add_qkv_bias": True,
    }  # fmt: skip
    model = architecture(config)
    assert model.parameters == 9_399_951_360  # as THUDM/glm-4-9b publishes it
    only = architecture(config, "query_key_value")
    assert only.adapter_parameters(8) == 40 * 8 * (4096 + 4096 + 2 * 256)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16},
        {"hidden_size": "8", "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 1,
         "intermediate_size": 1},
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 3,
         "num_key_value_heads": 2, "vocab_size": 1, "intermediate_size": 1},
        {**RECORDED["models"]["qwen2.5-7b 4 layers"], "num_experts": 8},
    ],
)  # fmt: skip
def test_what_can_not_be_counted_is_none(config: dict[str, Any]) -> None:
    assert read_architecture(config) is None


@pytest.mark.parametrize(
    ("attention", "length", "flops"),
    [("efficient", 1024, 4.554e13), ("eager", 1024, 4.533e13), ("efficient", 4096, 2.049e14)],
)
def test_flops_are_those_that_torchs_counter_finds(
    qwen_7b: Architecture, attention: str, length: int, flops: float
) -> None:
    shape = StepShape("bfloat16", "native", None, attention, 1, length, True, 64, 0.05)
    assert micro_batch_flops(qwen_7b, shape) == pytest.approx(flops, rel=1e-3)
