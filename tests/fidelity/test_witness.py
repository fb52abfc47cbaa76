"""What the proof says, or leaves unsaid, when something else runs than the preset asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness import Batch, make_view

from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.models.view.build import build_view, plan_view
from iisft.runs.record.proof import Expected, Observed, differences

pytestmark = pytest.mark.slow

TOUCH = "open({place!r}, 'w').close()\n"


def poisoned_copy(models: Path, folder: Path, witness: Path) -> Path:
    """The qwen3 model with JSON files that name a Python file.

    Running that would touch `witness`.
    """
    folder.mkdir(parents=True)
    for path in (models / "qwen3" / "model").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "evil.py").write_text(TOUCH.format(place=str(witness)), encoding="utf-8")
    for name, classes in (
        (
            "config.json",
            {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"},
        ),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", None]}),
        ("processor_config.json", {"AutoProcessor": "evil.P"}),
    ):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.unlink(missing_ok=True)
        path.write_text(json.dumps({**content, "auto_map": classes}), encoding="utf-8")
    return folder


# Parts of a toy model that do something else than its config says.
OWN_ATTENTION = """
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, apply_rotary_pos_emb

class OwnAttention(Qwen3Attention):
    def forward(self, hidden_states, position_embeddings, attention_mask, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        heads = [norm(project(hidden_states).view(shape)).transpose(1, 2) for project, norm in (
            (self.q_proj, self.q_norm), (self.k_proj, self.k_norm), (self.v_proj, lambda x: x))]
        query, key = apply_rotary_pos_emb(*heads[:2], *position_embeddings)
        answer = functional.scaled_dot_product_attention(
            query, key, heads[2], is_causal=CAUSAL, enable_gqa=True)
        return self.o_proj(answer.transpose(1, 2).flatten(2)), None

Own = OwnAttention
PART = "self_attn"
"""
NARROW_MLP = """
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

class Own(Qwen3MLP):
    def forward(self, x):
        for layer in (self.gate_proj, self.down_proj):
            narrow = x.bfloat16() @ layer.weight.bfloat16().T
            x = narrow.float()
        return x

PART = "mlp"
"""
HIDDEN_MLP = """
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        with torch._C.DisableTorchFunction():
            return torch.mm(x.flatten(0, 1).bfloat16(), weight.bfloat16().T).float().view(
                *x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.saved_tensors[0], None

class Own(Qwen3MLP):
    def forward(self, x):
        return Hidden.apply(Hidden.apply(x, self.gate_proj.weight), self.down_proj.weight)

PART = "mlp"
"""


OWN_PARTS = {
    "own attention": OWN_ATTENTION.replace("CAUSAL", "True"),
    "attention that looks ahead": OWN_ATTENTION.replace("CAUSAL", "False"),
    "narrow mlp": NARROW_MLP,
    "hidden mlp": HIDDEN_MLP,
}


def trusted_copy(models: Path, folder: Path, part: str = "") -> Path:
    """A toy model whose architecture transformers does not know, with its two Python files; `part`
    is the source of a class Own for what it calls PART, and makes the second layer a sliding one.
    """
    folder.mkdir(parents=True)
    module = f"toy{len(list(folder.parent.glob('source *')))}"  # one process loads all of them
    for path in (models / "qwen3" / "model").iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((models / "qwen3" / "model" / "config.json").read_text(encoding="utf-8"))
    config |= {
        "architectures": ["ToyForCausalLM"],
        "model_type": f"{module}_of_iisft",
        "auto_map": {
            "AutoConfig": f"{module}_config.ToyConfig",
            "AutoModelForCausalLM": f"{module}.ToyForCausalLM",
        },
    }
    if part:
        config |= {
            "use_sliding_window": True,
            "sliding_window": 32,
            "layer_types": ["full_attention", "sliding_attention"],
        }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / f"{module}_config.py").write_text(
        "from transformers import Qwen3Config\n\nclass ToyConfig(Qwen3Config):\n    model_type = "
        f"'{module}_of_iisft'\n"
    )
    (folder / f"{module}.py").write_text(
        "from transformers import Qwen3ForCausalLM\n"
        f"from .{module}_config import ToyConfig\n\n"
        "class ToyForCausalLM(Qwen3ForCausalLM):\n    config_class = ToyConfig\n" + part
    )
    if part:
        with (folder / f"{module}.py").open("a") as file:
            file.write(
                "\ndef build(self, config):\n    Qwen3ForCausalLM.__init__(self, config)\n"
                "    for layer in self.model.layers:\n"
                "        getattr(layer, PART).__class__ = Own\n"
                "ToyForCausalLM.__init__ = build\n"
            )
    return folder


def planned_view(model: Path, folder: Path, precision: str, weights: str, trust: bool) -> Path:
    checkpoint = inspect_checkpoint(model)
    build_view(
        plan_view(checkpoint, precision=precision, weights=weights, trust_remote_code=trust), folder
    )
    return folder


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """One process for everything that a proof must tell apart."""
    batch = Batch(tmp_path_factory.mktemp("witness") / "证 明")
    data, start = models / "data", {"adapter_name_or_path": str(models / "qwen3" / "start")}

    def view(name: str, precision: str, weights: str, model: str = "qwen3") -> Path:
        return make_view(
            models / model / "model", batch.folder / name / "model", precision, weights
        )

    def add(name: str, model: Path, **more: Any) -> None:
        batch.add(name, model, data, **{"max_steps": 2, **start, **more})

    add("plain", models / "qwen3" / "model")
    add("untrusted", view("v1", "fp32", "stored"), trust_remote_code=False)
    add("weights", view("v2", "weights", "stored"))
    add("bf16", view("v3", "bf16", "stored"), bf16=True)
    add("bf16 of float32", view("v4", "bf16", "fp32"), bf16=True)
    add("fp16", view("v5", "fp16", "fp16"), fp16=True)
    add("sdpa", view("v6", "fp32", "stored"), flash_attn="sdpa")
    add(
        "experts",
        view("v7", "fp32", "fp32", "qwen3-moe"),
        adapter_name_or_path=None,
        lora_target="q_proj,v_proj",
    )
    forced = view("v8", "fp32", "fp32", "qwen3-moe")
    config = json.loads((forced / "config.json").read_text(encoding="utf-8"))
    (forced / "config.json").write_text(
        json.dumps(config | {"iisft_arithmetic": "float32"}), encoding="utf-8"
    )
    add("experts forced", forced, adapter_name_or_path=None, lora_target="q_proj,v_proj")
    poisoned = poisoned_copy(models, batch.folder / "source a", batch.folder / "a ran")
    add("poisoned", planned_view(poisoned, batch.folder / "v9" / "model", "fp32", "stored", False))
    toy = trusted_copy(models, batch.folder / "source toy")
    add("trusted", planned_view(toy, batch.folder / "v10" / "model", "fp32", "fp32", True))
    for name, part in OWN_PARTS.items():
        toy = trusted_copy(models, batch.folder / f"source {name}", part)
        add(name, planned_view(toy, batch.folder / f"view {name}" / "model", "fp32", "fp32", True))
    add("float32", view("v11", "fp32", "fp32"))
    add(
        "trainable head",
        view("v12", "fp32", "stored"),
        adapter_name_or_path=None,
        additional_target="lm_head",
    )
    add("poison unviewed", poisoned_copy(models, batch.folder / "source b", batch.folder / "b ran"))
    return batch.run()


def only_line(runs: Batch, name: str) -> dict[str, Any]:
    assert runs.error(name) is None, runs.error(name)
    (line,) = runs.lines[name]
    return line


def test_an_untrusted_view_trains_the_stock_class_and_proves_nothing(runs: Batch) -> None:
    assert runs.lines["untrusted"] == []
    assert runs.result("untrusted") == runs.result("plain"), (
        "the stock class trains without a warning"
    )


@pytest.mark.parametrize(
    ("name", "arithmetic", "weights", "autocast", "computed"),
    [
        ("weights", "native", "bfloat16", None, "bfloat16"),
        ("bf16", "native", "bfloat16", "bfloat16", "bfloat16"),
        ("bf16 of float32", "native", "float32", "bfloat16", "bfloat16"),
        ("float32", "native", "float32", None, "float32"),
    ],
)
def test_precision_is_told_by_value(
    runs: Batch, name: str, arithmetic: str, weights: str, autocast: str | None, computed: str
) -> None:
    line = only_line(runs, name)
    assert (line["arithmetic"], list(line["weights"]), line["autocast"]) == (
        arithmetic,
        [weights],
        autocast,
    )
    assert (line["linear_dtype"], line["attention_dtype"]) == (computed, computed)


def test_autocast_that_is_silently_not_there_is_told(runs: Batch) -> None:
    """LLaMA-Factory accepts fp16 on a CPU and then trains without autocast."""
    assert only_line(runs, "fp16")["autocast"] is None


def test_the_view_in_the_weights_own_precision_is_the_plain_run(runs: Batch) -> None:
    assert runs.result("weights") == runs.result("plain")


def test_another_attention_is_told(runs: Batch) -> None:
    assert only_line(runs, "sdpa")["attention"] == "sdpa"


def test_experts_run_with_float32_weights_and_are_refused_otherwise(runs: Batch) -> None:
    assert list(only_line(runs, "experts")["weights"]) == ["float32"]
    assert "NotImplementedError" in (runs.error("experts forced") or "")
    assert runs.lines["experts forced"] == []


def test_poisoned_json_files_run_nothing_through_the_view(runs: Batch) -> None:
    assert only_line(runs, "poisoned")["arithmetic"] == "float32"
    assert not (runs.folder / "a ran").exists()
    assert (runs.folder / "b ran").exists(), "without the view the poison works"


def test_trusted_code_runs_under_our_witness(runs: Batch) -> None:
    assert only_line(runs, "trusted")["class"] == "ToyForCausalLM"
    assert runs.result("trusted") == runs.result("float32")


LOOKS_BACK = (
    "1 attention layers look back at 96 of a row's 96 tokens, not at 32 (sliding_window 32)"
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trusted", []),
        ("own attention", ["2 layers computed sdpa attention, not eager", LOOKS_BACK]),
        (
            "attention that looks ahead",
            [
                "2 layers computed sdpa attention, not eager",
                "1 attention layers look at later tokens",
                LOOKS_BACK,
                "1 attention layers look at later tokens",
            ],
        ),
        ("narrow mlp", ["products of the first forward in bfloat16 (4), not float32"]),
        ("hidden mlp", ["products of the first forward in bfloat16 (4), not float32"]),
    ],
)
def test_what_trusted_code_does_otherwise_is_said(runs: Batch, name: str, said: list[str]) -> None:
    line = only_line(runs, name)
    expected = Expected("float32", "float32", None, "eager", "native", 1, 4, 32)
    found = differences(expected, Observed({0: line}, {}), 1, is_first_node=False)
    assert found == [f"rank 0: {sentence}" for sentence in said]


def test_a_trainable_head_learns(runs: Batch) -> None:
    line = only_line(runs, "trainable head")
    heads = [name for name in runs.result("trainable head")["adapter"] if "lm_head" in name]
    assert heads and line["linear_dtype"] == "float32"
