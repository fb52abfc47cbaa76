"""Fitting a row into cutoff_len: the body of its longest text is shortened, so that nothing of the
rest is ever cut.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iisft.data.read.conversation import Conversation
from iisft.data.stage.bodies import MARKER, clean_cut, find_body
from iisft.data.tokens.limit import Limit

Path = tuple[str | int, ...]
"""Where a text stands in a row, such as ("input",) or ("messages", 0, "content")."""

# characters of a body; with less of it the answer is about a text that isn't there
_LEAST_KEPT = 24
_TRIES = 12
_EXCERPT = 80


@dataclass(frozen=True, slots=True)
class Cut:
    """What is taken out of a row: `characters` of the text at `path` from `start` on, with the
    marker in their place.

    `tokens_before` and `tokens_after` are those of the whole row.
    """

    path: Path
    start: int
    characters: int
    marker: str
    tokens_before: int
    tokens_after: int
    excerpt: str

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "path": list(self.path)
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cut":
        return cls(**{**value, "path": tuple(value["path"])})


def apply(row: dict[str, Any], cut: Cut) -> dict[str, Any]:
    """The row after the cut; the given one stays as it is."""
    text = _get(row, cut.path)
    shortened = text[: cut.start] + cut.marker + text[cut.start + cut.characters :]
    changed: dict[str, Any] = _set(row, cut.path, shortened)
    return changed


class Fitter:
    """Fits rows under one limit. `conversation_of` makes a staged row's conversation."""

    def __init__(
        self, limit: Limit, conversation_of: Callable[[dict[str, Any]], Conversation]
    ) -> None:
        self._limit = limit
        self._conversation_of = conversation_of
        self._marker_tokens = len(limit.tokens.encode(f"\n{MARKER}\n")) + 2

    def fit(self, row: dict[str, Any]) -> Cut | None:
        """What to cut of this overlong row, so that nothing else of it ever is.

        None when no text is long enough.
        """
        before = self._total(row)
        for path in _texts_by_body(row):
            if (cut := self._cut_of(row, path, before)) is not None:
                return cut
        return None

    def _total(self, row: dict[str, Any]) -> int:
        return self._limit.total(self._limit.tokens.lengths([self._conversation_of(row)])[0])

    def _cut_of(self, row: dict[str, Any], path: Path, before: int) -> Cut | None:
        text = _get(row, path)
        body = find_body(text)
        starts = [
            start for start, _ in self._limit.tokens.offsets(text) if body.start <= start < body.end
        ]
        marker = f"\n{MARKER}" if "\n" in text else f" {MARKER}"
        drop = before - self._limit.room + self._marker_tokens
        for _ in range(_TRIES):
            if drop >= len(starts):
                return None
            place = clean_cut(text, body, starts[-drop])
            place = body.start + len(text[body.start : place].rstrip())
            if place - body.start < _LEAST_KEPT:
                return None
            cut = Cut(
                path, place, body.end - place, marker, before, 0, text[place : place + _EXCERPT]
            )
            after = self._total(apply(row, cut))
            if after <= self._limit.room:
                return replace(cut, tokens_after=after)
            drop += after - self._limit.room
        return None


def _texts_by_body(row: dict[str, Any]) -> list[Path]:
    """Prompt-side texts of a staged row, that with the longest body first; an instruction beside an
    input last.

    Such an instruction is the task, the same in many rows, and no text to be shortened while the
    input will do.
    """
    paths = list(_prompt_texts(row))
    lengths = {path: find_body(_get(row, path)).length for path in paths}
    has_input = bool(row.get("input"))
    return sorted(paths, key=lambda path: (has_input and path == ("instruction",), -lengths[path]))


def _prompt_texts(row: dict[str, Any]) -> Iterator[Path]:
    if "messages" in row:
        for index, message in enumerate(row["messages"]):
            if message["role"] in ("user", "observation"):
                yield ("messages", index, "content")
        return
    for key in ("input", "instruction"):
        if row.get(key):
            yield (key,)
    for index in range(len(row.get("history") or ())):
        yield ("history", index, 0)


def _get(row: Any, path: Sequence[str | int]) -> str:
    for step in path:
        row = row[step]
    assert isinstance(row, str)
    return row


def _set(value: Any, path: Sequence[str | int], text: str) -> Any:
    """A copy of `value` with `text` at `path`; what is not on the way is shared."""
    if not path:
        return text
    changed = _set(value[path[0]], path[1:], text)
    if isinstance(value, dict):
        return {**value, path[0]: changed}
    return [*value[: path[0]], changed, *value[path[0] + 1 :]]  # type: ignore[operator]
