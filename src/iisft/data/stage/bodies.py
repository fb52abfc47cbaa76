"""Where a text may be shortened: its body, after the metadata lines and before a closing question,
at clean places.
"""

import re
import unicodedata
from typing import NamedTuple

MARKER = "[... truncated ...]"

_URL = re.compile(r"(?:https?://|www\.)[\x21-\x7e]+")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_WHOLE = (_URL, _UUID)
_METADATA_LINE = re.compile(
    r"\s*(?:#{1,6}\s.*|-{3,}|={3,}|[-*]\s+[^\s:：][^:：]{0,40}[:：].*|[^\s:：]{1,30}[:：](?!//).*)"
)
_LONGEST_METADATA_LINE = 300  # characters; a line with a URL may have ten times as many
_MOST_METADATA_LINES = 40
_LONGEST_CLOSING = 200  # characters of a last paragraph that is kept as the question about the body
_LOOK_BACK = 48  # characters in which a better place to cut is looked for
_SENTENCE_ENDS = "\n。！？；.!?;"
_JOINERS = "\u200d\ufe0e\ufe0f"


class Body(NamedTuple):
    """A text's part that may be shortened, as character positions.

    At least one character is always kept.
    """

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def find_body(text: str) -> Body:
    """The part between the metadata lines and a short last paragraph.

    Metadata lines are headings and `key: value` lines at the beginning, with the blank lines among
    them. A text that is nothing but such lines is all body.
    """
    start = _after_metadata(text)
    if not text[start:].strip():
        start = 0
    return Body(start, _before_closing(text, start))


def _after_metadata(text: str) -> int:
    position = end = 0
    for _ in range(_MOST_METADATA_LINES):
        stop = text.find("\n", position)
        if stop < 0:
            break
        line = text[position:stop]
        limit = _LONGEST_METADATA_LINE * (10 if _URL.search(line) else 1)
        if line.strip():
            if len(line) > limit or not _METADATA_LINE.fullmatch(line):
                break
            end = stop + 1
        position = stop + 1
    return end


def _before_closing(text: str, start: int) -> int:
    """Where a short last paragraph without a URL begins, else the end of the text."""
    stripped = text.rstrip()
    blank = max(stripped.rfind("\n\n"), stripped.rfind("\n \n"))
    if blank <= start or len(text) - blank > _LONGEST_CLOSING or _URL.search(text, blank):
        return len(text)
    return blank


def clean_cut(text: str, body: Body, position: int) -> int:
    """The best place at or before `position` to end the body: never within a URL, a UUID or a
    written character.

    A sentence's end, else a blank, is taken where one is near. Returns body.start when there is no
    such place.
    """
    position = _outside_wholes(text, body, position)
    nearest = max(body.start, position - _LOOK_BACK)
    for ends in (_SENTENCE_ENDS, " \t，、,:："):
        for place in range(position, nearest, -1):
            good = (
                text[place - 1] in ends
                and not _within_number(text, place)
                and not _joins(text, place)
            )
            if good and _outside_wholes(text, body, place) == place:
                return place
    while position > body.start and _joins(text, position):
        position -= 1
    return _outside_wholes(text, body, position)


def _outside_wholes(text: str, body: Body, position: int) -> int:
    """`position`, or the begin of the URL or UUID that it would cut."""
    for pattern in _WHOLE:
        for match in pattern.finditer(text, body.start, min(len(text), body.end)):
            if match.start() >= position:
                break
            if position < match.end():
                position = match.start()
    return position


def _within_number(text: str, place: int) -> bool:
    return text[place - 1] in ".," and place < len(text) and text[place].isdigit()


def _joins(text: str, place: int) -> bool:
    """Whether the characters before and after `place` are parts of one that is written."""
    if place >= len(text):
        return False
    before, after = text[place - 1], text[place]
    if after in _JOINERS or before == "\u200d" or unicodedata.category(after) in ("Mn", "Me", "Mc"):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff":  # a skin tone
        return True
    letters = 0  # two of them are a flag
    while letters < place and "\U0001f1e6" <= text[place - 1 - letters] <= "\U0001f1ff":
        letters += 1
    return letters % 2 == 1 and "\U0001f1e6" <= after <= "\U0001f1ff"
