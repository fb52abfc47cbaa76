"""How far an exported model is from its adapter, on rows that the run was trained on.

Runs in the training interpreter (see run_model.py). The specification: {"models": [with the
adapter, exported] as load takes them, the second may be {"gguf": file, "merged": the folder it was
made from} instead, "data": {"folder", "name", "file"}, "count": rows, "longest": tokens,
"tokenizer": the exported folder or null, "trusted": whether its own code may run, "conversations":
fixed ones}. The answer: {"kind": "compared", "tokens": answer tokens compared, "agreement": share
of them with the same likeliest token, "divergence": mean KL divergence of the exported model's
next-token distribution from the adapter's in nats, "effect": the same of the bare base model's}
and, with a tokenizer, "prompts", "equal" and "unlike" (compare_prompts).
"""

import gc
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from predict_rows import Row, read_rows
from run_model import Link, load


@torch.inference_mode()
def distributions(
    engine: Any, rows: list[Row], longest: int, *, adapter: bool = True
) -> torch.Tensor:
    """Log-probabilities of the next token at each token of each reference, float32, on the CPU."""
    found = []
    with nullcontext() if adapter else engine.model.disable_adapter():
        for row in rows:
            ids = (row.ids + row.reference_ids)[:longest]
            logits = engine.model(
                input_ids=torch.tensor([ids], device=engine.model.device), use_cache=False
            ).logits
            found.append(logits[0, len(row.ids) - 1 : -1].float().log_softmax(-1).cpu())
    return torch.cat(found)


def divergence(of: torch.Tensor, to: torch.Tensor) -> float:
    return float((of.exp() * (of - to)).sum(-1).mean())


def compare_prompts(engine: Any, rows: list[Row], spec: dict[str, Any]) -> dict[str, Any]:
    """What the exported chat template makes of rows and conversations, beside the training's.

    LLaMA-Factory tokenises question and answer apart, so that tokens at their borders can differ
    under the same text: `equal` counts, `unlike` is a text that differs.
    """
    from transformers import AutoTokenizer

    exported = AutoTokenizer.from_pretrained(
        spec["tokenizer"], trust_remote_code=spec["trusted"], local_files_only=True
    )
    asked = [(row.ids, row.asked) for row in rows if row.asked is not None]
    for conversation in spec["conversations"]:
        messages = conversation["messages"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages[1:] if system else messages
        answer = {"role": "assistant", "content": ""}
        ids, _ = engine.template.encode_oneturn(engine.tokenizer, [*turns, answer], system)
        asked.append((ids, messages))
    equal, unlike = 0, None
    for ids, messages in asked:
        made = exported.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        equal += made == ids
        text = exported.decode(made)
        if made != ids and text != engine.tokenizer.decode(ids):
            unlike = text
    return {"prompts": len(asked), "equal": equal, "unlike": unlike}


def read_gguf(file: Path, merged: str, trusted: bool) -> Any:
    """The model of a GGUF file, its weights made float32 again.

    The configuration is that of the folder it was made from: transformers reads back only a part
    of it (no head_dim for Qwen3).
    """
    from transformers import AutoConfig, AutoModelForCausalLM, modeling_gguf_pytorch_utils

    # it asks for a distribution named gguf, while the converter's has a newer module gguf in it
    modeling_gguf_pytorch_utils.is_gguf_available = lambda *_: True
    config = AutoConfig.from_pretrained(merged, trust_remote_code=trusted, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        config=config,
        dtype=torch.float32,
        trust_remote_code=trusted,
    )
    return SimpleNamespace(model=model.eval())


def main() -> None:
    link = Link()
    spec = link.receive()
    with_adapter, other = spec["models"]
    engine = load(with_adapter).engine
    rows = [
        row
        for row in read_rows(engine, spec["data"], spec["count"])
        if len(row.ids) < spec["longest"]
    ]
    adapted = distributions(engine, rows, spec["longest"])
    base = distributions(engine, rows, spec["longest"], adapter=False)
    of_prompts = compare_prompts(engine, rows, spec) if spec["tokenizer"] else {}
    del engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if "gguf" in other:
        exported = read_gguf(Path(other["gguf"]), other["merged"], spec["trusted"])
    else:
        exported = load(other).engine
    out = distributions(exported, rows, spec["longest"])
    link.send(
        kind="compared",
        tokens=len(out),
        agreement=float((out.argmax(-1) == adapted.argmax(-1)).float().mean()),
        divergence=divergence(adapted, out),
        effect=divergence(adapted, base),
        **of_prompts,
    )
    link.send(kind="end")


if __name__ == "__main__":
    main()
