"""Writes a model with its adapter merged, and says what its tokenizer came to be in training.

Runs in the training interpreter (see run_model.py). The specification: {"arguments":
LLaMA-Factory's, for the tokenizer, "model": the base model's folder, "adapter": null to merge
nothing, "stored": the dtype of its weights, "dtype": the one to write, "trusted": whether its own
code may run, "target": an empty folder, "texts": on which tokenizers are compared, "rows": of the
base model's embedding where nothing resizes it, else null, "part": null, or for
text_part_weights.py what the text model inside a bigger one is}.

The answer: {"kind": "merged", "rows": of the embedding or null, "tied": whether embedding and head
are one matrix, "tokenizer": what tokenizer_facts says}.

Each weight is rounded once: the sum is computed in float32 and stored as `dtype`.
"""

from pathlib import Path
from typing import Any

import text_part_weights
import torch
from peft import PeftModel
from run_model import Link, known_arguments
from tokenizer_facts import tokenizer_facts
from transformers import AutoModelForCausalLM, GenerationConfig


def merge(spec: dict[str, Any], model_args: Any, tokenizer: Any) -> dict[str, Any]:
    dtype = getattr(torch, spec["dtype"])
    # torch adds float32 to a narrower weight in place by summing in float32 and rounding once;
    # changing the dtype afterwards would round again
    loaded = dtype if spec["dtype"] == spec["stored"] else torch.float32
    if spec["part"]:
        model = text_part_weights.load(spec, loaded)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            spec["model"], dtype=loaded, trust_remote_code=spec["trusted"], local_files_only=True
        )
    if model_args.resize_vocab:
        from llamafactory.model.model_utils.embedding import resize_embedding_layer

        resize_embedding_layer(model, tokenizer)  # the adapter has the rows
    model = PeftModel.from_pretrained(model, spec["adapter"]).merge_and_unload(safe_merge=True)
    # a published one that today's transformers calls invalid can't be saved; export writes it
    model.generation_config = GenerationConfig()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head is None or torch.equal(embedding, head.weight)
    if not tied:
        # an adapter that trained both has untied them; save_pretrained() keeps one of tied ones
        model.config.tie_word_embeddings = False
    if spec["part"]:
        text_part_weights.save(spec, model.to(dtype))
    else:
        model.to(dtype).save_pretrained(spec["target"], max_shard_size="5GB")
    return {"rows": embedding.shape[0], "tied": tied}


def main() -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_tokenizer

    link = Link()
    spec = link.receive()
    model_args, data_args, _, _ = get_infer_args(known_arguments(spec))
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    tokenizer.padding_side = "left"  # model/loader.py sets "right", for training
    merged = merge(spec, model_args, tokenizer) if spec["adapter"] else {"rows": None, "tied": None}
    facts = tokenizer_facts(
        Path(spec["model"]),
        Path(spec["target"]),
        tokenizer,
        template.get_stop_token_ids(tokenizer),
        spec["texts"],
        merged["rows"] or spec["rows"],
    )
    link.send(kind="merged", tokenizer=facts, **merged)
    link.send(kind="end")


if __name__ == "__main__":
    main()
