"""Which side each row goes to: by strata with exact sizes, or by the hash of its prompt.

No files, only numbers.
"""

import math
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_PARTITIONS = 64
DROPPED = -1
_REST = -1  # the label of all rows that a mix doesn't name


@dataclass
class Rows:
    """What is known of each row after the first pass: 16 bytes of it.

    `names` are the labels by their number.
    """

    prompts: "array[int]" = field(default_factory=lambda: array("Q"))
    labels: "array[int]" = field(default_factory=lambda: array("I"))
    names: dict[str, int] = field(default_factory=dict)

    def add(self, prompt: int, label: str) -> None:
        self.prompts.append(prompt)
        self.labels.append(self.names.setdefault(label, len(self.names)))

    def __len__(self) -> int:
        return len(self.prompts)


def by_hash(rows: Rows, shares: Sequence[float]) -> "array[int]":
    """The side of each row by its prompt's digest alone: the same when rows are added, sizes as
    chance has it.
    """
    limits = [int(sum(shares[: index + 1]) * 2**64) for index in range(len(shares) - 1)]
    return array("b", (sum(digest >= limit for limit in limits) for digest in rows.prompts))


def by_strata(rows: Rows, kept: Iterable[int], shares: Sequence[float], seed: int) -> "array[int]":
    """The side of each kept row: sizes within one row of the shares over all, within two in each
    stratum.

    Rows are taken stratum by stratum in a seeded random order, each by the side that lags furthest
    behind its share. Rows with the same prompt go together, so with large groups of them sizes are
    only as exact as they can be.
    """
    sides = array("b", [DROPPED]) * len(rows)
    strata: dict[int, list[list[int]]] = {}
    for group in _groups(rows, kept):
        strata.setdefault(rows.labels[group[0]], []).append(group)
    given = [0] * len(shares)
    total = 0
    chance = random.Random(seed)
    for label in sorted(strata, key=lambda label: (len(strata[label]), label)):
        groups = strata[label]
        chance.shuffle(groups)
        groups.sort(key=len, reverse=True)
        for group in groups:
            total += len(group)
            side = max(
                range(len(shares)),
                key=lambda side: (shares[side] * total - given[side], shares[side]),
            )
            given[side] += len(group)
            for row in group:
                sides[row] = side
    return sides


def merge_small(rows: Rows, kept: Sequence[int], shares: Sequence[float]) -> dict[str, int]:
    """Put strata that are too small for a row on every side into one.

    Returns their names and sizes.
    """
    smallest = math.ceil(1 / min(shares))
    counts = Counter(rows.labels[row] for row in kept)
    names = {number: name for name, number in rows.names.items()}
    small = {label: count for label, count in counts.items() if count < smallest}
    if not small:
        return {}
    merged = rows.names.setdefault("(small strata)", len(rows.names))
    for row in kept:
        if rows.labels[row] in small:
            rows.labels[row] = merged
    return {names[label]: count for label, count in small.items()}


def choose(
    rows: Rows, weights: Rows | None, count: int | None, mix: dict[int, float], seed: int
) -> list[int]:
    """The rows that are kept, in order: all, or `count` of them, or as many as the mix of labels
    allows.

    A row's chance is one over how often its weight label occurs (all alike without `weights`).
    Sampling is without replacement by exponential keys (Efraimidis and Spirakis, 2006).
    """
    if count is None and not mix:
        return list(range(len(rows)))
    chance = random.Random(seed)
    often = Counter(weights.labels) if weights else None
    keys = [
        chance.expovariate(1.0) * (often[weights.labels[row]] if weights and often else 1)
        for row in range(len(rows))
    ]
    if not mix:
        return sorted(sorted(range(len(rows)), key=keys.__getitem__)[:count])
    shares = {**mix, _REST: max(0.0, round(1 - sum(mix.values()), 9))}
    members: dict[int, list[int]] = {label: [] for label in shares}
    for row, label in enumerate(rows.labels):
        members[label if label in mix else _REST].append(row)
    possible = min(len(members[label]) / share for label, share in shares.items() if share)
    total = min(possible, count or possible)
    kept: list[int] = []
    for label, share in shares.items():
        kept += sorted(members[label], key=keys.__getitem__)[: round(total * share)]
    return sorted(kept)


def _groups(rows: Rows, kept: Iterable[int]) -> list[list[int]]:
    """Rows with the same prompt together, in the order of each group's first row."""
    partitions: list[array[int]] = [array("Q") for _ in range(_PARTITIONS)]
    for row in kept:
        partitions[rows.prompts[row] % _PARTITIONS].append(row)
    groups: list[list[int]] = []
    for partition in partitions:
        found: dict[int, list[int]] = {}
        for row in partition:
            found.setdefault(rows.prompts[row], []).append(row)
        groups += found.values()
    groups.sort()
    return groups
