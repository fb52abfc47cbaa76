"""Fitting a row into cutoff_len: the body of its longest text is shortened, so that nothing of the rest is ever cut."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from iisft.data.bodies import MARKER, Body, clean_cut, find_body
from iisft.data.conversation import Conversation
from iisft.data.fate import Limit

Path = tuple[str | int, ...]
"""Where a text stands in a row, such as ("input",) or ("messages", 0, "content")."""

_LEAST_KEPT = 24  # characters of a body; with less of it the answer is about a text that isn't there
_TRIES = 12
_EXCERPT = 80


@dataclass(frozen=True, slots=True)
class Cut:
    """What was taken out of a row: `characters` of `field` from `start` on; tokens of the row before and after."""

    field: str
    start: int
    characters: int
    tokens_before: int
    tokens_after: int
    excerpt: str

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Fitter:
    """Fits rows under one limit. `conversation_of` makes a staged row's conversation."""

    def __init__(self, limit: Limit, conversation_of: Callable[[dict[str, Any]], Conversation]) -> None:
        self._limit = limit
        self._conversation_of = conversation_of
        self._marker_tokens = len(limit.tokens.encode(f"\n{MARKER}\n")) + 2

    def fit(self, row: dict[str, Any]) -> tuple[dict[str, Any], Cut] | None:
        """The row with one text shortened, and what was cut; None when no text can be shortened enough.

        The row is overlong. All of it but the end of one body stays as it is; the marker stands where that was.
        """
        before = self._total(row)
        for path in _texts_by_body(row):
            fitted = self._shorten(row, path, before)
            if fitted is not None:
                return fitted
        return None

    def _total(self, row: dict[str, Any]) -> int:
        return self._limit.total(self._limit.tokens.lengths([self._conversation_of(row)])[0])

    def _shorten(self, row: dict[str, Any], path: Path, before: int) -> tuple[dict[str, Any], Cut] | None:
        text = _get(row, path)
        body = find_body(text)
        offsets = [offset for offset in self._limit.tokens.offsets(text) if body.start <= offset[0] < body.end]
        drop = before - self._limit.room + self._marker_tokens
        best: tuple[dict[str, Any], Cut] | None = None
        for _ in range(_TRIES):
            if drop >= len(offsets):
                break
            place = clean_cut(text, body, offsets[-drop][0])
            if place - body.start < _LEAST_KEPT:
                break
            place = body.start + len(text[body.start : place].rstrip())
            shortened = _set(row, path, text[:place] + _marked(text, place, body))
            after = self._total(shortened)
            if after <= self._limit.room:
                cut = Cut(
                    ".".join(map(str, path)), place, body.end - place, before, after, text[place : place + _EXCERPT]
                )
                best = shortened, cut
                break
            drop += after - self._limit.room
        return best


def _marked(text: str, place: int, body: Body) -> str:
    """What stands in place of the rest of the body, with the text behind it."""
    lines = "\n" in text
    return (f"\n{MARKER}" if lines else f" {MARKER}") + text[body.end :]


def _texts_by_body(row: dict[str, Any]) -> list[Path]:
    """Prompt-side texts of a staged row, that with the longest body first; an instruction beside an input last.

    Such an instruction is the task, the same in many rows, and no text to be shortened while the input will do.
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
