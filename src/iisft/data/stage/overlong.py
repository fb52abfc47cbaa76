"""What is done about overlong rows of a staged file: found, fitted, dropped or let be.

And the copy without them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from iisft import files
from iisft.data.read.conversation import from_row
from iisft.data.stage.fitting import Cut, Fitter, apply
from iisft.data.tokens import lengths, remembered
from iisft.data.tokens.account import Account
from iisft.data.tokens.limit import Limit
from iisft.presets.sections import Overlong


@dataclass(frozen=True)
class Survey:
    """What a limit would do to a staged file: numbers (from 1) of the damaged rows, and how many
    rows lose what.

    `longest` is the smallest cutoff_len that cuts nothing. LLaMA-Factory can't render `uncounted`
    rows; `refused` is the number of the first of them, and why.
    """

    damaged: tuple[int, ...]
    rows: int
    header_lost: int
    answer_cut: int
    longest: int
    uncounted: int
    refused: tuple[int, str] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """By the names that the account has in JSON."""
        return {
            "damaged": len(self.damaged),
            "header_lost": self.header_lost,
            "answer_cut": self.answer_cut,
            "lossless_cutoff_len": self.longest,
        }


@dataclass(frozen=True)
class Changes:
    """What a policy does to a staged file: which rows are shortened and how, and which are left
    out.

    `unfit` are rows that would have to be shortened and can't; they are left out only when that was
    allowed.
    """

    policy: Overlong
    limit: Mapping[str, Any]
    cuts: Mapping[int, Cut] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    unfit: tuple[int, ...] = ()

    @property
    def left_out(self) -> frozenset[int]:
        return frozenset(self.dropped + self.unfit)

    def __bool__(self) -> bool:
        return bool(self.cuts or self.dropped or self.unfit)


def survey(
    rows: Path, sha256: str, limit: Limit, progress: lengths.Progress | None = None
) -> Survey:
    """Find the rows of a staged file that LLaMA-Factory would cut; remembered in the cache folder.

    Raises:
        InputError: the tokenizer can't be read.
        OSError: the file can't be read.
    """
    if (known := _known_survey(remembered.read("surveys", sha256, limit.identity))) is not None:
        return known
    account, damaged = Account(limit.cutoff_len, limit.room), []
    for number, pairs in enumerate(lengths.of_file(rows, sha256, limit.tokens, progress), 1):
        if not pairs:
            account.refuse(number, "")
            continue
        row_tokens = limit.cut(pairs)
        account.add(number, row_tokens)
        if row_tokens.damaged:
            damaged.append(number)
    found = Survey(
        tuple(damaged),
        account.rows + account.uncounted,
        account.header_lost,
        account.answer_cut,
        account.longest,
        account.uncounted,
        account.refused and (account.refused[0], _why_not(rows, account.refused[0], limit)),
    )
    remembered.write("surveys", orjson.dumps(asdict(found)), sha256, limit.identity)
    return found


def _why_not(rows: Path, wanted: int, limit: Limit) -> str:
    for number, line in _numbered(rows):
        if number == wanted:
            return limit.tokens.unrenderable(from_row(orjson.loads(line)))
    return "the file was changed"


def _known_survey(content: bytes | None) -> Survey | None:
    try:
        document = orjson.loads(content or b"")
        refused = document["refused"] and tuple(document["refused"])
        return Survey(**{**document, "damaged": tuple(document["damaged"]), "refused": refused})
    except (ValueError, OverflowError, KeyError, TypeError):
        return None


def changes(
    rows: Path,
    sha256: str,
    limit: Limit,
    damaged: Sequence[int],
    policy: Overlong,
    progress: lengths.Progress | None = None,
) -> Changes:
    """What `policy` (fit or drop) does to the damaged rows of a staged file; remembered in the
    cache folder.

    Raises:
        OSError: the file can't be read.
    """
    if policy != "fit" or not damaged:
        return Changes(policy, limit.identity, dropped=tuple(damaged) if policy == "drop" else ())
    if (known := _known(remembered.read("fits", sha256, limit.identity))) is not None:
        return Changes(policy, limit.identity, known[0], unfit=known[1])
    fitter, wanted = Fitter(limit, from_row), frozenset(damaged)
    cuts, unfit = {}, []
    for number, line in _numbered(rows):
        if number in wanted:
            cut = fitter.fit(orjson.loads(line))
            if cut is None:
                unfit.append(number)
            else:
                cuts[number] = cut
            if progress is not None:
                progress(len(cuts) + len(unfit))
    document = {
        "cuts": {str(number): cut.as_json() for number, cut in cuts.items()},
        "unfit": unfit,
    }
    remembered.write("fits", orjson.dumps(document), sha256, limit.identity)
    return Changes(policy, limit.identity, cuts, unfit=tuple(unfit))


def write(rows: Path, target: Path, what: Changes) -> tuple[int, str]:
    """Write the changed copy of a staged file; its number of rows and sha256.

    Raises:
        OSError: either file fails.
    """
    digest, count, left_out = hashlib.sha256(), 0, what.left_out
    with files.atomic_writer(target) as stream:
        for number, line in _numbered(rows):
            if number in left_out:
                continue
            if (cut := what.cuts.get(number)) is not None:
                line = orjson.dumps(apply(orjson.loads(line), cut)) + b"\n"
            digest.update(line)
            stream.write(line)
            count += 1
    return count, digest.hexdigest()


def write_report(target: Path, what: Changes) -> None:
    """One line of JSON for each row that was shortened or left out.

    Raises:
        OSError: it can't be written.
    """
    entries = [
        {"row": number, "what": "shortened", **cut.as_json()} for number, cut in what.cuts.items()
    ]
    entries += [{"row": number, "what": "left out: too long"} for number in what.dropped]
    entries += [
        {"row": number, "what": "left out: can't be shortened enough"} for number in what.unfit
    ]
    with files.atomic_writer(target) as stream:
        for entry in sorted(entries, key=lambda entry: int(str(entry["row"]))):
            stream.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")


def _numbered(rows: Path) -> Iterator[tuple[int, bytes]]:
    with files.open_regular(rows) as stream:
        yield from enumerate(stream, 1)


def _known(content: bytes | None) -> tuple[dict[int, Cut], tuple[int, ...]] | None:
    """Cuts and unfit rows as they were remembered; None when there are none, or they are torn."""
    try:
        document = orjson.loads(content or b"")
        return {int(n): Cut.from_json(cut) for n, cut in document["cuts"].items()}, tuple(
            document["unfit"]
        )
    except (ValueError, OverflowError, KeyError, TypeError):
        return None
