"""Writes a model with its adapter merged, and the tokenizer and template of the training.

Runs in the training interpreter (see run_model.py). The specification: {"arguments":
LLaMA-Factory's, for the tokenizer, "model": the base model's folder, "adapter", "stored": the dtype
of its weights, "dtype": the one to write, "trusted": whether its own code may run, "target": an
empty folder, "part": of a text model inside a bigger one, see text_part_weights.py, else null}.

Each weight is rounded once: the sum is computed in float32 and stored as `dtype`.
"""

from pathlib import Path
from typing import Any

import text_part_weights
import torch
from peft import PeftModel
from run_model import Link, known_arguments
from transformers import AutoModelForCausalLM


def merge(spec: dict[str, Any]) -> None:
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
    model = PeftModel.from_pretrained(model, spec["adapter"]).merge_and_unload(safe_merge=True)
    if spec["part"]:
        text_part_weights.save(spec, model.to(dtype))
    else:
        model.to(dtype).save_pretrained(spec["target"], max_shard_size="5GB")


def save_tokenizer(spec: dict[str, Any]) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, _, _ = get_infer_args(known_arguments(spec))
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    tokenizer.padding_side = "left"  # model/loader.py sets "right", for training
    tokenizer.save_pretrained(spec["target"])
    (Path(spec["target"]) / "Modelfile").write_text(
        template.get_ollama_modelfile(tokenizer), encoding="utf-8"
    )


def main() -> None:
    link = Link()
    spec = link.receive()
    merge(spec)
    link.send(kind="merged")
    save_tokenizer(spec)
    link.send(kind="end")


if __name__ == "__main__":
    main()
