"""The sizes of gated delta layers (Qwen3.5), from config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Projection = tuple[str, int, int, bool]  # name, inputs, outputs, whether it has an adapter

_ATTENDS = "full_attention"
_LARGEST_SIZE = 2**24


@dataclass(frozen=True, slots=True)
class Delta:
    """A gated delta layer: `key_dim` and `value_dim` are of one head, `kernel` of the Conv1d."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    projections: tuple[Projection, ...]

    @property
    def key_size(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size

    @property
    def groups(self) -> int:
        return self.value_heads // self.key_heads

    @property
    def small_parameters(self) -> int:
        return self.channels * self.kernel + 2 * self.value_heads + self.value_dim


def unit_of(kinds: Any, others: str = "linear_attention") -> int:
    """After how many layers their kinds repeat; 0 when they are not so many of `others` and one
    that attends to everything.
    """
    if not isinstance(kinds, list) or _ATTENDS not in kinds:
        return 0
    unit = kinds.index(_ATTENDS) + 1
    repeated = ([others] * (unit - 1) + [_ATTENDS]) * (len(kinds) // unit)
    return unit if kinds == repeated else 0


def delta_sizes(config: Mapping[str, Any]) -> Delta | None:
    sizes = [
        size_of(config, f"linear_{name}")
        for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim",
                     "conv_kernel_dim")
    ]  # fmt: skip
    key_heads, value_heads, key_dim, value_dim, kernel = sizes
    if not (key_heads and value_heads and key_dim and value_dim and kernel):
        return None
    return Delta(key_heads, value_heads, key_dim, value_dim, kernel, ())


def delta_projections(delta: Delta, hidden: int, intermediate: int) -> list[tuple[str, int, int]]:
    return [
        ("in_proj_qkv", hidden, delta.channels),
        ("in_proj_z", hidden, delta.value_size),
        ("in_proj_b", hidden, delta.value_heads),
        ("in_proj_a", hidden, delta.value_heads),
        ("out_proj", delta.value_size, hidden),
        ("gate_proj", hidden, intermediate),
        ("up_proj", hidden, intermediate),
        ("down_proj", intermediate, hidden),
    ]


def size_of(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value <= _LARGEST_SIZE:
            return value
    return None
