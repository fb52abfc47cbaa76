"""The text model inside one that is published with a vision or audio tower.

Such a folder's config.json holds the text model's own as `text_config`, and its files hold the text
model's tensors under another prefix, beside the tower's. transformers has a class for the text
model alone; given the right names it loads these files, and answers with the same bits.
"""

import re
from collections.abc import Mapping
from typing import Any

from iisft.models.folder.safetensors import Tensor

# (model_type, text_config's model_type) -> the class of the text model alone. Shown to answer as
# the whole model does by tests/fidelity/test_text_part.py; a new line needs a case there.
CLASSES = {
    ("gemma3", "gemma3_text"): "Gemma3ForCausalLM",
    ("gemma4", "gemma4_text"): "Gemma4ForCausalLM",
    ("mistral3", "ministral3"): "Ministral3ForCausalLM",
    ("mistral3", "mistral"): "MistralForCausalLM",
    ("qwen3_5", "qwen3_5_text"): "Qwen3_5ForCausalLM",
    ("qwen2_vl", "qwen2_vl_text"): "Qwen2ForCausalLM",
    ("qwen2_5_vl", "qwen2_5_vl_text"): "Qwen2ForCausalLM",
    ("qwen3_vl", "qwen3_vl_text"): "Qwen3ForCausalLM",
    ("internvl", "qwen2"): "Qwen2ForCausalLM",
    ("internvl", "qwen3"): "Qwen3ForCausalLM",
    ("llava", "llama"): "LlamaForCausalLM",
    ("llava", "mistral"): "MistralForCausalLM",
    ("llava_onevision", "qwen2"): "Qwen2ForCausalLM",
    ("idefics3", "llama"): "LlamaForCausalLM",
    ("smolvlm", "llama"): "LlamaForCausalLM",
}
# a text_config's model_type -> the class's own: the same layers, but for images' positions, which
# are ordinary ones in text
_TYPES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
_OF_IMAGES = ("mrope_section", "mrope_interleaved")
# published with the text model's keys beside vision_config, not in a text_config
_FLAT = ("qwen2_vl", "qwen2_5_vl")

# Prefixes in published files, as transformers has written them over the years: model.language_model
# (5), language_model.model (4), model.language_model.model (5, of a converted one).
NAMES = {
    r"^(?:model\.)?(?:language|text)_model\.(?:model\.)?(?!lm_head\.)": "model.",
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
}
# what such files hold besides; `mtp` predicts several tokens at once, and no class loads it
LEFT_OUT = (
    r"^(?:model\.)?(?:visual|vision_tower|vision_model|multi_modal_projector|connector"
    r"|embed_vision|audio_tower|embed_audio)\.",
    r"^(?:model\.)?image_newline$",
    r"^mtp\.",
)
# of the whole model, where text_config does not say them itself
_INHERITED = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "quantization_config",
)
_TIED = "tie_word_embeddings"


def text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config.json of the text model alone; None where there is no tower, or an unknown one."""
    whole = str(config.get("model_type"))
    inner = config.get("text_config")
    if inner is None and whole in _FLAT:
        inner = {key: value for key, value in config.items() if not key.startswith("vision_")}
        inner["model_type"] = f"{whole}_text"
    if not isinstance(inner, dict):
        return None
    kind = str(inner.get("model_type"))
    name = CLASSES.get((whole, kind))
    if name is None:
        return None
    if kind in _TYPES:
        inner = _without_images({**inner, "model_type": _TYPES[kind]})
    more = {key: config[key] for key in _INHERITED if config.get(key) is not None}
    said = {key: value for key, value in inner.items() if value is not None or key not in more}
    tied = {_TIED: config[_TIED]} if _TIED in config else {}  # the whole model's word decides
    return {**more, **said, **tied, "architectures": [name]}


def _without_images(config: dict[str, Any]) -> dict[str, Any]:
    """Without what only places images: `mrope` is ordinary rotation of a text's tokens."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if isinstance(rope, dict):
            kept = {name: value for name, value in rope.items() if name not in _OF_IMAGES}
            kept |= {n: "default" for n in ("type", "rope_type") if kept.get(n) == "mrope"}
            config[key] = kept
    return config


def with_head(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A text_config() that says whether embedding and head are one matrix; files know it."""
    return config if _TIED in config else {**config, _TIED: "lm_head.weight" not in tensors}


def text_name(name: str) -> str | None:
    """The name that a tensor of the files has in the text model; None for one of a tower."""
    for pattern, prefix in NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, prefix, name)
    return None if any(re.match(pattern, name) for pattern in LEFT_OUT) else name


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text model's tensors of a folder's files, under their names there."""
    named = ((text_name(name), tensor) for name, tensor in tensors.items())
    return {name: tensor for name, tensor in named if name is not None}
