"""The token account of data files that are not staged: every row, or a sample of them."""

import random
from collections.abc import Iterable, Iterator, Sequence

from iisft.data import lengths
from iisft.data.account import SAMPLE_ROWS, Account
from iisft.data.checking import Check
from iisft.data.conversation import from_row
from iisft.data.fate import Limit
from iisft.data.rows import Row
from iisft.data.source import Source

_SEED = 42


def account_of(
    sources: Sequence[Source],
    sound_rows: int,
    limit: Limit,
    *,
    exact: bool = False,
    batch_size: int = 1,
    progress: lengths.Progress | None = None,
) -> Account:
    """Read the sources again and count their sound rows; above SAMPLE_ROWS only so many, drawn with a fixed seed.

    `sound_rows` is how many they have, from the structural check.
    """
    rows: Iterable[Row] = Check(sources, repeats=False).sound_rows()
    account = Account(limit.cutoff_len, limit.room, batch_size=batch_size)
    if sound_rows > SAMPLE_ROWS and not exact:
        account.rows_in_file = sound_rows
        rows = _sampled(rows, sound_rows)
    count_into(account, rows, limit, progress)
    return account


def count_into(account: Account, rows: Iterable[Row], limit: Limit, progress: lengths.Progress | None = None) -> None:
    """Add rows in their staged form to an account."""
    numbers: list[int] = []

    def conversations() -> Iterator[lengths.Conversation]:
        for row in rows:
            numbers.append(row.number)
            yield from_row(row.value)

    for done, pairs in enumerate(lengths.count(conversations(), limit.tokens)):
        if pairs:
            account.add(numbers[done], limit.fate(pairs))
        else:
            account.uncounted += 1
        if progress is not None and not done % 64:
            progress(done)


def _sampled(rows: Iterable[Row], count: int) -> Iterator[Row]:
    chosen = iter(sorted(random.Random(_SEED).sample(range(count), SAMPLE_ROWS)))
    wanted = next(chosen)
    for index, row in enumerate(rows):
        if index == wanted:
            yield row
            wanted = next(chosen, -1)
            if wanted < 0:
                return
