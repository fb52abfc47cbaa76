"""Figures against scikit-learn, intervals and tests against what is known of them."""

import random

import pytest
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics

from iisft.evaluation import statistics
from iisft.evaluation.outcome import ends_in_a_loop


def test_class_figures_are_scikit_learns() -> None:
    rng = random.Random(1)
    pairs = [(rng.choice("aab c".replace(" ", "")), rng.choice("abcd")) for _ in range(500)]
    confusion: dict[tuple[str, str], int] = {}
    for pair in pairs:
        confusion[pair] = confusion.get(pair, 0) + 1
    found = statistics.class_metrics(confusion)
    truth, answers = zip(*pairs, strict=True)
    classes = sorted(set(truth))
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        truth, answers, labels=classes, zero_division=0
    )
    for i, name in enumerate(classes):
        own = found["per_class"][name]
        assert [own["precision"], own["recall"], own["f1"]] == pytest.approx(
            [precision[i], recall[i], f1[i]]
        )
        assert own["support"] == support[i]
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, answers))
    assert found["balanced_accuracy"] == pytest.approx(recall.mean())
    assert found["macro_f1"] == pytest.approx(f1.mean())


def test_the_intervals_hold_the_truth_about_95_times_of_100() -> None:
    rng = random.Random(7)
    held = 0
    for _ in range(200):
        count = sum(rng.random() < 0.3 for _ in range(150))
        low, high = statistics.rate_interval(count, 150)
        held += low <= 0.3 <= high
    assert 180 <= held <= 199


def test_a_rate_of_all_or_nothing_still_has_a_width() -> None:
    # Clopper and Pearson
    assert statistics.rate_interval(0, 20) == pytest.approx((0, 0.1684), abs=1e-4)
    assert statistics.rate_interval(20, 20) == pytest.approx((0.8316, 1), abs=1e-4)


def test_mcnemar_and_sign_flips_know_chance() -> None:
    assert statistics.mcnemar(8, 0) == pytest.approx(2 / 2**8)
    assert statistics.mcnemar(5, 5) == statistics.mcnemar(0, 0) == 1.0
    assert statistics.sign_flip([0.0, 0.0]) == 1.0
    assert statistics.sign_flip([0.1] * 8) == pytest.approx(2 / 2**8)


@pytest.mark.parametrize("pair", [(0, 1), (3, 9), (40, 61), (900, 1000), (60_000, 59_000)])
def test_mcnemar_is_scipys_exact_test(pair: tuple[int, int]) -> None:
    expected = scipy_stats.binomtest(pair[0], sum(pair), 0.5).pvalue
    assert statistics.mcnemar(*pair) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [3, 9, 13, 14, 60, 400])
def test_sign_flips_are_scipys_permutation_test(rows: int) -> None:
    rng = random.Random(rows)
    differences = [rng.choice([-0.5, 0.0, 0.25, 0.5, 1.0]) for _ in range(rows)]
    expected = scipy_stats.permutation_test(
        (differences,), lambda x, axis: x.mean(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=9_999, batch=500, rng=1,
    ).pvalue  # fmt: skip
    exact = 2**rows <= 9_999
    found = statistics.sign_flip(differences)
    assert found == pytest.approx(expected, rel=1e-9 if exact else None, abs=0 if exact else 0.02)
    assert found == statistics.sign_flip(differences)


def test_a_difference_on_the_same_rows_is_paired() -> None:
    joint = {("a", True, True): 45, ("a", True, False): 5, ("b", True, True): 50}
    low, high = statistics.recall_difference_interval(joint)
    assert 0 <= low < 0.05 < high < 0.12


@pytest.mark.parametrize(
    ("answer", "loops"),
    [
        ("yes " * 30, True),
        ("A long beginning. " + "再来一次，" * 40, True),
        ("0123456789" * 30 + "01234", True),
        ("ha" * 20, False),  # 40 characters are a laugh
        ("The quick brown fox jumps over the lazy dog. " * 3, False),
        (
            '{"rate": {"a": 0, "b": 0, "c": 0, "d": 0, "e": 0, "f": 0, "g": 0, "h": 0}, "why": "'
            + "x" * 50,
            False,
        ),
        ("word " * 200 + "and then it ends well, as it should.", False),
        ("", False),
    ],
)
def test_loops(answer: str, loops: bool) -> None:
    assert ends_in_a_loop(answer) is loops
