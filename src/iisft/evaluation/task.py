"""What kind of answers a file asks for, found from its references in one pass: JSON or text, and
which classes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iisft.evaluation.classes import SHAPE, WHOLE, Labels, chosen
from iisft.evaluation.outcome import parse
from iisft.evaluation.reading import Row

NO_LABELS = "none"
_MOST_VALUES = 1000
_MOST_KEYS = 100
_AUTO_CLASSES = 10
_AUTO_ROWS_PER_CLASS = 5
_AUTO_TEXT = 60  # characters of an answer that may be a class by itself
_RARE = 0.02  # of the rows: fewer are no class


@dataclass(frozen=True)
class Task:
    """What the references say.

    Attributes:
        references: rows that have one.
        json: most references are JSON objects or lists (without references: most predictions).
        labels: how a class is read, None when the answers are no classes.
        found_labels: nobody named `labels`; they were found.
        majority: the answer that most references have, when it comes more than once.
        prompts: rows that have one.
    """

    references: int
    json: bool
    labels: Labels | None
    found_labels: bool
    majority: str | None
    prompts: int


class _Counts:
    """Values counted until there are too many different ones."""

    def __init__(self) -> None:
        self.values: Counter[str] | None = Counter()

    def add(self, value: str | None) -> None:
        if self.values is not None and value is not None:
            self.values[value] += 1
            if len(self.values) > _MOST_VALUES:
                self.values = None

    def classes(self, rows: int) -> int | None:
        """How many classes these are, when they cover all rows and none is rare; else None."""
        if (
            not self.values
            or not 1 < len(self.values) <= _AUTO_CLASSES
            or self.values.total() < rows
        ):
            return None
        enough = max(_AUTO_ROWS_PER_CLASS, _RARE * rows)
        return len(self.values) if min(self.values.values()) >= enough else None


def scan(rows: Iterable[Row], label: str | None, names: Mapping[str, str]) -> Task:
    """Read the references once.

    Args:
        rows: of the file.
        label: as Labels.by; "none" for no classes; None to find them: a key of all references with
            few values, else few shapes of JSON, else few short answers.
        names: as Labels.names.

    Raises:
        InputError: the label that was asked for has no classes in the references.
    """
    references = prompts = objects = predicted_objects = total = longest = 0
    answers, shapes, asked = _Counts(), _Counts(), _Counts()
    keys: dict[str, _Counts] = {}
    by_shape = Labels(SHAPE)
    wanted = Labels(label, names) if label and label != NO_LABELS else None
    for row in rows:
        total += 1
        prompts += row.prompt is not None
        if row.reference is None:
            predicted_objects += isinstance(parse(row.prediction), dict | list)
            continue
        references += 1
        answers.add(row.reference.strip())
        longest = max(longest, len(row.reference))
        value = parse(row.reference)
        objects += isinstance(value, dict | list)
        if wanted is not None:
            asked.add(wanted.of(row.reference, value))
        elif label is None:
            shapes.add(by_shape.of(row.reference, value))
            _count_keys(keys, value)
    is_json = 2 * objects > references if references else 2 * predicted_objects > total
    if wanted is not None:
        # Too many values to count are surely too many for classes; chosen() says so with what is
        # there.
        found = asked.values if asked.values is not None else Counter(map(str, range(_MOST_VALUES)))
        labels: Labels | None = chosen(wanted.by, names, found) if references else None
    else:
        labels = (
            None
            if label == NO_LABELS
            else _found(keys, shapes, answers, references, is_json, longest, names)
        )
    most = answers.values.most_common(1) if answers.values else []
    return Task(
        references=references,
        json=is_json,
        labels=labels,
        found_labels=label is None and labels is not None,
        majority=most[0][0] if most and most[0][1] > 1 else None,
        prompts=prompts,
    )


def _count_keys(keys: dict[str, _Counts], value: Any) -> None:
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key not in keys and len(keys) < _MOST_KEYS:
            keys[key] = _Counts()
        if key in keys and isinstance(inner, str | bool):
            keys[key].add(Labels(key).of("", value))


def _found(
    keys: dict[str, _Counts],
    shapes: _Counts,
    answers: _Counts,
    references: int,
    is_json: bool,
    longest: int,
    names: Mapping[str, str],
) -> Labels | None:
    few = [
        (count, key)
        for key, values in keys.items()
        if (count := values.classes(references)) is not None
    ]
    if names:  # names without a label are names of shapes or whole answers
        few = []
    if few:
        return Labels(min(few)[1])
    if is_json:
        return Labels(SHAPE, names) if names or shapes.classes(references) else None
    return Labels(WHOLE, names) if longest <= _AUTO_TEXT and answers.classes(references) else None
