"""How far a merged model is from its adapter, on rows that the run was trained on.

Runs in the training interpreter (see run_model.py). The specification: {"models": [with the
adapter, merged] as load takes them, "data": {"folder", "name", "file"}, "count": rows}. The answer:
{"kind": "compared", "tokens": answer tokens compared, "agreement": share of them with the same
likeliest token, "divergence": mean KL divergence of the merged model's next-token
distribution from the adapter's in nats, "effect": the same of the bare base model's}.
"""

import gc
from contextlib import nullcontext
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


def main() -> None:
    link = Link()
    spec = link.receive()
    with_adapter, merged = spec["models"]
    engine = load(with_adapter).engine
    rows = [
        row
        for row in read_rows(engine, spec["data"], spec["count"])
        if len(row.ids) < spec["longest"]
    ]
    adapted = distributions(engine, rows, spec["longest"])
    base = distributions(engine, rows, spec["longest"], adapter=False)
    del engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    out = distributions(load(merged).engine, rows, spec["longest"])
    link.send(
        kind="compared",
        tokens=len(out),
        agreement=float((out.argmax(-1) == adapted.argmax(-1)).float().mean()),
        divergence=divergence(adapted, out),
        effect=divergence(adapted, base),
    )
    link.send(kind="end")


if __name__ == "__main__":
    main()
