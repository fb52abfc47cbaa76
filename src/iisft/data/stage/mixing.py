"""Several staged datasets as one file: exact shares, drawn by a seed, written once and found again.

One file, because then its rows are counted, fitted, tokenised and proven like any other's.
"""

import bisect
import itertools
import json
import os
import random
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, Self

import orjson

from iisft import __version__, files
from iisft.data.read.rows import Row
from iisft.data.stage.fitting import apply
from iisft.data.stage.overlong import Changes
from iisft.data.stage.rowsfile import RowsFile, unwritable
from iisft.data.stage.rowshape import ALPACA, MESSAGES, shaped
from iisft.data.stage.staged import RECORD, StagedDataset, from_record
from iisft.errors import InputError
from iisft.llamafactory import dataset_info
from iisft.presets.sections import exactly, joined
from iisft.workspace import cache_folder

# Mixes in the cache folder, besides those of the last day: a run links its own when its folder is
# made, and a sweep plans every run before that.
_KEPT, _KEPT_S = 8, 86_400
_MOST_REPEATED = 50_000_000  # rows; their places are kept in memory
_PLACE_BITS = 40
_OPTIONAL = ("system", "history", "tools")


class Part(Protocol):
    """A dataset that is mixed: its staged file, and what is done to the rows of it."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> Path: ...
    @property
    def rows(self) -> int: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """So many rows of a part, whose `rows` are those that `changes` leave."""

    part: Part
    count: int
    changes: Changes | None = None


def counts(
    rows: Mapping[str, int], mix: Mapping[str, int | float] | None, *, repeat: bool = False
) -> dict[str, int]:
    """How many rows of each dataset a mix has.

    Shares: the largest mix that needs no row twice (`repeat`: the smallest that has every row),
    divided by the largest remainders, so that the numbers are the shares to within one row.

    Args:
        rows: how many each has.
        mix: shares that add up to 1, numbers of rows, or None for all of each.
        repeat: rows may come more than once.

    Raises:
        InputError: a dataset has too few rows, or would have none in the mix.
    """
    if empty := [name for name, count in rows.items() if not count]:
        text = f"there is no row of {', '.join(empty)} to mix"
        raise InputError("mix-empty", text, where="data.mix" if mix else "data.name")
    if not mix:
        return dict(rows)
    wanted = {name: mix[name] for name in rows}
    if any(isinstance(value, int) for value in wanted.values()):
        found = {name: int(value) for name, value in wanted.items()}
    else:
        found = _by_shares(rows, {n: exactly(share) for n, share in wanted.items()}, repeat=repeat)
    if short := [name for name, count in found.items() if count > rows[name] and not repeat]:
        few = ", ".join(f"{name} has {rows[name]:,} of {found[name]:,}" for name in short)
        fixed = ", ".join(f"{name}: {min(count, rows[name])}" for name, count in found.items())
        raise InputError(
            "mix-too-few",
            f"data.mix asks for more rows than there are: {few}",
            where="data.mix",
            fix=f"--set 'data.mix={{{fixed}}}', or --set data.repeat=true",
        )
    if none := [name for name, count in found.items() if not count]:
        fixed = ", ".join(f"{name}: {max(count, 1)}" for name, count in found.items())
        raise InputError(
            "mix-none",
            f"the mix has no row of {', '.join(none)}: too small a share of {sum(found.values()):,}"
            " rows",
            where="data.mix",
            fix=f"a larger share, or --set 'data.mix={{{fixed}}}'",
        )
    if (total := sum(found.values())) > max(_MOST_REPEATED, sum(rows.values())):
        raise InputError(
            "mix-too-many",
            f"the mix would have {total:,} rows, of {sum(rows.values()):,} that there are; at most "
            f"{_MOST_REPEATED:,} are made",
            where="data.mix",
            fix="less unequal shares, smaller numbers, or --set data.repeat=false",
        )
    return found


def _by_shares(
    rows: Mapping[str, int], shares: Mapping[str, Fraction], *, repeat: bool
) -> dict[str, int]:
    sizes = [rows[name] / share for name, share in shares.items()]
    # never more than a part has: its share of the total is at most that whole number
    total = int(max(sizes) if repeat else min(sizes))
    found = {name: int(total * share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: found[name] - total * shares[name])
    for name in by_remainder[: total - sum(found.values())]:
        found[name] += 1
    return found


def draw(name: str, rows: int, count: int, seed: int) -> list[int]:
    """Places of the rows that are taken of a dataset, from 0, in their order; it does not depend
    on what else is in the mix.
    """
    passes, rest = divmod(count, rows)
    chosen = random.Random(f"{seed} {name}").sample(range(rows), rest)
    return sorted([*range(rows)] * passes + chosen)


def mixed(name: str, drawn: Sequence[Drawn], seed: int | None) -> StagedDataset:
    """The mix as a dataset of that name: in random order by the seed; without one the parts follow
    each other.

    Raises:
        IisftError: it can't be written, or a part was changed meanwhile.
    """
    place = cache_folder() / "mixes"
    try:
        place /= _key(name, drawn, seed)
        if (known := _known(name, place)) is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(name, place, drawn, seed)
            _remove_old(place)
            known = _known(name, place)
    except OSError as error:
        raise unwritable("mix-write", error, place) from error
    if known is None:
        raise InputError("mix-torn", "the mix vanished while it was written", where=str(place))
    return known


def whole(parts: Sequence[StagedDataset]) -> StagedDataset:
    """All rows of several datasets, one after the other; of one, that dataset."""
    if len(parts) == 1:
        return parts[0]
    name = joined([part.name for part in parts])
    return mixed(name, [Drawn(part, part.rows) for part in parts], None)


class Sources:
    """Where the rows of a dataset come from that is made of several, one after the other."""

    def __init__(self, dataset: StagedDataset) -> None:
        """Of one in random order, or of a single one, nothing is known."""
        record = dataset.record
        parts = record.get("parts") if record.get("in_order") else None
        self._names = [str(part["name"]) for part in parts or ()]
        self._ends = list(itertools.accumulate(int(part["rows"]) for part in parts or ()))

    @property
    def several(self) -> bool:
        return len(self._names) > 1

    def of(self, number: int) -> str | None:
        """The part that has the row with this number, from 1."""
        index = bisect.bisect_left(self._ends, number)
        return self._names[index] if index < len(self._names) else None


def _key(name: str, drawn: Sequence[Drawn], seed: int | None) -> str:
    about: list[Any] = [__version__, name, seed]
    for one in drawn:
        changes = one.changes
        limit = [changes.policy, dict(changes.limit), len(changes.left_out)] if changes else None
        stat = one.part.file.stat()
        file = [str(one.part.file), stat.st_size, stat.st_mtime_ns]
        about.append([one.part.name, file, one.count, limit])
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _known(name: str, place: Path) -> StagedDataset | None:
    """One that lies there whole, as it was written."""
    record = files.read_json_object(place / RECORD)
    with suppress(OSError):
        os.utime(place)  # it is in use
    try:
        found = from_record(name, place, record or {})
        stat = found.file.stat()
        whole = (stat.st_size, stat.st_mtime_ns) == (found.record["size"], found.record["mtime_ns"])
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return found if whole else None


def _write(name: str, place: Path, drawn: Sequence[Drawn], seed: int | None) -> None:
    keys = _common_keys([one.part.keys for one in drawn])
    work = Path(tempfile.mkdtemp(prefix=".making.", dir=place.parent))
    try:
        with RowsFile(work, keys) as written:
            written.write_all(_rows(drawn, keys, seed))
            published = written.publish("rows-")
        record = {
            **published,
            "source": "; ".join(one.part.source for one in drawn),
            "parts": [{"name": one.part.name, "rows": one.count} for one in drawn],
            "in_order": seed is None,
        }
        entry = dataset_info.entry(published["file"], published["keys"])
        info = dataset_info.render({name: entry})
        files.write_text_atomically(work / dataset_info.FILE_NAME, info)
        files.write_json_atomically(work / RECORD, record)
        if place.exists():  # torn: nothing else is written there
            shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # another command was faster, and its is the same
            work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _common_keys(keys: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if any("messages" in one for one in keys):
        return MESSAGES
    return ALPACA + tuple(key for key in _OPTIONAL if any(key in one for one in keys))


def _rows(drawn: Sequence[Drawn], keys: tuple[str, ...], seed: int | None) -> Iterator[Row]:
    order = array("Q")  # a part's number, and a row's place in it
    for index, one in enumerate(drawn):
        places = draw(one.part.name, one.part.rows, one.count, seed or 0)
        order.extend(index << _PLACE_BITS | place for place in places)
    if seed is not None:
        random.Random(seed).shuffle(order)
    with ExitStack() as stack:
        readers = [stack.enter_context(_Reader(one)) for one in drawn]
        for number, entry in enumerate(order, 1):
            index, place = entry >> _PLACE_BITS, entry & (1 << _PLACE_BITS) - 1
            yield Row(number, 0, shaped(readers[index].row(place), keys))


class _Reader:
    """Rows of a part by their places, as its changes leave them."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn
        changes = drawn.changes
        self._cuts = changes.cuts if changes else {}
        left_out = changes.left_out if changes else frozenset()
        self._stream = files.open_regular(drawn.part.file)
        self._starts, self._numbers, position = array("Q"), array("Q"), 0
        for number, line in enumerate(self._stream, 1):
            if number not in left_out:
                self._starts.append(position)
                self._numbers.append(number)
            position += len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def row(self, place: int) -> dict[str, Any]:
        try:
            self._stream.seek(self._starts[place])
            row: dict[str, Any] = orjson.loads(self._stream.readline())
        except (IndexError, ValueError) as error:
            part = self._drawn.part
            text = f"the rows of {part.name} were changed while they were mixed"
            raise InputError("data-changed", text, where=str(part.file)) from error
        cut = self._cuts.get(self._numbers[place])
        return row if cut is None else apply(row, cut)


def _remove_old(kept: Path) -> None:
    with suppress(OSError):
        others = [(path.stat().st_mtime, path) for path in kept.parent.iterdir() if path != kept]
        for used, path in sorted(others, reverse=True)[_KEPT - 1 :]:
            if time.time() - used > _KEPT_S:
                shutil.rmtree(path, ignore_errors=True)
