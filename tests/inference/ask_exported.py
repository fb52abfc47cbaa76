"""Runs in the training interpreter: greedy answers of an exported folder, by stock transformers
alone.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder, rows_file):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for row in map(json.loads, Path(rows_file).read_text(encoding="utf-8").splitlines()):
        messages = [
            {
                "role": "system",
                "content": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            },
            {"role": "user", "content": f"{row['instruction']}\n{row['input']}"},
        ]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=64, do_sample=False)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    facts = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "dtype": str(model.dtype),
    }
    print(json.dumps(facts | {"answers": answers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
