"""The plan's predicted peak against traces of the real step: LLaMA-Factory, peft, transformers on
tensors without data.

python benchmarks/plan_against_traces.py [CASES] [SEED]

Full-size models, every combination drawn at random: precision, weights, kernel, batch, length,
checkpointing, layers that keep their products, positions with logits, rank, targets, dropout,
optimizer. Traces, not measurements on a GPU: workspaces of
kernels and fragmentation are not in them.
"""

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from iisft.estimate.architecture import read_architecture
from iisft.estimate.memory import GIB, estimate_memory, optimizer_bytes, weight_bytes
from iisft.estimate.shape import Layout, StepShape

TRACE = Path(__file__).parents[1] / "src/iisft/child/trace_step.py"


def config(kind: str, name: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, vocabulary = sizes
    return {
        "model_type": kind, "architectures": [name], "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary, "tie_word_embeddings": False, **more,
    }  # fmt: skip


TIED = {"tie_word_embeddings": True}
GEMMA2 = {
    "head_dim": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}
MODELS = {
    "Qwen2.5-0.5B": config("qwen2", "Qwen2ForCausalLM", (896, 4864, 24, 14, 2, 151936), **TIED),
    "Qwen2.5-1.5B": config("qwen2", "Qwen2ForCausalLM", (1536, 8960, 28, 12, 2, 151936), **TIED),
    "Qwen2.5-3B": config("qwen2", "Qwen2ForCausalLM", (2048, 11008, 36, 16, 2, 151936), **TIED),
    "Qwen2.5-7B": config("qwen2", "Qwen2ForCausalLM", (3584, 18944, 28, 28, 4, 152064)),
    "Qwen2.5-14B": config("qwen2", "Qwen2ForCausalLM", (5120, 13824, 48, 40, 8, 152064)),
    "Qwen3-4B": config(
        "qwen3", "Qwen3ForCausalLM", (2560, 9728, 36, 32, 8, 151936), head_dim=128, **TIED
    ),
    "Qwen3-8B": config("qwen3", "Qwen3ForCausalLM", (4096, 12288, 36, 32, 8, 151936), head_dim=128),
    "Llama-2-7B": config("llama", "LlamaForCausalLM", (4096, 11008, 32, 32, 32, 32000)),
    "Llama-3-8B": config("llama", "LlamaForCausalLM", (4096, 14336, 32, 32, 8, 128256)),
    "Mistral-7B": config(
        "mistral", "MistralForCausalLM", (4096, 14336, 32, 32, 8, 32768), sliding_window=None
    ),
    "Gemma-2B": config(
        "gemma", "GemmaForCausalLM", (2048, 16384, 18, 8, 1, 256000), head_dim=256, **TIED
    ),
    "Gemma-2-2B": config(
        "gemma2", "Gemma2ForCausalLM", (2304, 9216, 26, 8, 4, 256000), **GEMMA2, **TIED
    ),
    "Gemma-2-9B": config(
        "gemma2", "Gemma2ForCausalLM", (3584, 14336, 42, 16, 8, 256000), **GEMMA2, **TIED
    ),
    "Gemma-3-1B": config(
        "gemma3_text", "Gemma3ForCausalLM", (1152, 6912, 26, 4, 1, 262144), head_dim=256, **TIED
    ),
    "GLM-4-9B-0414": config(
        "glm4", "Glm4ForCausalLM", (4096, 13696, 40, 32, 2, 151552), attention_bias=True
    ),
    "glm-4-9b-hf": config(
        "glm", "GlmForCausalLM", (4096, 13696, 40, 32, 2, 151552), attention_bias=True
    ),
    "Phi-3-mini": config(
        "phi3", "Phi3ForCausalLM", (3072, 8192, 32, 32, 32, 32064), pad_token_id=32000
    ),
}
PRECISIONS = (
    {"weights": "float32", "arithmetic": "native", "autocast": None},
    {"weights": "bfloat16", "arithmetic": "float32", "autocast": None},
    {"weights": "bfloat16", "arithmetic": "native", "autocast": None},
    {"weights": "bfloat16", "arithmetic": "native", "autocast": "bfloat16"},
    {"weights": "bfloat16", "arithmetic": "native", "autocast": "float16"},
    {"weights": "float16", "arithmetic": "native", "autocast": "float16"},
    {"weights": "float32", "arithmetic": "native", "autocast": "bfloat16"},
)


def draw(chance: random.Random) -> dict[str, Any]:
    name = chance.choice(sorted(MODELS))
    precision = chance.choice(PRECISIONS)
    half = (
        precision["arithmetic"] == "native"
        and (precision["autocast"] or precision["weights"]) != "float32"
    )
    batch, length = chance.choice(
        [(1, 512), (1, 1024), (1, 2048), (1, 4096), (2, 1024), (4, 512), (2, 2048), (8, 256)]
    )
    targets = chance.choice(["q_proj,v_proj", "all", "all"])
    shared = precision["arithmetic"] == "native" and chance.random() < 0.2
    checkpointing = chance.random() < 0.6
    step: dict[str, Any] = {}
    if not shared and checkpointing and chance.random() < 0.8:
        layers = MODELS[name]["num_hidden_layers"]
        step["layers_kept"] = chance.choice([1, layers // 3, layers // 2, layers - 1, layers])
    if not shared and chance.random() < 0.6:
        step |= {"logits": "trained", "positions": chance.choice([length // 6, length // 2,
                 length]), "chunk": chance.choice([0, 0, 256, 512])}  # fmt: skip
    return {
        "name": name, "config": MODELS[name], **precision,
        "attention": chance.choice(
            ["eager", "eager_blocks", "math", "efficient", *(["flash"] if half else [])]
        ),
        "batch": batch, "length": length, "checkpointing": checkpointing,
        "rank": chance.choice([8, 16, 64, 128]), "dropout": chance.choice([0.0, 0.05]),
        "target": "all" if name.startswith("Phi") else targets,
        "optimizer": chance.choice(["adamw_torch", "adamw_torch", "adamw_torch_fused", "sgd",
                                    "adafactor"]),
        "sharding": "fsdp" if shared else "none", "ranks": chance.choice([2, 4]) if shared else 1,
        **step,
    }  # fmt: skip


def predicted(case: dict[str, Any]) -> tuple[int, int]:
    """Peak, and what of it was there before the step began."""
    model = read_architecture(case["config"], case["target"])
    assert model is not None
    shape = StepShape(
        case["weights"], "exact" if case["arithmetic"] == "float32" else "native", case["autocast"],
        case["attention"], case["batch"], case["length"], case["checkpointing"], case["rank"],
        case["dropout"], layers_kept=case.get("layers_kept", 0), positions=case.get("positions"),
        chunk=case.get("chunk", 0),
    )  # fmt: skip
    layout = Layout(
        case["ranks"], case["sharding"], case["optimizer"], 1, case["autocast"] is not None
    )
    memory = estimate_memory(model, shape, layout, 80)
    weights = (
        4 * model.parameters
        if case["ranks"] > 1 and case["autocast"]
        else weight_bytes(model, shape)
    )
    static = (
        weights
        + optimizer_bytes(model, shape, case["optimizer"])
        + 4 * model.adapter_parameters(case["rank"])
    )
    return memory.peak, static // case["ranks"]


def main(count: int, seed: int) -> None:
    chance = random.Random(seed)
    cases = [draw(chance) for _ in range(count)]
    command = [sys.executable, str(TRACE)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(cases))
        child.stdin.close()
        whole, within = [], []
        for case, line in zip(cases, child.stdout, strict=True):
            traced = json.loads(line)
            about = " ".join(str(value) for key, value in case.items() if key != "config")
            if "error" in traced:
                print(f"no trace: {about}: {traced['error']}")
                continue
            peak, static = predicted(case)
            whole.append(peak / traced["peak"])
            within.append((peak - static) / (traced["peak"] - static))
            print(f"{traced['peak'] / GIB:7.2f} GiB traced, predicted / traced {whole[-1]:.4f}, "
                  "of what the step adds "
                  f"{within[-1]:.3f}: {about}", flush=True)  # fmt: skip
    for name, ratios in (("whole peak", whole), ("what the step adds", within)):
        print(
            f"{name}: {len(ratios)} cases, median {statistics.median(ratios):.4f}, "
            f"{min(ratios):.4f} to {max(ratios):.4f}; within 1 %: "
            f"{sum(abs(r - 1) <= 0.01 for r in ratios)}"
        )


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1
    )
