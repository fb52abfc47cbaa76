"""Token counts of every row of a staged file, counted once per file and tokenization and kept in
the cache folder.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson

from iisft import files, json_values
from iisft.data.read.conversation import Conversation, from_row
from iisft.data.tokens import remembered
from iisft.data.tokens.tokenization import Pairs, Tokenization

Progress = Callable[[int], None]
"""Called with the number of rows counted so far."""

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 1_000_000
_MAGIC = "iisft row lengths 1"


class RowLengths:
    """Tokens of question and answer of every turn of every row, in a few bytes each.

    A row that LLaMA-Factory can't render has no turns.
    """

    def __init__(self) -> None:
        self._turns = array("I")
        self._tokens = array("I")

    def append(self, pairs: Pairs) -> None:
        self._turns.append(len(pairs))
        for question, answer in pairs:
            self._tokens.append(question)
            self._tokens.append(answer)

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Pairs]:
        position = 0
        for turns in self._turns:
            yield [
                (self._tokens[i], self._tokens[i + 1])
                for i in range(position, position + 2 * turns, 2)
            ]
            position += 2 * turns

    def to_bytes(self) -> bytes:
        """A header line that tells a torn file, then the numbers."""
        body = self._turns.tobytes() + self._tokens.tobytes()
        header = {
            "kind": _MAGIC,
            "rows": len(self._turns),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return json.dumps(header).encode() + b"\n" + body

    @classmethod
    def from_bytes(cls, content: bytes) -> "RowLengths | None":
        """None when the bytes are torn, or another machine's."""
        head, _, body = content.partition(b"\n")
        try:
            header = json_values.parse_json(head)
            rows, digest, kind = header["rows"], header["sha256"], header["kind"]
        except (ValueError, OverflowError, KeyError, TypeError):
            return None
        if kind != _MAGIC or hashlib.sha256(body).hexdigest() != digest:
            return None
        found = cls()
        split = rows * found._turns.itemsize
        found._turns.frombytes(body[:split])
        found._tokens.frombytes(body[split:])
        return found if sum(found._turns) * 2 == len(found._tokens) else None


def count(conversations: Iterable[Conversation], tokens: Tokenization) -> Iterator[Pairs]:
    """Tokens of each row in order, counted in batches; no pairs where a row can't be rendered."""
    for batch in _batches(conversations):
        yield from tokens.lengths(batch)


def of_file(
    rows: Path, sha256: str, tokens: Tokenization, progress: Progress | None = None
) -> RowLengths:
    """Tokens of every row of a staged file with this digest, from the cache when they were counted
    before.

    Raises:
        OSError: the file can't be read.
    """
    content = remembered.read("tokens", sha256, tokens.identity)
    if content is not None and (known := RowLengths.from_bytes(content)) is not None:
        return known
    found = RowLengths()
    with files.open_regular(rows) as stream:
        for pairs in count((from_row(orjson.loads(line)) for line in stream), tokens):
            found.append(pairs)
            if progress is not None and not len(found) % 100:
                progress(len(found))
    remembered.write("tokens", found.to_bytes(), sha256, tokens.identity)
    return found


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    batch: list[Conversation] = []
    characters = 0
    for conversation in conversations:
        batch.append(conversation)
        characters += sum(len(message.content) for message in conversation.messages)
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
