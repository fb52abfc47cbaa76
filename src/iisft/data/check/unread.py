"""Keys that change what a row or a message means for training, and that LLaMA-Factory's supervised
training doesn't read: a loss flag, a rejected answer, pictures, a thought beside the answer.

One that says something else than "train on this as usual" is an error. --ignore KEY is the way out.
"""

import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from iisft.data.check.findings import THE_FILE, RowFinding, excerpt, flaw
from iisft.llamafactory.dataset_info import LAST_ANSWER_ONLY
from iisft.llamafactory.tools import THOUGHT_WORDS

_YES, _NO = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "-1", "no"}


def _says(value: Any) -> bool | None:
    """Yes or no, as JSON or as the text of a table; None for anything else."""
    text = str(value).strip().lower()
    return True if text in _YES else False if text in _NO else None


def _not_as_usual(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_not_as_usual, value))
    return _says(value) is not True


def _masks(value: Any) -> bool:
    return any(map(_masks, value)) if isinstance(value, list) else _says(value) is not False


def _refuses(value: Any) -> bool:
    """A label may as well be a class of a classifier: only a plain no is one of a judge."""
    return _says(value) is False


def _anything(value: Any) -> bool:
    return bool(value)


def _holds_text(value: Any) -> bool:
    """Numbers and flags (`reasoning_tokens`, `system_ok`) are facts about a row, no text of it."""
    return isinstance(value, (list, dict)) or (isinstance(value, str) and not value.isspace())


class _Kind(NamedTuple):
    id: str
    keys: re.Pattern[str]
    speaks: Callable[[Any], bool]
    message: str
    fix: str


_LAST_ONLY = f", with {LAST_ANSWER_ONLY} in the preset on a row's last answer alone"
_THOUGHT = "...".join(word.strip() for word in THOUGHT_WORDS)
_KINDS = tuple(
    _Kind(id, re.compile(keys, re.IGNORECASE), speaks, message, fix)
    for id, keys, speaks, message, fix in (
        (
            "loss-flag",
            "loss|loss_mask|train|trainable|weight",
            _not_as_usual,
            "is not honoured: LLaMA-Factory trains on every answer of a row alike",
            _LAST_ONLY,
        ),
        (
            "loss-flag",
            "masked",
            _masks,
            "is not honoured: LLaMA-Factory trains on every answer of a row alike",
            _LAST_ONLY,
        ),
        (
            "preference-data",
            "label|kto_tag",
            _refuses,
            "preference data (KTO): an answer that is marked as bad would be trained as a good one",
            "data stage --drop-bad leaves such rows out; ",
        ),
        (
            "preference-data",
            "chosen|rejected.*",
            _anything,
            "preference data (DPO): supervised training reads one answer, and not these two",
            "",
        ),
        (
            "media-unread",
            "images|videos|audios",
            _anything,
            "is not read: only text is trained on, and <image> in it would be text",
            "",
        ),
        (
            "tools-unread",
            "tools|functions",
            _holds_text,
            "is not read, and the calls would be trained without their tools",
            "--columns tools={key}; ",
        ),
        (
            "system-unread",
            "system(?!_fingerprint).*",
            _holds_text,
            "is not read, and the row would be trained without it",
            "--columns system={key}; ",
        ),
        (
            "thought-unread",
            "think(?:ing)?|thoughts?|reasoning(?!_effort).*|chain_of_thought",
            _holds_text,
            "is not read, and the answer would be trained without its thought",
            f"write it into the answer, as the template does: {_THOUGHT}; ",
        ),
    )
)
_ON_MESSAGES = {"loss-flag", "media-unread", "thought-unread"}
_CACHED = 1000


def _fix(kind: _Kind, key: str, keys: str) -> str:
    before, after = ("", kind.fix) if kind.fix.startswith(",") else (kind.fix, "")
    ignored = f"--ignore {shlex.quote(keys)} trains as if it were not there"
    return before.format(key=shlex.quote(key)) + ignored + after


class Watch:
    """Finds those keys in rows that have `read` keys, or in their messages.

    It is asked for every row, so it remembers which of a row's keys are worth a look.
    """

    def __init__(
        self, read: Collection[str], ignored: Collection[str], *, messages: bool = False
    ) -> None:
        self._left_alone = {*read, *ignored}
        self._kinds = [kind for kind in _KINDS if not messages or kind.id in _ON_MESSAGES]
        self._known: dict[tuple[str, ...], list[tuple[str, _Kind]]] = {}

    def speaking(self, value: dict[str, Any]) -> list[tuple[str, _Kind]]:
        """The keys of this row or message whose values mean something, mostly none."""
        keys = tuple(value)
        watched = self._known.get(keys)
        if watched is None:
            if len(self._known) >= _CACHED:
                self._known.clear()
            watched = self._known[keys] = [
                (key, kind)
                for key in keys
                if key not in self._left_alone
                for kind in self._kinds
                if kind.keys.fullmatch(key)
            ]
        return [
            (key, kind)
            for key, kind in watched
            if value[key] is not None and value[key] not in ("", [], {}) and kind.speaks(value[key])
        ]

    def knows(self, key: str) -> bool:
        """Whether nothing else has to be said of this key."""
        return key in self._left_alone or any(kind.keys.fullmatch(key) for kind in self._kinds)

    def problems(self, value: dict[str, Any], within: str = "") -> Iterator[RowFinding]:
        """What to say of them; `within` is the field of the message."""
        found: dict[str, list[tuple[str, _Kind]]] = {}
        for key, kind in self.speaking(value):
            found.setdefault(kind.id, []).append((key, kind))
        for id, (first, *others) in found.items():
            key, kind = first
            keys = ",".join([key, *(other for other, _ in others)])
            yield flaw(
                f"{within}.{key}" if within else key,
                id,
                kind.message,
                excerpt(value[key]),
                fix=_fix(kind, key, keys),
            )


_JOINED = '.[%s][] |= (.[%s] |= if type == "array" then map(.text) | join("") else . end)'


def parts_problem(field: str, content: Any, columns: Mapping[str, str]) -> RowFinding | None:
    """OpenAI's and Anthropic's list of typed parts instead of a text; None for anything else."""
    if not isinstance(content, list) or not content:
        return None
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    named = list(dict.fromkeys(kind for kind in kinds if isinstance(kind, str)))
    if not all(isinstance(kind, str) for kind in kinds):
        return None
    fix = "leave such rows out (data stage --drop-bad): only text is trained on"
    if named == ["text"]:
        program = _JOINED % (json.dumps(columns["messages"]), json.dumps(columns["content"]))
        fix = f"jq -c {shlex.quote(program)} {THE_FILE} > rows.jsonl"
    elif {"tool_use", "tool_result"} & set(named):
        fix = (
            'write tool_use as tool_calls of the message ([{"function": {"name": ..., '
            '"arguments": ...}}]) and tool_result as a message of role tool'
        )
    text = f"parts ({', '.join(named)}) where LLaMA-Factory reads a text"
    return flaw(field, "content-parts", text, fix=fix)
