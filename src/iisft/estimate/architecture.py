"""What a decoder-only model is made of, from its config.json alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Projection = tuple[str, int, int, bool]  # name, inputs, outputs, whether it has an adapter


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes and the features that cost memory. `projections` are the linear layers of one decoder layer."""

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
    rotary_share: float = 1.0
    masks: int = 1
    rotary_dtype: str | None = None

    @property
    def groups(self) -> int:
        return self.heads // self.kv_heads

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.kv_heads * self.head_dim
