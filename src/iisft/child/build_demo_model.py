"""Builds the demo's base model: a tiny bf16 Qwen2 with byte-level BPE, the same every time.

Runs in the training interpreter: python build_demo_model.py ROWS.jsonl TARGET_FOLDER

The model is pretrained for half a minute, as a base model is before fine-tuning: on bulletins with
their section and place, and on lines of JSON. It never sees a chat, or a bulletin answered with
JSON. Without this the frozen head of an untrained model would bound its logits, and no adapter
could bring the loss down.
"""

import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

# Read when torch is loaded; the number of threads changes the order of sums, and so the bits.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 1200
STEPS, BATCH, LENGTH = 400, 12, 96
# as Qwen2.5's own: what LLaMA-Factory's template qwen writes
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Qwen, created by Alibaba "
    "Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: list[str]) -> Any:
    """A tokenizer with ChatML's special tokens, which LLaMA-Factory's template qwen expects."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: Any, texts: list[str]) -> tuple[Any, float]:
    """Train on the texts in float32, then round to bf16 as published models are."""
    torch.manual_seed(42)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    stream = torch.tensor(
        tokenizer("<|endoftext|>".join(texts), add_special_tokens=False)["input_ids"]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(42)
    for _ in range(STEPS):
        starts = torch.randint(0, len(stream) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([stream[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.to(torch.bfloat16), float(loss.detach())


def main(rows_file: Path, target: Path) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    tokenizer = build_tokenizer([text for row in rows for text in row.values()])
    answers = [json.loads(row["output"]) for row in rows]
    texts = [
        f"{row['input']} ({answer.get('topic', 'other')}, {answer.get('place', 'nowhere')})"
        for row, answer in zip(rows, answers, strict=True)
    ]
    texts += [f"{row['instruction']}\n{row['input']}" for row in rows[::3]] + [
        row["output"] for row in rows
    ]
    random.Random(42).shuffle(texts)
    model, loss = build_model(tokenizer, texts)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, "
        f"text loss {loss:.3f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
