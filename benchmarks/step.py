"""What a training step costs in each way to spend it, as ratios of full recomputation.

python benchmarks/step.py [ROUNDS]      in the training environment

A Qwen2 of 6 layers (hidden 1024, intermediate 5376, vocabulary 16,000), LoRA r64 on all layers with
dropout 0.05, one row of 512 tokens of which 17 % are trained, float32 products over bf16 weights;
one thread, processor seconds, medians over the rounds, the ways in turn within each round. Loss and
gradients are compared with those of full recomputation.
"""

import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any

import peft
import torch
from llamafactory.model.model_utils.checkpointing import _gradient_checkpointing_enable
from transformers import Qwen2Config, Qwen2ForCausalLM

CHILD = Path(__file__).parents[1] / "src" / "iisft" / "child"
TRUE, KEPT, BOTH = "true", "fit, room for all layers", "the same, logits where trained"
BARE = "float32 weights, LLaMA-Factory's own"
WAYS = {
    TRUE: {},
    KEPT: {"iisft_layers_kept": 6},
    "fit, room for half the layers": {"iisft_layers_kept": 3},
    "true, logits where trained": {"iisft_logits": "trained"},
    BOTH: {"iisft_layers_kept": 6, "iisft_logits": "trained"},
    "the same, in chunks of 32": {
        "iisft_layers_kept": 6,
        "iisft_logits": "trained",
        "iisft_logits_chunk": 32,
    },
    "true, attention in blocks": {"attention": "eager_blocks"},
    "fit and logits where trained, attention in blocks": {
        "attention": "eager_blocks",
        "iisft_layers_kept": 6,
        "iisft_logits": "trained",
    },
    "false": None,
    BARE: {},
}
LENGTH, TRAINED = 512, 87
CONFIG: dict[str, Any] = {
    "vocab_size": 16000, "hidden_size": 1024, "intermediate_size": 5376, "num_hidden_layers": 6,
    "num_attention_heads": 16, "num_key_value_heads": 4, "attn_implementation": "eager",
}  # fmt: skip


def modeling() -> Any:
    """The view's modelling file, as a package of its neighbours."""
    package = types.ModuleType("view")
    package.__path__ = [str(CHILD)]
    sys.modules["view"] = package
    import view.modeling_iisft as found  # type: ignore[import-not-found]

    return found


def model_of(stock: bool) -> tuple[Any, Any]:
    """Base and adapter; the stock one has the same weights in float32."""
    ours = modeling()
    sys.modules["view.attention_iisft"].register()
    torch.manual_seed(0)
    config = Qwen2Config(**CONFIG)
    base = (Qwen2ForCausalLM if stock else ours.step_class(Qwen2ForCausalLM))(config)
    base.to(torch.bfloat16)
    if stock:
        base.to(torch.float32)
    else:
        ours.make_exact(base)
    torch.manual_seed(1)
    lora = peft.LoraConfig(
        r=64, lora_alpha=128, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    whole = peft.get_peft_model(base, lora)
    torch.manual_seed(2)
    for name, parameter in whole.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.02
    return base, whole.train()


def step(base: Any, whole: Any, keys: dict[str, Any] | None) -> tuple[float, Any, float]:
    """Loss, gradients, processor seconds of forward and backward."""
    for key in ("iisft_layers_kept", "iisft_logits", "iisft_logits_chunk"):
        setattr(base.config, key, (keys or {}).get(key, 0))
    base.config._attn_implementation = (keys or {}).get("attention", "eager")
    base.gradient_checkpointing_disable()
    if keys is not None:
        _gradient_checkpointing_enable(base, {"use_reentrant": True})
    torch.manual_seed(3)
    ids = torch.randint(0, CONFIG["vocab_size"], (1, LENGTH))
    labels = ids.clone()
    labels[:, : LENGTH - TRAINED] = -100
    torch.manual_seed(4)
    start = time.process_time()
    loss = whole(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(TRAINED)).loss
    loss.backward()
    seconds = time.process_time() - start
    gradients = {n: p.grad.clone() for n, p in whole.named_parameters() if p.grad is not None}
    whole.zero_grad(set_to_none=True)
    return loss.item(), gradients, seconds


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    exact, stock = model_of(stock=False), model_of(stock=True)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    first: dict[str, tuple[float, Any]] = {}
    for _ in range(rounds + 1):
        for way, keys in WAYS.items():
            loss, gradients, spent = step(*(stock if way == BARE else exact), keys)
            if way in first:  # the first round warms up
                seconds[way].append(spent)
            else:
                first[way] = loss, gradients
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    reference, wanted = first[TRUE]
    for way, (loss, gradients) in first.items():
        same = all(torch.equal(gradients[name], wanted[name]) for name in wanted)
        worst = max(
            float((gradients[name] - wanted[name]).abs().max() / wanted[name].abs().max())
            for name in wanted
        )
        print(
            f"{medians[way]:6.2f} s  {medians[way] / medians[TRUE]:.3f} of true  "
            f"{medians[way] / medians[BARE]:.3f} of bare  {way}: loss "
            f"{'same bits' if loss == reference else f'{abs(loss / reference - 1):.1e} off'}, "
            f"gradients {'same bits' if same else f'{worst:.1e} off'}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
