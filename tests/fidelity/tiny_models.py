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

DELTA = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
}
YARN = {
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}
GEMMA4 = {
    "hidden_size": 96,
    "head_dim": 24,
    "global_head_dim": 32,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 320,
    "final_logit_softcapping": 30.0,
}
ROTATED = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [2, 3, 3],
    },
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
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
    "ministral3": ("Ministral3Config", "Ministral3ForCausalLM", YARN),
    "gemma4": ("Gemma4TextConfig", "Gemma4ForCausalLM", GEMMA4),
    "gemma4-shared": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {
            **GEMMA4,
            "num_hidden_layers": 4,
            "layer_types": GEMMA4["layer_types"] * 2,
            "num_kv_shared_layers": 2,
        },
    ),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", DELTA),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", EXPERTS),
}

# text models that differ from their class's by where images stand alone
TEXT_PARTS = {
    "qwen2-vl": ("Qwen2VLTextConfig", "Qwen2ForCausalLM", ROTATED),
    "qwen2_5-vl": ("Qwen2_5_VLTextConfig", "Qwen2ForCausalLM", ROTATED),
    "qwen3-vl": (
        "Qwen3VLTextConfig",
        "Qwen3ForCausalLM",
        {
            "head_dim": 16,
            "rope_parameters": {**ROTATED["rope_parameters"], "mrope_interleaved": True},
        },
    ),
}
PARTS = RECIPES | TEXT_PARTS

# the same families as published: name -> (family, text part's name, its tower, more keys)
WITH_TOWERS = {
    "gemma3-vision": ("Gemma3", "gemma3", TOWER, {"mm_tokens_per_image": 1}),
    "ministral3-vision": ("Mistral3", "ministral3", {"model_type": "pixtral", **TOWER}, {}),
    "mistral-vision": ("Mistral3", "mistral", {"model_type": "pixtral", **TOWER}, {}),
    "gemma4-vision": (
        "Gemma4",
        "gemma4",
        {**{k: v for k, v in TOWER.items() if k != "image_size"}, "head_dim": 8,
         "num_key_value_heads": 2},
        {},
    ),
    "qwen3_5-vision": (
        "Qwen3_5",
        "qwen3_5",
        {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
         "out_hidden_size": 64, "num_position_embeddings": 16},
        {},
    ),
    "qwen2_vl-vision": (
        "Qwen2VL", "qwen2-vl",
        {"depth": 1, "embed_dim": 16, "hidden_size": 64, "mlp_ratio": 1, "num_heads": 2}, {},
    ),
    "qwen2_5_vl-vision": (
        "Qwen2_5_VL", "qwen2_5-vl",
        {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
         "out_hidden_size": 64, "fullatt_block_indexes": [0]},
        {},
    ),
    "qwen3_vl-vision": (
        "Qwen3VL", "qwen3-vl",
        {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
         "out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        {},
    ),
    "internvl-vision": (
        "InternVL", "qwen2-untied", {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]}, {},
    ),
    "internvl3_5-vision": (
        "InternVL", "qwen3", {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]}, {},
    ),
    "llava-vision": ("Llava", "llama-untied", {"model_type": "clip_vision_model", **TOWER}, {}),
    "pixtral-vision": ("Llava", "mistral", {"model_type": "pixtral", **TOWER}, {}),
    "llava_onevision-vision": (
        "LlavaOnevision", "qwen2-tied", {"model_type": "siglip_vision_model", **TOWER}, {},
    ),
    "smolvlm-vision": ("SmolVLM", "llama-tied", TOWER, {}),
    "idefics3-vision": ("Idefics3", "llama-untied", TOWER, {}),
}  # fmt: skip
# as Qwen2-VL and Qwen2.5-VL are published: the text model's keys beside vision_config
FLAT = ("qwen2_vl-vision", "qwen2_5_vl-vision")


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
    torch.manual_seed(7)
    if name in WITH_TOWERS:
        family, part, tower, more = WITH_TOWERS[name]
        text = getattr(transformers, PARTS[part][0])(**COMMON | PARTS[part][2])
        config_class, model_class = f"{family}Config", f"{family}ForConditionalGeneration"
        keys = {"text_config": text.to_dict(), "vision_config": tower, **more}
        keys["tie_word_embeddings"] = getattr(text, "tie_word_embeddings", False)
    else:
        config_class, model_class, keys = RECIPES[name]
        keys = COMMON | keys
    config = getattr(transformers, config_class)(**keys)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases off 1 and 0: a cast of either must show
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in parameter_name:
                parameter.mul_(2)
    stored = torch.float16 if name.endswith("fp16") else torch.bfloat16
    model.to(stored)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("A_log", "linear_attn.norm.weight")):
            parameter.data = parameter.data.float() + 1e-5  # as Qwen3.5 is published
    # as big models are: in several files, with an index
    size = "100KB" if name == "qwen3_5-vision" else "5GB"
    model.save_pretrained(folder / "model", max_shard_size=size)
    make_tokenizer().save_pretrained(folder / "model")
    if name in FLAT:
        path = folder / "model" / "config.json"
        whole = json.loads(path.read_text(encoding="utf-8"))
        text = whole.pop("text_config")
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        path.write_text(json.dumps(text | whole), encoding="utf-8")


def make_adapter(name, folder):
    recipe = PARTS[WITH_TOWERS[name][1] if name in WITH_TOWERS else name]
    config = transformers.AutoConfig.from_pretrained(folder / "model").get_text_config()
    stock = getattr(transformers, recipe[1])
    if not isinstance(config, stock.config_class):
        config = stock.config_class(**COMMON | recipe[2] | {"rope_parameters": None})
    model = stock(config)
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
            make_adapter(name, root / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [*RECIPES, *WITH_TOWERS])
