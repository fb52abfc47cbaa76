"""Makes tiny random models, one starting adapter each and a data set. Runs in the training
interpreter:

python tiny_models.py FOLDER NAME...

FOLDER/NAME/model is the model (bf16, or fp16 where its name says so), FOLDER/NAME/start its LoRA
adapter (A and B not zero), FOLDER/data the rows.
"""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 256,
    "bos_token_id": None,
    "eos_token_id": 258,
}
# sqrt(96), the scale of its embedding, is no bf16 number
GEMMA = {"hidden_size": 96, "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 32}
EXPERTS = {
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}

# name -> (configuration class, model class, keys)
RECIPES = {
    "qwen2-tied": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "qwen2-fp16": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-untied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": False}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 32}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", GEMMA),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", {"head_dim": 16}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", {"use_qkv_bias": True}),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", EXPERTS),
}


def make_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def make_model(name, folder):
    config_class, model_class, keys = RECIPES[name]
    torch.manual_seed(7)
    config = getattr(transformers, config_class)(**COMMON | keys)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases off 1 and 0: a cast of either must show
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in parameter_name:
                parameter.mul_(2)
    stored = torch.float16 if name.endswith("fp16") else torch.bfloat16
    model.to(stored).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")


def make_adapter(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    torch.manual_seed(11)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder / "start")


def make_data(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "instruction": f"第{i}条: {i * 37 % 101}",
            "input": "情报 " * (i % 5),
            "output": f'{{"k": {i * i}}}',
        }
        for i in range(32)
    ]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    long = [{**row, "input": "情报 " * (30 + i)} for i, row in enumerate(rows)]
    (folder / "long.json").write_text(json.dumps(long, ensure_ascii=False), encoding="utf-8")
    register = {name: {"file_name": f"{name}.json"} for name in ("rows", "long")}
    (folder / "dataset_info.json").write_text(json.dumps(register), encoding="utf-8")


def main(root, names):
    make_data(root / "data")
    for name in names:
        make_model(name, root / name)
        if name != "qwen3-moe":
            make_adapter(root / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(RECIPES))
