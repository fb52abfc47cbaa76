"""The sizes and features of a decoder-only model, from its config.json alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from iisft.estimate.delta_sizes import (
    Delta,
    Projection,
    delta_projections,
    delta_sizes,
    size_of,
    unit_of,
)
from iisft.json_values import text_of
from iisft.models.folder.checkpoint import has_experts


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes and the features that cost memory.

    `projections` are the linear layers of one decoder layer.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    projections: tuple[Projection, ...]
    bias_parameters: int = 0
    qk_norm: bool = False
    sandwich_norms: bool = False
    norm_before_cast: bool = False
    scaled_embedding: bool = False
    attention_softcap: bool = False
    logit_softcap: bool = False
    scaled_query: bool = False  # by position, as Llama 4 does
    rotary_share: float = 1.0
    masks: int = 1
    gated_query: bool = False
    delta: Delta | None = None
    near: "Architecture | None" = None  # layers that attend to a window, with heads of other sizes
    unit: int = 1  # layers after which their kinds repeat: the last attends, the others are these
    value_norm: bool = False
    layer_scalar: bool = False

    @property
    def attending(self) -> int:
        """How many layers attend (where they are of several kinds: to everything)."""
        return self.layers // self.unit

    @property
    def groups(self) -> int:
        return self.heads // self.kv_heads

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def matrices(self) -> int:
        """Parameters of all layers' linear layers."""
        return sum(count * i * o for count, (_, i, o, _) in self._counted())

    def _counted(self) -> Iterator[tuple[int, Projection]]:
        """Each linear layer of each kind of layer, and how many layers of that kind there are."""
        yield from ((self.attending, one) for one in self.projections)
        others = self.delta or self.near
        if others is not None:
            yield from ((self.layers - self.attending, one) for one in others.projections)

    @property
    def small_parameters(self) -> int:
        """Norms and biases of all layers and the last norm."""
        norms = (4 if self.sandwich_norms else 2) * self.hidden
        attending = self.bias_parameters + (2 * self.head_dim if self.qk_norm else 0)
        others = self.delta.small_parameters if self.delta else 0
        if self.near is not None:
            others = 2 * self.near.head_dim
        return (
            self.layers * norms
            + self.attending * attending
            + (self.layers - self.attending) * others
            + self.hidden
        )

    @property
    def parameters(self) -> int:
        """Base parameters, tied ones once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.matrices + self.small_parameters

    def adapter_parameters(self, rank: int) -> int:
        """Rank x (in + out) for each adapted layer (Hu et al. 2021)."""
        return sum(n * rank * (i + o) for n, i, o in self.adapted())

    def adapted(self) -> list[tuple[int, int, int]]:
        """How many, inputs and outputs of each kind of linear layer that has an adapter."""
        return [(n, i, o) for n, (_, i, o, adapted) in self._counted() if adapted]


# model_type -> features that cost memory. Another family is counted as a Llama, and the plan
# says so.
_FAMILIES: dict[str, dict[str, Any]] = {
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
_BEYOND = ("gemma3n_text",)
_GEMMA4 = "gemma4_text"
# What published configs leave out, because it is the class's default (configuration_gemma3.py).
_UNSAID: dict[str, dict[str, Any]] = {
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
    },
}
_DELTA = "qwen3_5_text"
_MOST_LAYERS = 2000
_FUSED_MLP = ("glm", "glm4", "chatglm", "phi3")
_FUSED_ATTENTION = ("chatglm", "phi3")
_TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3_text", "gemma4_text")
_CHATGLM_NAMES = {
    "query_key_value": "qkv_proj",
    "dense": "o_proj",
    "dense_h_to_4h": "gate_up_proj",
    "dense_4h_to_h": "down_proj",
}


def known_family(config: Mapping[str, Any]) -> bool:
    """Whether this model type has its own entry; otherwise it is counted as a Llama."""
    return text_of(config, "model_type") in _FAMILIES


def read_architecture(
    config: Mapping[str, Any], target: str | list[str] = "all"
) -> Architecture | None:
    """A model's architecture; None when config.json lacks a size, or for layers of other kinds.

    Args:
        config: config.json's content.
        target: lora.target of a preset.
    """
    kind = text_of(config, "model_type")
    config = {**_UNSAID.get(kind, {}), **config}
    if has_experts(config) or kind in _BEYOND or _takes_from_others(config, kind):
        return None
    hidden = size_of(config, "hidden_size")
    layers = size_of(config, "num_hidden_layers", "num_layers")
    heads = size_of(config, "num_attention_heads")
    vocabulary = size_of(config, "vocab_size", "padded_vocab_size")
    intermediate = size_of(config, "intermediate_size", "ffn_hidden_size")
    if None in (hidden, layers, heads, vocabulary, intermediate):
        return None
    assert hidden and layers and heads and vocabulary and intermediate
    kv_heads = size_of(config, "num_key_value_heads", "multi_query_group_num") or heads
    head_dim = size_of(config, "head_dim", "kv_channels") or hidden // heads
    unit = 1
    if kind in (_DELTA, _GEMMA4):
        others = "linear_attention" if kind == _DELTA else "sliding_attention"
        unit = unit_of(config.get("layer_types"), others)
    if heads % kv_heads or layers > _MOST_LAYERS or not unit or layers % unit:
        return None
    given = target.split(",") if isinstance(target, str) else target
    wanted = {_CHATGLM_NAMES.get(name.strip(), name.strip()) for name in given}

    def adapted(layer: list[tuple[str, int, int]]) -> tuple[Projection, ...]:
        return tuple((name, i, o, target == "all" or name in wanted) for name, i, o in layer)

    projections = adapted(
        _projections(kind, hidden, intermediate, heads * head_dim, kv_heads * head_dim)
    )
    delta = delta_sizes(config) if kind == _DELTA else None
    if delta is not None:
        delta = replace(delta, projections=adapted(delta_projections(delta, hidden, intermediate)))
    tied = bool(config.get("tie_word_embeddings", kind in _TIED_BY_DEFAULT))
    model = Architecture(
        name=kind, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, vocabulary=vocabulary, tied=tied,
        projections=projections,
        bias_parameters=_biases(config, kind, heads * head_dim, kv_heads * head_dim),
        rotary_share=_rotary_share(config, kind), delta=delta, unit=unit, **_features(config, kind),
    )  # fmt: skip
    return _with_wide_heads(model, config, adapted) if kind == _GEMMA4 else model


def _takes_from_others(config: Mapping[str, Any], kind: str) -> bool:
    """Gemma 4 E2B and E4B: layers with inputs of their own, and keys and values of earlier ones."""
    extra = config.get("hidden_size_per_layer_input"), config.get("num_kv_shared_layers")
    return kind == _GEMMA4 and any(extra)


def _with_wide_heads(
    near: Architecture,
    config: Mapping[str, Any],
    adapted: Callable[[list[tuple[str, int, int]]], tuple[Projection, ...]],
) -> Architecture | None:
    """Gemma 4: layers that attend to everything have wider heads, and may take keys as values."""
    same = bool(config.get("attention_k_eq_v"))
    heads = size_of(config, "num_global_key_value_heads") if same else None
    kv_heads, head_dim = heads or near.kv_heads, size_of(config, "global_head_dim") or near.head_dim
    if near.heads % kv_heads:
        return None
    query, key = near.heads * head_dim, kv_heads * head_dim
    layer = _projections(near.name, near.hidden, near.intermediate, query, key)
    layer = [one for one in layer if not (same and one[0] == "v_proj")]
    return replace(
        near, kv_heads=kv_heads, head_dim=head_dim, projections=adapted(layer), near=near
    )


def _features(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The family's features; a soft cap that config.json sets to null is off."""
    features = dict(_FAMILIES.get(kind, {}))
    for flag, key in (
        ("attention_softcap", "attn_logit_softcapping"),
        ("logit_softcap", "final_logit_softcapping"),
    ):
        if flag in features:
            features[flag] = bool(config.get(key, True))
    return features


def _rotary_share(config: Mapping[str, Any], kind: str) -> float:
    """The part of each head that is rotated."""
    rope = config.get("rope_parameters")
    share = config.get("partial_rotary_factor")
    if not share and isinstance(rope, Mapping):
        share = rope.get("partial_rotary_factor")
    share = share if isinstance(share, int | float) and 0 < share <= 1 else None
    if share is None and kind in ("glm", "glm4", "chatglm"):
        share = 0.5  # what transformers' GlmConfig assumes where config.json says nothing
    return float(share or 1.0)


def _projections(
    kind: str, hidden: int, intermediate: int, query: int, key: int
) -> list[tuple[str, int, int]]:
    gated = 2 if kind == _DELTA else 1  # the query's projection makes the gate too
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


def _biases(config: Mapping[str, Any], kind: str, query: int, key: int) -> int:
    on_qkv = kind == "qwen2" or config.get("attention_bias") or config.get("add_qkv_bias")
    return query + 2 * key if on_qkv else 0
