"""What each family of models has that costs memory, beyond the sizes in its config.json."""

from collections.abc import Mapping
from typing import Any

# model_type -> features that cost memory. Another family is counted as a Llama, and the plan
# says so.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"qk_norm": True},
    "ministral3": {"scaled_query": True},
    "gemma": {"norm_before_cast": True, "scaled_embedding": True},
    "gemma2": {
        "norm_before_cast": True,
        "scaled_embedding": True,
        "sandwich_norms": True,
        "attention_softcap": True,
        "logit_softcap": True,
        "masks": 2,
    },
    "gemma3_text": {
        "norm_before_cast": True,
        "scaled_embedding": True,
        "sandwich_norms": True,
        "qk_norm": True,
        "masks": 2,
    },
    "glm": {},
    "glm4": {"sandwich_norms": True},
    "chatglm": {},
    "phi3": {},
    "qwen3_5_text": {"norm_before_cast": True, "qk_norm": True, "gated_query": True},
    "gemma4_text": {
        "norm_before_cast": True,
        "scaled_embedding": True,
        "sandwich_norms": True,
        "qk_norm": True,
        "value_norm": True,
        "layer_scalar": True,
        "logit_softcap": True,
        "masks": 2,
    },
}
# Layers of other kinds, that this account has no words for.
BEYOND = ("gemma3n_text",)
GEMMA4 = "gemma4_text"
# What published configs leave out, because it is the class's default (configuration_gemma3.py).
UNSAID: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
    },
    "gemma4_text": {
        "head_dim": 256,
        "global_head_dim": 512,
        "final_logit_softcapping": None,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
    },
}
DELTA = "qwen3_5_text"
_FUSED_MLP = ("glm", "glm4", "chatglm", "phi3")
_FUSED_ATTENTION = ("chatglm", "phi3")
TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3_text", "gemma4_text")
CHATGLM_NAMES = {
    "query_key_value": "qkv_proj",
    "dense": "o_proj",
    "dense_h_to_4h": "gate_up_proj",
    "dense_4h_to_h": "down_proj",
}


def features(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The family's features; a soft cap that config.json sets to null is off."""
    found = dict(FAMILIES.get(kind, {}))
    for flag, key in (
        ("attention_softcap", "attn_logit_softcapping"),
        ("logit_softcap", "final_logit_softcapping"),
    ):
        if flag in found:
            found[flag] = bool(config.get(key, True))
    return found


def rotary_share(config: Mapping[str, Any], kind: str) -> float:
    """The part of each head that is rotated."""
    rope = config.get("rope_parameters")
    share = config.get("partial_rotary_factor")
    if not share and isinstance(rope, Mapping):
        share = rope.get("partial_rotary_factor")
    share = share if isinstance(share, int | float) and 0 < share <= 1 else None
    if share is None and kind in ("glm", "glm4", "chatglm"):
        share = 0.5  # what transformers' GlmConfig assumes where config.json says nothing
    return float(share or 1.0)


def layer_projections(
    kind: str, hidden: int, intermediate: int, query: int, key: int
) -> list[tuple[str, int, int]]:
    gated = 2 if kind == DELTA else 1  # the query's projection makes the gate too
    attention = [
        ("q_proj", hidden, gated * query),
        ("k_proj", hidden, key),
        ("v_proj", hidden, key),
    ]
    if kind in _FUSED_ATTENTION:
        attention = [("qkv_proj", hidden, query + 2 * key)]
    mlp = [("gate_proj", hidden, intermediate), ("up_proj", hidden, intermediate)]
    if kind in _FUSED_MLP:
        mlp = [("gate_up_proj", hidden, 2 * intermediate)]
    return [*attention, ("o_proj", query, hidden), *mlp, ("down_proj", intermediate, hidden)]


def biases(config: Mapping[str, Any], kind: str, query: int, key: int) -> int:
    on_qkv = kind == "qwen2" or config.get("attention_bias") or config.get("add_qkv_bias")
    return query + 2 * key if on_qkv else 0
