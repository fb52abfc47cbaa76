"""Runs in the training interpreter: the logits of one adapter over stored bf16 weights, over
float32 weights, and as LLaMA-Factory itself loads it (merged). argv: child folder, specification of
the first two, LLaMA-Factory's arguments.
"""

import json
import sys

import torch

sys.path.insert(0, sys.argv[1])
import predict_rows
import run_model


def look(engine, spec):
    rows = predict_rows.read_rows(engine, spec["data"], 8)
    with torch.inference_mode():
        logits = [
            engine.model(input_ids=torch.tensor([row.ids + row.reference_ids])).logits
            for row in rows
        ]
    return (
        logits,
        predict_rows.generate(engine, rows, 24),
        run_model.observe(engine.model, engine.tokenizer),
    )


def main():
    specs = [json.loads(text) for text in sys.argv[2:4]]
    (exact, exact_tokens, proof), (wide, wide_tokens, wide_proof) = (
        look(run_model.load(spec).engine, spec) for spec in specs
    )
    # once more over float32 weights, under the autocast that a run with precision bf16 has
    half, half_tokens, half_proof = look(
        run_model.load(specs[1] | {"autocast": "bfloat16"}).engine, specs[1]
    )
    from llamafactory.chat import hf_engine
    from llamafactory.chat.hf_engine import HuggingfaceEngine
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model

    hf_engine.load_model = load_model
    merged = HuggingfaceEngine(
        *get_infer_args(run_model.known_arguments({"arguments": json.loads(sys.argv[4])}))
    )
    merged_logits, _, _ = look(merged, specs[0])
    print(
        json.dumps(
            {
                "same_bits": all(
                    torch.equal(one, other) for one, other in zip(exact, wide, strict=True)
                ),
                "same_tokens": exact_tokens == wide_tokens,
                "merged_same_bits": all(
                    torch.equal(one, other) for one, other in zip(exact, merged_logits, strict=True)
                ),
                "half": [
                    half_proof[name] for name in ("autocast", "linear_dtype", "attention_dtype")
                ],
                "half_same_bits": all(
                    torch.equal(one, other) for one, other in zip(exact, half, strict=True)
                ),
                "half_logits": str(half[0].dtype),
                "half_answers": sum(
                    one[:6] == other[:6]
                    for one, other in zip(exact_tokens, half_tokens, strict=True)
                )
                > 4,
                "logits_dtype": str(exact[0].dtype),
                "weights": [list(one["weights"]) for one in (proof, wide_proof)],
                "arithmetic": [one["linear_dtype"] for one in (proof, wide_proof)],
            }
        )
    )


if __name__ == "__main__":
    main()
