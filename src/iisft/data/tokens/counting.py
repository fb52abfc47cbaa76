"""Counting the tokens of rows: as they pass by, and the account of whole files, or of a sample of
their rows.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from iisft.data.check.checking import Check
from iisft.data.read.conversation import Conversation, from_row
from iisft.data.read.rows import Row
from iisft.data.read.source import Progress, Source
from iisft.data.tokens import lengths
from iisft.data.tokens.account import SAMPLE_ROWS, Account
from iisft.data.tokens.limit import Limit, RowTokens
from iisft.data.tokens.tokenization import Pairs
from iisft.errors import Finding

_SEED = 42
_EXCERPT = 160


def account_of(
    sources: Sequence[Source],
    sound_rows: int,
    limit: Limit,
    *,
    exact: bool = False,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Account:
    """Read the sources again and count their sound rows; above SAMPLE_ROWS only so many, drawn with
    a fixed seed.

    `sound_rows` is how many they have, from the structural check.
    """
    account = Account(limit.cutoff_len, limit.room, batch_size=batch_size)
    chosen: set[int] | None = None
    if sound_rows > SAMPLE_ROWS and not exact:
        account.rows_in_file = sound_rows
        chosen = set(random.Random(_SEED).sample(range(sound_rows), SAMPLE_ROWS))
    before = 0
    for source in sources:
        check = Check([source], repeats=False, progress=progress)
        rows = enumerate(check.sound_rows(), before)
        for row, pairs in counted(
            (row for index, row in rows if chosen is None or index in chosen), limit
        ):
            row_tokens = limit.cut(pairs) if pairs else None
            add(account, row, row_tokens, source.file.name, "" if pairs else why_not(row, limit))
        before += check.report.sound
    return account


def counted(rows: Iterable[Row], limit: Limit) -> Iterator[tuple[Row, Pairs]]:
    """Each row in its staged form with the tokens of its turns.

    No pairs for a row that LLaMA-Factory can't render.
    """
    waiting: deque[Row] = deque()

    def conversations() -> Iterator[Conversation]:
        for row in rows:
            waiting.append(row)
            yield from_row(row.value)

    for pairs in lengths.count(conversations(), limit.tokens):
        yield waiting.popleft(), pairs


def why_not(row: Row, limit: Limit) -> str:
    """Why LLaMA-Factory would end a training at this row."""
    return limit.tokens.unrenderable(from_row(row.value))


def unrenderable_finding(rows: int, first: int, why: str) -> Finding:
    """The error of rows at which LLaMA-Factory would end."""
    more = f" (and {rows - 1:,} more of this kind)" if rows > 1 else ""
    return Finding(
        "data-unrenderable",
        f"LLaMA-Factory would end the training at row {first}{more}: {why}",
        fix="change these rows, or train with a template that can write them "
        "(--set model.template=NAME)",
    )


def add(
    account: Account, row: Row, row_tokens: RowTokens | None, file: str = "", why: str = ""
) -> None:
    """Add a row to the account; None: it can't be rendered, and `why`."""
    if row_tokens is None:
        account.refuse(row.number, why)
    else:
        account.add(row.number, row_tokens, file, _excerpt(row) if row_tokens.damaged else "")


def _excerpt(row: Row) -> str:
    """The beginning of what tells this row from others: an Alpaca row's input, else its longest
    question.
    """
    if text := row.value.get("input"):
        return str(text)[:_EXCERPT]
    questions = (
        m.content for m in from_row(row.value).messages if m.role in ("user", "observation")
    )
    return max(questions, key=len, default="")[:_EXCERPT]
