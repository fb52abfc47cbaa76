"""What kind of answers a file asks for, found from its references in one pass.

JSON or text, and which classes.
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
_RARE = 0.02  # of the rows: fewer are not a class


@dataclass(frozen=True)
class Task:
    """What the references say.

    Attributes:
        references: rows that have one.
        json: most references are JSON objects or lists (without references: most predictions).
        labels: how a class is read; None when the answers are not classes.
        found_labels: nobody named the labels; they were found.
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
    """Counts values until there are too many different ones."""

    def __init__(self) -> None:
        self.values: Counter[str] | None = Counter()

    def add(self, value: str | None) -> None:
        if self.values is not None and value is not None:
            self.values[value] += 1
            if len(self.values) > _MOST_VALUES:
                self.values = None

    def counted(self) -> Counter[str]:
        """The values; too many to count become placeholders, too many for classes as well."""
        return Counter(map(str, range(_MOST_VALUES))) if self.values is None else self.values

    def classes(self, rows: int) -> int | None:
        """The number of classes, if they cover all rows and none is rare; else None."""
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
        rows: those of the file.
        label: as Labels.by; "none" for no classes; None to find them: a key of all references
            with few values, else few shapes of JSON, else few short answers.
        names: as Labels.names.

    Raises:
        InputError: the requested label has no classes in the references.
    """
    wanted = Labels(label, names) if label and label != NO_LABELS else None
    survey = _Survey(wanted, look_for_classes=label is None)
    for row in rows:
        survey.add(row)
    labels: Labels | None = None
    if wanted is not None and survey.references:
        labels = chosen(wanted.by, names, survey.asked.counted())
    elif label is None:
        labels = survey.found_labels(names)
    most = survey.answers.values.most_common(1) if survey.answers.values else []
    return Task(
        references=survey.references,
        json=survey.is_json,
        labels=labels,
        found_labels=label is None and labels is not None,
        majority=most[0][0] if most and most[0][1] > 1 else None,
        prompts=survey.prompts,
    )


class _Survey:
    """What one pass over the rows counts.

    Args:
        wanted: the label that a person named.
        look_for_classes: no label was named; keys, shapes and short answers are candidates.
    """

    def __init__(self, wanted: Labels | None, *, look_for_classes: bool) -> None:
        self._wanted, self._look = wanted, look_for_classes
        self._by_shape = Labels(SHAPE)
        self.total = self.references = self.prompts = self.longest = 0
        self.objects = self.predicted_objects = 0
        self.answers, self.shapes, self.asked = _Counts(), _Counts(), _Counts()
        self.keys: dict[str, _Counts] = {}

    @property
    def is_json(self) -> bool:
        if self.references:
            return 2 * self.objects > self.references
        return 2 * self.predicted_objects > self.total

    def add(self, row: Row) -> None:
        self.total += 1
        self.prompts += row.prompt is not None
        if row.reference is None:
            self.predicted_objects += isinstance(parse(row.prediction), dict | list)
            return
        self.references += 1
        self.answers.add(row.reference.strip())
        self.longest = max(self.longest, len(row.reference))
        value = parse(row.reference)
        self.objects += isinstance(value, dict | list)
        if self._wanted is not None:
            self.asked.add(self._wanted.of(row.reference, value))
        elif self._look:
            self.shapes.add(self._by_shape.of(row.reference, value))
            self._add_keys(value)

    def _add_keys(self, value: Any) -> None:
        if not isinstance(value, dict):
            return
        for key, inner in value.items():
            if key not in self.keys and len(self.keys) < _MOST_KEYS:
                self.keys[key] = _Counts()
            if key in self.keys and isinstance(inner, str | bool):
                self.keys[key].add(Labels(key).of("", value))

    def found_labels(self, names: Mapping[str, str]) -> Labels | None:
        """The key with the fewest classes, else the shapes of JSON, else short answers."""
        few = [
            (count, key)
            for key, values in self.keys.items()
            if (count := values.classes(self.references)) is not None
        ]
        if few and not names:  # names without a label are names of shapes or whole answers
            return Labels(min(few)[1])
        if self.is_json:
            return Labels(SHAPE, names) if names or self.shapes.classes(self.references) else None
        short = self.longest <= _AUTO_TEXT
        return Labels(WHOLE, names) if short and self.answers.classes(self.references) else None
