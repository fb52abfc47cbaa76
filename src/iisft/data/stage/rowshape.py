"""Which keys all rows of a staged file have: Alpaca's, or messages.

LLaMA-Factory reads JSON lines with datasets 4.0, which guesses the types of each chunk of 10 MiB by
itself. Every row needs the same keys, and two habits of the guess rule the Alpaca form out. A list
that is empty in the whole first chunk has no type, and the first one with something in it ends the
run. Texts that are all dates in one chunk become timestamps there: "2025-01-02" would train as
"2025-01-02 00:00:00". As messages, where prompt and answer share a column, neither can happen, and
the model sees the same.
"""

import re
from typing import Any

from iisft.data.read.conversation import from_alpaca
from iisft.llamafactory.dataset_info import CHUNK_BYTES

ALPACA = ("instruction", "input", "output")
MESSAGES = ("messages", "system", "tools")
_SAFE_BYTES = CHUNK_BYTES * 3 // 4
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ][0-9:.+\-]*Z?)?")


class Shape:
    """Watches the rows of one file as they are written, then names the keys that all must have.

    Rows of several files may be of both forms.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._has_messages = self._has_alpaca = self._system = self._tools = False
        self._history_at: int | None = None
        # of the run of dates that ends at the present row
        self._date_bytes = dict.fromkeys(ALPACA, 0)
        self._longest_dates = 0

    def watch(self, row: dict[str, Any], size: int) -> None:
        """Take note of a row whose line has `size` bytes."""
        if "messages" in row:
            self._has_messages = True
            return
        self._has_alpaca = True
        for key in ALPACA:
            text = row[key]
            if text[4:5] == "-" and _DATE.fullmatch(text):
                self._date_bytes[key] += size
                self._longest_dates = max(self._longest_dates, self._date_bytes[key])
            elif self._date_bytes[key]:
                self._date_bytes[key] = 0
        if len(row) > len(ALPACA):
            self._system = self._system or bool(row.get("system"))
            self._tools = self._tools or bool(row.get("tools"))
            if row.get("history") and self._history_at is None:
                self._history_at = self._bytes
        self._bytes += size

    @property
    def as_they_come(self) -> tuple[str, ...]:
        """The keys that all rows have already, () where they differ."""
        if self._has_messages:
            return () if self._has_alpaca else MESSAGES
        return () if self._system or self._tools or self._history_at is not None else ALPACA

    def keys(self) -> tuple[str, ...]:
        """The keys, once all rows were seen."""
        if (
            self._has_messages
            or self._a_chunk_may_be_dates()
            or (self._history_at or 0) > _SAFE_BYTES
        ):
            return MESSAGES
        extra = ("system",) * self._system + ("history",) * (self._history_at is not None)
        return ALPACA + extra + ("tools",) * self._tools

    def _a_chunk_may_be_dates(self) -> bool:
        """A whole chunk, or the rest of the file after the last whole one."""
        at_the_end = self._bytes > _SAFE_BYTES and any(self._date_bytes.values())
        return at_the_end or self._longest_dates >= min(self._bytes, _SAFE_BYTES) > 0


def shaped(row: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The row with exactly these keys."""
    if keys == MESSAGES and "messages" not in row:
        conversation = from_alpaca(row)
        turns = [
            {"role": message.role, "content": message.content} for message in conversation.messages
        ]
        return {"messages": turns, "system": conversation.system, "tools": conversation.tools}
    return {key: row.get(key) or ([] if key == "history" else "") for key in keys}
