"""Runs in the training interpreter: greedy answers to rows, by a base model alone and with an
adapter (peft).
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def answers(model, tokenizer, rows):
    found = []
    for row in rows:
        messages = [
            {
                "role": "system",
                "content": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            },
            {"role": "user", "content": f"{row['instruction']}\n{row['input']}"},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            out = model.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
        found.append(tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip())
    return found


def main(base, adapter, rows_file):
    rows = [json.loads(line) for line in Path(rows_file).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = answers(model, tokenizer, rows)
    after = answers(PeftModel.from_pretrained(model, adapter), tokenizer, rows)
    print(json.dumps({"before": before, "after": after}))


if __name__ == "__main__":
    main(*sys.argv[1:])
