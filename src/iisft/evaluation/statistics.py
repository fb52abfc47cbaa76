"""Intervals and paired tests, with a fixed seed: the same file gives the same figures."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Interval = tuple[float, float]
Confusion = Mapping[tuple[str, str], int]
RESAMPLES = 1000
_SEED = 20241
_FLIPS = 9_999
_LEVEL = 0.95
_CELLS_AT_ONCE = 10_000_000  # 80 MB of float64, whatever the number of rows


def numpy() -> Any:
    """Imported when it is used: it takes a tenth of a second."""
    import numpy as np

    return np


def rate_interval(count: int, total: int) -> Interval:
    """95 % percentile bootstrap interval of a rate.

    Where all rows agree, resampling gives no width; the interval is then Clopper and Pearson's
    exact one, whose one side has the closed form (alpha/2)^(1/n).
    """
    if count in (0, total):
        far = 1 - ((1 - _LEVEL) / 2) ** (1 / total) if total else 1.0
        return (0.0, far) if count == 0 else (1 - far, 1.0)
    drawn = numpy().random.default_rng(_SEED).binomial(total, count / total, RESAMPLES) / total
    return _percentiles(drawn)


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % percentile bootstrap interval of a mean."""
    np = numpy()
    rng, data = np.random.default_rng(_SEED), np.asarray(values, dtype=float)
    step = max(1, _CELLS_AT_ONCE // max(1, len(data)))
    means = [
        data[rng.integers(0, len(data), (min(step, RESAMPLES - done), len(data)))].mean(axis=1)
        for done in range(0, RESAMPLES, step)
    ]
    return _percentiles(np.concatenate(means))


def class_metrics(confusion: Confusion, with_intervals: bool = True) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro F1 and each class's precision, recall and F1.

    Classes are those of the references; any other prediction just counts as wrong. Balanced
    accuracy is the mean recall, macro F1 the mean F1 of those classes (Sokolova and Lapalme 2009,
    and scikit-learn). The precision of a class that was never predicted is 0.

    Args:
        confusion: (reference, prediction) -> rows.
        with_intervals: `intervals` of the three, from resampled rows.
    """
    np = numpy()
    classes = sorted({reference for reference, _ in confusion})
    predicted = classes + sorted({prediction for _, prediction in confusion} - set(classes))
    table = np.array(
        [[confusion.get((row, column), 0) for column in predicted] for row in classes], dtype=float
    )
    accuracy, recall, precision, f1 = (values[0] for values in _from_tables(table[None]))
    found: dict[str, Any] = {
        "accuracy": float(accuracy),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(table[i].sum()),
                "predicted": int(table[:, i].sum()),
            }
            for i, name in enumerate(classes)
        },
        "confusion": {
            row: {column: int(table[i, j]) for j, column in enumerate(predicted) if table[i, j]}
            for i, row in enumerate(classes)
        },
    }
    if with_intervals:
        found["intervals"] = _class_intervals(table, classes)
    return found


def _class_intervals(table: Any, classes: Sequence[str]) -> dict[str, Interval]:
    """Of accuracy and recalls as rates; of balanced accuracy and macro F1 by resampling rows."""
    total, right = int(table.sum()), round(float(table.diagonal().sum()))
    _, recalls, _, f1s = _from_tables(_resampled(table))
    return {
        "accuracy": rate_interval(right, total),
        "balanced_accuracy": _percentiles(recalls.mean(axis=1)),
        "macro_f1": _percentiles(f1s.mean(axis=1)),
    } | {
        f"recall {name}": rate_interval(int(table[i, i]), int(table[i].sum()))
        for i, name in enumerate(classes)
    }


def _resampled(table: Any) -> Any:
    """Tables of as many rows, drawn with replacement."""
    # one multinomial draw of the cells equals drawing the rows, at a cost independent of them
    rng, total = numpy().random.default_rng(_SEED), int(table.sum())
    drawn = rng.multinomial(total, table.ravel() / total, RESAMPLES)
    return drawn.reshape(RESAMPLES, *table.shape)


def _from_tables(tables: Any) -> tuple[Any, Any, Any, Any]:
    """Accuracy, and recall, precision, F1 by class, of tables [n, classes, classes and more]."""
    np = numpy()
    right = np.diagonal(tables, axis1=1, axis2=2)
    in_references = tables.sum(axis=2)
    in_predictions = tables.sum(axis=1)[:, : tables.shape[1]]
    recall = right / np.maximum(in_references, 1)
    precision = right / np.maximum(in_predictions, 1)
    f1 = 2 * right / np.maximum(in_references + in_predictions, 1)
    return right.sum(axis=1) / tables.sum(axis=(1, 2)), recall, precision, f1


def recall_difference_interval(joint: Mapping[tuple[str, bool, bool], int]) -> Interval:
    """95 % interval of the difference of two balanced accuracies, by resampling the rows.

    Args:
        joint: (class of the reference, first right, second right) -> rows.
    """
    np = numpy()
    classes = sorted({label for label, _, _ in joint})
    cells = [(True, True), (True, False), (False, True), (False, False)]
    table = np.array(
        [[joint.get((label, *cell), 0) for cell in cells] for label in classes], dtype=float
    )
    drawn = _resampled(table)
    difference = (drawn[:, :, 1] - drawn[:, :, 2]) / np.maximum(drawn.sum(axis=2), 1)
    return _percentiles(difference.mean(axis=1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact McNemar test: the probability of flips at least this uneven if both were equal."""
    flips = only_first + only_second
    if not flips:
        return 1.0
    fewer, log = min(only_first, only_second), math.lgamma
    term = math.exp(log(flips + 1) - log(fewer + 1) - log(flips - fewer + 1) - flips * math.log(2))
    tail = 0.0
    for count in range(fewer, -1, -1):  # the binomial tail, from its largest term down
        tail += term
        term *= count / (flips - count + 1)
        if term < tail * 1e-17:
            break
    return min(1.0, 2 * tail)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided paired permutation test of a mean difference, with at most 9,999 sign flips."""
    np = numpy()
    data = np.asarray(differences, dtype=float)
    if not data.any():
        return 1.0
    rng = np.random.default_rng(_SEED)
    least = abs(data.mean()) * (1 - 1e-12)  # equal up to rounding
    if 2 ** len(data) <= _FLIPS:  # all of them
        patterns = (np.arange(2 ** len(data))[:, None] >> np.arange(len(data))) & 1
        return float((abs(((2 * patterns - 1) * data).mean(axis=1)) >= least).mean())
    step, extreme = max(1, _CELLS_AT_ONCE // len(data)), 1  # what was observed is one of them
    for done in range(0, _FLIPS, step):
        signs = rng.integers(0, 2, (min(step, _FLIPS - done), len(data))) * 2 - 1
        extreme += int((abs((signs * data).mean(axis=1)) >= least).sum())
    return extreme / (_FLIPS + 1)


def _percentiles(values: Any) -> Interval:
    low, high = numpy().percentile(values, [100 * (1 - _LEVEL) / 2, 100 * (1 + _LEVEL) / 2])
    return float(low), float(high)


def constant_classes(confusion: Mapping[tuple[str, str], int]) -> dict[str, dict[str, Any]]:
    """The figures of answering one class to every row, the most frequent class first."""
    support: Counter[str] = Counter()
    for (reference, _), rows in confusion.items():
        support[reference] += rows
    return {
        f"always {name}": class_metrics(
            {(reference, name): rows for reference, rows in support.items()}, False
        )
        for name, _ in support.most_common(3)
    }
