"""Whether the rows that a model was given first are those that the account counted: the same token
ids, made from tokenizer.json alone.

A library that reads the tokenizer otherwise (another pre-tokenizer, chosen by model_type) trains on
other tokens and says nothing.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from iisft import files
from iisft.data.read.conversation import Conversation, from_row
from iisft.data.tokens import lengths, remembered
from iisft.data.tokens.lengths import RowLengths
from iisft.data.tokens.limit import Limit
from iisft.data.tokens.target import limit_of
from iisft.data.tokens.tokenization import Pairs
from iisft.errors import IisftError
from iisft.llamafactory.arguments import is_packed
from iisft.presets.schema import Preset

_MOST_COUNTED = 50_000  # rows whose lengths nobody knows yet
_MOST_TRIED = 20_000  # rows as long as one of the batch


class NotCompared(Exception):
    """Why nothing can be said."""


def strangers(
    preset: Mapping[str, Any], model: Path, rows: Path, sha256: str, said: Sequence[Any]
) -> list[int]:
    """Lengths of those rows of a batch that are no row of the account.

    Args:
        preset: the values of the run's.
        model: the folder of the tokenizer.
        rows: the staged rows, of this digest.
        sha256: that digest.
        said: length and digest of each row of the batch, without padding.

    Raises:
        NotCompared: the account can't tell.
    """
    try:
        values = Preset.model_validate(dict(preset))
        if is_packed(values):
            raise NotCompared("rows are packed")
        limit = limit_of(values, model)
        wanted = [(int(length), str(digest)) for length, digest in said]
        found = _found(limit, rows, sha256, set(wanted))
    except (ValidationError, TypeError, ValueError) as error:
        raise NotCompared(f"the run's record is broken ({type(error).__name__})") from error
    except (IisftError, OSError) as error:
        raise NotCompared(getattr(error, "message", str(error))) from error
    return [length for length, digest in wanted if (length, digest) not in found]


def _found(
    limit: Limit, rows: Path, sha256: str, wanted: set[tuple[int, str]]
) -> set[tuple[int, str]]:
    """Those of the wanted rows that the account has."""
    found: set[tuple[int, str]] = set()
    long = {length for length, _ in wanted}
    for tried, conversation in enumerate(_of_length(limit, rows, sha256, long)):
        if tried >= _MOST_TRIED:
            raise NotCompared("too many rows are as long")
        ids = _ids(limit, conversation)
        if -1 in ids:
            raise NotCompared("the tokenizer lacks a token of the template")
        one = (len(ids), hashlib.sha256(array("q", ids).tobytes()).hexdigest()[:16])
        found |= {one} & wanted
        if found == wanted:
            break
    return found


def _of_length(limit: Limit, rows: Path, sha256: str, long: set[int]) -> Iterator[Conversation]:
    """The rows of which so many tokens are left, by the counts that are remembered."""
    content = remembered.read("tokens", sha256, limit.tokens.identity)
    counted: Iterable[Pairs] | None = None if content is None else RowLengths.from_bytes(content)
    if counted is None:
        counted = _counted(limit, rows)
    with files.open_regular(rows) as stream:
        for line, pairs in zip(stream, counted, strict=True):
            if pairs and limit.cut(pairs).kept in long:
                yield from_row(orjson.loads(line))


def _counted(limit: Limit, rows: Path) -> list[Pairs]:
    with files.open_regular(rows) as stream:
        if sum(1 for _ in stream) > _MOST_COUNTED:
            raise NotCompared("the rows were not counted")
    with files.open_regular(rows) as stream:
        return list(lengths.count((from_row(orjson.loads(line)) for line in stream), limit.tokens))


def _ids(limit: Limit, conversation: Conversation) -> list[int]:
    """A row's tokens as they are left."""
    pairs = limit.tokens.ids(conversation)
    kept = limit.cutting.kept([(len(question), len(answer)) for question, answer in pairs])
    ids: list[int] = []
    for (question, answer), (of_question, of_answer) in zip(pairs, kept, strict=True):
        ids += question[:of_question] + answer[:of_answer]
    if limit.cutting.end_tokens and (end := limit.tokens.end_id) is not None:
        ids.append(end)
    return ids
