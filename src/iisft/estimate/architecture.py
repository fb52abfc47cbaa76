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
from iisft.estimate.families import (
    BEYOND,
    CHATGLM_NAMES,
    DELTA,
    FAMILIES,
    GEMMA4,
    TIED_BY_DEFAULT,
    UNSAID,
    biases,
    features,
    layer_projections,
    rotary_share,
)
from iisft.json_values import text_of
from iisft.models.folder.checkpoint import has_experts

_MOST_LAYERS = 2000


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
    taking: int = 0  # so many layers at the end take keys and values of the last one of their kind
    taker: "Architecture | None" = None  # what such a layer is
    own_inputs: int = 0  # numbers per token that each layer has as an input of its own
    own_vocabulary: int = 0
    own_projection: Projection | None = None  # from the embedding to all layers' inputs

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

    def kind(self, number: int, layers: int) -> "Architecture":
        """What layer `number` of `layers` is (a delta layer's is in `delta`)."""
        one = self.near if (number + 1) % self.unit and self.near else self
        return one.taker if one.taker and number >= layers - self.taking else one

    def _counted(self) -> Iterator[tuple[int, Projection]]:
        """Each linear layer of each kind of layer, and how many layers of that kind there are."""
        taking = self.taking // self.unit
        others = self.delta or self.near
        kinds = [(self.attending - taking, self.projections)]
        if others is not None:
            rest = self.layers - self.attending - (self.taking - taking)
            kinds.append((rest, others.projections))
        if self.taker and self.near and self.near.taker:
            kinds.append((taking, self.taker.projections))
            kinds.append((self.taking - taking, self.near.taker.projections))
        yield from ((count, one) for count, projections in kinds for one in projections)
        if self.own_projection:
            yield 1, self.own_projection

    @property
    def small_parameters(self) -> int:
        """Norms and biases of all layers and the last norm."""
        norms = (4 if self.sandwich_norms else 2) + (1 if self.own_inputs else 0)
        attending = self.bias_parameters + (2 * self.head_dim if self.qk_norm else 0)
        others = self.delta.small_parameters if self.delta else 0
        taken = 0  # a layer that takes its keys has no norm of them
        if self.near is not None:
            others = 2 * self.near.head_dim
            last = self.taking // self.unit
            taken = last * self.head_dim + (self.taking - last) * self.near.head_dim
        return (
            self.layers * norms * self.hidden
            + self.attending * attending
            + (self.layers - self.attending) * others
            - taken
            + self.hidden
            + self.own_inputs
        )

    @property
    def parameters(self) -> int:
        """Base parameters, tied ones once."""
        return self.root_parameters + self.matrices + self.small_parameters

    @property
    def root_parameters(self) -> int:
        """Embeddings and head."""
        own = self.own_vocabulary * self.layers * self.own_inputs
        return self.embedding_parameters * (1 if self.tied else 2) + own

    def adapter_parameters(self, rank: int) -> int:
        """Rank x (in + out) for each adapted layer (Hu et al. 2021)."""
        return sum(n * rank * (i + o) for n, i, o in self.adapted())

    def adapted(self) -> list[tuple[int, int, int]]:
        """How many, inputs and outputs of each kind of linear layer that has an adapter."""
        return [(n, i, o) for n, (_, i, o, adapted) in self._counted() if adapted]


def known_family(config: Mapping[str, Any]) -> bool:
    """Whether this model type has its own entry; otherwise it is counted as a Llama."""
    return text_of(config, "model_type") in FAMILIES


def read_architecture(
    config: Mapping[str, Any], target: str | list[str] = "all"
) -> Architecture | None:
    """A model's architecture; None when config.json lacks a size, or for layers of other kinds.

    Args:
        config: config.json's content.
        target: lora.target of a preset.
    """
    kind = text_of(config, "model_type")
    config = {**UNSAID.get(kind, {}), **config}
    if has_experts(config) or kind in BEYOND:
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
    if kind in (DELTA, GEMMA4):
        others = "linear_attention" if kind == DELTA else "sliding_attention"
        unit = unit_of(config.get("layer_types"), others)
    if heads % kv_heads or layers > _MOST_LAYERS or not unit or layers % unit:
        return None
    given = target.split(",") if isinstance(target, str) else target
    wanted = {CHATGLM_NAMES.get(name.strip(), name.strip()) for name in given}

    def adapted(layer: list[tuple[str, int, int]]) -> tuple[Projection, ...]:
        return tuple((name, i, o, target == "all" or name in wanted) for name, i, o in layer)

    projections = adapted(
        layer_projections(kind, hidden, intermediate, heads * head_dim, kv_heads * head_dim)
    )
    delta = delta_sizes(config) if kind == DELTA else None
    if delta is not None:
        delta = replace(delta, projections=adapted(delta_projections(delta, hidden, intermediate)))
    tied = bool(config.get("tie_word_embeddings", kind in TIED_BY_DEFAULT))
    model = Architecture(
        name=kind, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, vocabulary=vocabulary, tied=tied,
        projections=projections,
        bias_parameters=biases(config, kind, heads * head_dim, kv_heads * head_dim),
        rotary_share=rotary_share(config, kind), delta=delta, unit=unit, **features(config, kind),
    )  # fmt: skip
    return _with_gemma4(model, config, adapted) if kind == GEMMA4 else model


def _with_gemma4(
    near: Architecture,
    config: Mapping[str, Any],
    adapted: Callable[[list[tuple[str, int, int]]], tuple[Projection, ...]],
) -> Architecture | None:
    """Gemma 4: layers that attend to everything have wider heads, and may take keys as values.

    In E2B and E4B each layer has an input of its own, and the last ones take keys and values.
    """
    same = bool(config.get("attention_k_eq_v"))
    heads = size_of(config, "num_global_key_value_heads") if same else None
    kv_heads, head_dim = heads or near.kv_heads, size_of(config, "global_head_dim") or near.head_dim
    own, taking = (
        size_of(config, name) or 0
        for name in ("hidden_size_per_layer_input", "num_kv_shared_layers")
    )
    if near.heads % kv_heads or taking % near.unit or taking >= near.layers:
        return None

    def kind(one: Architecture, left: tuple[str, ...], wide: int = 1) -> Architecture:
        intermediate = wide * near.intermediate
        layer = layer_projections(
            near.name, near.hidden, intermediate, one.query_size, one.key_size
        )
        layer = [part for part in layer if part[0] not in left]
        if own:
            layer.append(("per_layer_input_gate", near.hidden, own))
            layer.append(("per_layer_projection", own, near.hidden))
        return replace(one, intermediate=intermediate, projections=adapted(layer))

    def with_taker(one: Architecture, left: tuple[str, ...]) -> Architecture:
        wide = 2 if config.get("use_double_wide_mlp") else 1
        taker = kind(one, ("k_proj", "v_proj"), wide) if taking else None
        return replace(kind(one, left), taking=taking, taker=taker)

    if own:
        whole = ("per_layer_model_projection", near.hidden, near.layers * own)
        near = replace(
            near,
            own_inputs=own,
            own_vocabulary=size_of(config, "vocab_size_per_layer_input") or 0,
            own_projection=adapted([whole])[0],
        )
    far = with_taker(
        replace(near, kv_heads=kv_heads, head_dim=head_dim), ("v_proj",) if same else ()
    )
    return replace(far, near=with_taker(near, ()))
