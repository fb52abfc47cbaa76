"""Properties of splitting: every row has one side, equal prompts the same, sizes are as asked."""

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from iisft.data.split.assigning import DROPPED, Rows, by_hash, by_strata, choose, merge_small
from properties import tried

SHARES = st.lists(st.integers(1, 9), min_size=2, max_size=3).map(
    lambda parts: [part / sum(parts) for part in parts]
)
SEEDS = st.integers(0, 2**32)


def rows_of(known: list[tuple[int, str]]) -> Rows:
    rows = Rows()
    for prompt, label in known:
        rows.add(prompt, label)
    return rows


def many(prompts: st.SearchStrategy[int]) -> st.SearchStrategy[list[tuple[int, str]]]:
    return st.lists(st.tuples(prompts, st.sampled_from("abcd")), min_size=3, max_size=80)


SOME_TWICE = many(st.integers(0, 30))
EACH_ONCE = st.lists(st.sampled_from("abcd"), min_size=3, max_size=80).map(
    lambda labels: [(number * 2**50, label) for number, label in enumerate(labels)]
)


@tried
@given(SOME_TWICE, SHARES, SEEDS, st.data())
def test_kept_rows_have_a_side_others_none_and_equal_prompts_the_same(
    known: list[tuple[int, str]], shares: list[float], seed: int, data: st.DataObject
) -> None:
    kept = sorted(data.draw(st.sets(st.sampled_from(range(len(known))))))
    sides = by_strata(rows_of(known), kept, shares, seed)
    assert [row for row, side in enumerate(sides) if side != DROPPED] == kept
    of_prompt = defaultdict(set)
    for row in kept:
        assert 0 <= sides[row] < len(shares)
        of_prompt[known[row][0]].add(sides[row])
    assert all(len(found) == 1 for found in of_prompt.values())
    assert by_strata(rows_of(known), kept, shares, seed) == sides


@tried
@given(EACH_ONCE, SHARES, SEEDS)
def test_sizes_are_within_a_row_over_all_and_within_two_in_each_stratum(
    known: list[tuple[int, str]], shares: list[float], seed: int
) -> None:
    sides = by_strata(rows_of(known), range(len(known)), shares, seed)
    for side, share in enumerate(shares):
        assert abs(sides.count(side) - share * len(known)) <= 1 + 1e-9
        for label, size in Counter(label for _, label in known).items():
            count = sum(s == side and one[1] == label for s, one in zip(sides, known, strict=True))
            assert abs(count - share * size) <= 2 + 1e-9


@tried
@given(many(st.integers(0, 2**64 - 1)), many(st.integers(0, 2**64 - 1)), SHARES)
def test_by_hash_a_row_keeps_its_side_when_others_come(
    first: list[tuple[int, str]], more: list[tuple[int, str]], shares: list[float]
) -> None:
    alone, together = by_hash(rows_of(first), shares), by_hash(rows_of(first + more), shares)
    assert together[: len(first)] == alone
    assert set(together) <= set(range(len(shares)))


@tried
@given(SOME_TWICE, st.integers(3, 90), SEEDS, st.booleans())
def test_as_many_rows_are_chosen_as_there_are_or_were_asked_for(
    known: list[tuple[int, str]], count: int, seed: int, weighted: bool
) -> None:
    rows = rows_of(known)
    kept = choose(rows, rows if weighted else None, count, {}, seed)
    assert kept == sorted(set(kept)) and len(kept) == min(count, len(known))
    assert set(kept) <= set(range(len(known)))


@tried
@given(SOME_TWICE, st.floats(0, 1), SEEDS)
def test_a_mix_has_its_shares_within_half_a_row(
    known: list[tuple[int, str]], share: float, seed: int
) -> None:
    rows = rows_of(known)
    label = rows.names[known[0][1]]
    kept = choose(rows, None, None, {label: share}, seed)
    named = sum(rows.labels[row] == label for row in kept)
    assert abs(named - share * len(kept)) <= 1 + 1e-6
    assert kept == sorted(set(kept))


@tried
@given(SOME_TWICE, SHARES)
def test_no_stratum_is_left_that_is_too_small_but_the_merged_one(
    known: list[tuple[int, str]], shares: list[float]
) -> None:
    rows = rows_of(known)
    merged = merge_small(rows, range(len(known)), shares)
    counts = Counter(rows.labels)
    assert sum(counts.values()) == len(known)
    for name, number in rows.names.items():
        if name != "(small strata)" and number in counts:
            assert counts[number] * min(shares) >= 1 - 1e-9
        assert name not in merged or number not in counts
