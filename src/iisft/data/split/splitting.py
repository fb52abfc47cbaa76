"""`data split`: two passes over a file, one to decide, one to write each row as it stands to train,
val or test.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from iisft import files
from iisft.data.check.checking import checker_for
from iisft.data.check.findings import Findings
from iisft.data.read.conversation import from_row
from iisft.data.read.rows import Row
from iisft.data.read.source import Progress, Source, digest_of, halves, read_rows
from iisft.data.split import assigning
from iisft.data.split.assigning import DROPPED, Rows
from iisft.data.split.labels import ANSWER_SHAPE, MISSING, WORTHLESS, is_worthless, label_of
from iisft.data.stage.rowsfile import unwritable
from iisft.errors import CheckFailed, InputError, UsageError

PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """`shares` of train, val and test (or of the first two), any positive numbers.

    `by` stratifies, `stable` splits by hash instead. `ratios` {label: share} and `rows` choose
    which rows are kept, `weights` with what chance.
    """

    shares: tuple[float, ...] = (8, 1, 1)
    by: str | None = None
    seed: int = 42
    stable: bool = False
    ratios: Mapping[str, float] | None = None
    rows: int | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """What came out: the files and their rows by part, rows of each stratum by part, rows left out,
    what to know.
    """

    files: dict[str, Path]
    rows: dict[str, int]
    strata: dict[str, dict[str, int]]
    dropped: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "parts": {
                name: {"file": str(file), "rows": self.rows[name]}
                for name, file in self.files.items()
            },
            "strata": self.strata,
            "dropped": self.dropped,
            "notes": list(self.notes),
        }


def split(
    source: Source, request: SplitRequest, folder: Path, progress: Progress | None = None
) -> Split:
    """Split `source` into folder/STEM.train.jsonl and so on, with the record STEM.split.json beside
    them.

    Rows with the same prompt are on one side. The same file, request and version give the same
    files.

    Raises:
        UsageError: the request contradicts itself, or a file of that name exists.
        InputError: a label occurs in no row, or there are fewer rows than parts.
        CheckFailed: rows are broken; nothing is written.
        TransferError, EnvironmentFault: the files can't be written, or the disk is full.
    """
    _check_request(request)
    shares = [share / sum(request.shares) for share in request.shares]
    targets = _targets(source, folder, PARTS[: len(shares)])
    deciding, writing = halves(progress)
    rows, weights = _first_pass(source, request, deciding)
    kept = assigning.choose(rows, weights, request.rows, _mix(rows, request), request.seed)
    if len(kept) < len(shares):
        raise InputError(
            "split-few",
            f"{len(kept)} rows can't be split into {len(shares)}",
            where=str(source.file),
        )
    sides, notes = _sides(rows, kept, shares, request)
    if request.rows is not None and len(kept) < request.rows:
        notes.append(
            f"only {len(kept):,} of the {request.rows:,} rows that were asked for can be had"
        )
    counts = _second_pass(source, sides, targets, writing)
    strata = _strata(rows, sides, targets) if request.by else {}
    result = Split(targets, counts, strata, sides.count(DROPPED), tuple(notes))
    settings = {
        "source": str(source.file.absolute()),
        "source_sha256": digest_of(source.file),
        **asdict(request),
    }
    files.write_json_atomically(folder / f"{_stem(source)}.split.json", settings | result.as_json())
    return result


def _check_request(request: SplitRequest) -> None:
    if not 2 <= len(request.shares) <= len(PARTS) or min(request.shares) <= 0:
        raise UsageError(
            "split-parts", "--parts takes two or three positive numbers, for example 8:1:1"
        )
    if request.stable and (request.ratios or request.rows is not None or request.by):
        text = "--stable looks at one row alone: it can't stratify, mix or sample"
        raise UsageError(
            "split-stable", text, fix="leave out --by, --ratio and --rows, or --stable"
        )
    if request.ratios and not request.by:
        raise UsageError("split-ratio", "--ratio needs --by, which says whose values it names")
    if request.ratios and (min(request.ratios.values()) < 0 or sum(request.ratios.values()) > 1):
        raise UsageError("split-ratio", "shares of --ratio are between 0 and 1, together at most 1")
    if request.weights and request.rows is None and not request.ratios:
        raise UsageError("split-weights", "--weights needs --rows N: how many rows to draw")
    if request.rows is not None and request.rows < len(request.shares):
        raise UsageError("split-rows", f"--rows must be at least {len(request.shares)}")


def _stem(source: Source) -> str:
    name = source.file.name
    for suffix in (".gz", ".jsonl", ".json", ".csv", ".parquet"):
        name = name.removesuffix(suffix)
    return name


def _targets(source: Source, folder: Path, parts: Iterable[str]) -> dict[str, Path]:
    targets = {part: folder / f"{_stem(source)}.{part}.jsonl" for part in parts}
    for target in targets.values():
        if target.exists():
            text = "this file exists, and an earlier split may be in use"
            raise UsageError(
                "split-exists", text, where=str(target), fix="--to ANOTHER_FOLDER, or remove it"
            )
    return targets


def _first_pass(
    source: Source, request: SplitRequest, progress: Progress | None
) -> tuple[Rows, Rows | None]:
    """Prompt digest, stratum and weight label of every row. Every row must be sound."""
    rows, weights = Rows(), Rows() if request.weights else None
    label = label_of(request.by) if request.by else None
    weight = label_of(request.weights) if request.weights else None
    findings = Findings()
    check = checker_for(source)
    for row in read_rows(source, progress):
        staged, problems = check(row)
        for problem in problems:
            findings.add(source.file, row.number, row.line, problem)
        if staged is None:
            continue
        rows.add(_prompt_digest(staged, request.seed), label(row.value, staged) if label else "")
        if weights is not None and weight is not None:
            weights.add(0, weight(row.value, staged))
    if findings.errors:
        raise CheckFailed(findings.first_of_each("error"))
    for path, labelled in ((request.by, rows), (request.weights, weights)):
        if path and labelled and set(labelled.names) == {MISSING}:
            fix = f"iisft data check {source.file} names the keys; answer.KEY looks into the answer"
            raise InputError("split-field", f"no row has {path}", where=str(source.file), fix=fix)
    return rows, weights


def _prompt_digest(staged: dict[str, Any], seed: int) -> int:
    """64 bits of the prompt, the same in every process and for every form of the row."""
    conversation = from_row(staged)
    texts = (
        conversation.system,
        conversation.tools,
        *(message.content for message in conversation.messages[:-1]),
    )
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode("utf-8", "surrogatepass"), seed=seed)


def _mix(rows: Rows, request: SplitRequest) -> dict[int, float]:
    mix: dict[int, float] = {}
    for name, share in (request.ratios or {}).items():
        found = [label for label in rows.names if label == name]
        if not found and name == WORTHLESS and request.by == ANSWER_SHAPE:
            found = [label for label in rows.names if is_worthless(label)]
        if len(found) != 1:
            known = ", ".join(list(rows.names)[:10])
            text = f"--ratio names {name!r}, but the values of {request.by} are: {known}"
            raise InputError("split-label", text, fix=f"--ratio '{next(iter(rows.names))}=0.5'")
        mix[rows.names[found[0]]] = share
    return mix


def _sides(
    rows: Rows, kept: Sequence[int], shares: Sequence[float], request: SplitRequest
) -> tuple["array[int]", list[str]]:
    """The part of each row, and what is to be said about how it was chosen."""
    if request.stable:
        text = "by hash: sizes are as chance has them, and a row keeps its side when others are "
        return assigning.by_hash(rows, shares), [f"{text}added"]
    notes = []
    if request.by:
        notes = _small_note(assigning.merge_small(rows, kept, shares), len(kept))
    return assigning.by_strata(rows, kept, shares, request.seed), notes


def _small_note(small: dict[str, int], total: int) -> list[str]:
    if not small:
        return []
    names = ", ".join(f"{name} ({count})" for name, count in list(small.items())[:5])
    more = f" and {len(small) - 5:,} more" if len(small) > 5 else ""
    return [
        f"{sum(small.values()):,} of {total:,} rows are in {len(small):,} strata too small for "
        "every part, and were "
        f"split together: {names}{more}"
    ]


def _second_pass(
    source: Source, sides: "array[int]", targets: dict[str, Path], progress: Progress | None
) -> dict[str, int]:
    counts = dict.fromkeys(targets, 0)
    names = list(targets)
    try:
        next(iter(targets.values())).parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            streams = [
                stack.enter_context(files.atomic_writer(target)) for target in targets.values()
            ]
            for side, row in zip(sides, _readable(source, progress), strict=True):
                if side != DROPPED:
                    streams[side].write(_as_line(row))
                    counts[names[side]] += 1
    except ValueError as error:  # zip: another number of rows than in the first pass
        raise _changed(source) from error
    except OSError as error:
        folder = next(iter(targets.values())).parent
        raise unwritable("split-write", error, folder, fix="--to FOLDER") from error
    return counts


def _readable(source: Source, progress: Progress | None) -> Iterator[Row]:
    check = checker_for(source)
    for row in read_rows(source, progress):
        if check(row)[0] is None:
            raise _changed(source)
        yield row


def _changed(source: Source) -> InputError:
    return InputError(
        "data-changed", "the file was changed while it was read", where=str(source.file)
    )


def _as_line(row: Row) -> bytes:
    if row.raw is not None and b"\n" not in row.raw:
        return row.raw.rstrip(b"\r") + b"\n"
    try:
        return orjson.dumps(row.value, option=orjson.OPT_APPEND_NEWLINE, default=str)
    # a number beyond 64 bits, or half of a surrogate pair in a key that nothing reads
    except TypeError:
        return json.dumps(row.value, default=str).encode() + b"\n"


def _strata(rows: Rows, sides: Sequence[int], targets: Iterable[str]) -> dict[str, dict[str, int]]:
    counted = Counter(zip(rows.labels, sides, strict=True))
    strata = {}
    for name, number in rows.names.items():
        sizes = {part: counted[number, side] for side, part in enumerate(targets)}
        if sum(sizes.values()):
            strata[name] = sizes
    return dict(sorted(strata.items(), key=lambda item: -sum(item[1].values())))
