"""`data stage`: one pass that checks every row, passes it through a policy and writes it to
data/NAME.

The rows stand in a file that is named by its digest; the record (staged.json) names that file and
is renamed into place last. Until then the dataset is what it was before; a kill at any moment
leaves the old one or the new one.
"""

import errno
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from iisft import __version__, files
from iisft.data.check.checking import Check
from iisft.data.check.findings import Findings
from iisft.data.read.rows import Row
from iisft.data.read.source import Progress, Source, digest_of, halves, open_source
from iisft.data.stage.rowsfile import RowsFile, unwritable
from iisft.data.stage.staged import RECORD, StagedDataset, from_record, load, staged_names
from iisft.errors import CheckFailed, Finding, IisftError, InputError, TransferError, UsageError
from iisft.llamafactory import dataset_info
from iisft.workspace import Workspace

__all__ = ["Policy", "StagedDataset", "Staging", "load", "stage", "stage_all", "staged_names"]

_NAME = re.compile(r"\w[\w.-]{0,99}")  # LLaMA-Factory separates dataset names by commas
_ORIGINALS = "originals"
REPORT = "overlong-report.jsonl"
"""Where a policy may write what it did to each row."""
LEFT_OUT = "left-out.jsonl"
"""Why rows were left out by --drop-bad: the first ones of each kind."""


@dataclass(frozen=True)
class Policy:
    """A step between the checked rows and the file.

    `apply` gets the sound rows in their staged form and gives those to write; it may raise
    CheckFailed. `identity` are its settings: staging again with the same ones and the same file
    changes nothing. After the last row it is asked for its `findings`, and then, with the staged
    file, for its part of the manifest. The originals are kept only when it `changes_rows`.
    """

    identity: dict[str, Any]
    apply: Callable[[Iterable[Row]], Iterable[Row]]
    for_record: Callable[[Path], dict[str, Any]] = field(default=lambda staged: {})
    findings: Callable[[], list[Finding]] = field(default=list)
    changes_rows: bool = True


class Staging(NamedTuple):
    """What staging came to. `unchanged`: the same rows were staged already, nothing was written."""

    dataset: StagedDataset
    findings: Findings
    unchanged: bool


def stage(
    file: Path,
    name: str,
    workspace: Workspace,
    *,
    formats: str | None = None,
    columns: Sequence[str] = (),
    ignore: Sequence[str] = (),
    roles: Sequence[str] = (),
    drop_bad: bool = False,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Staging:
    """Check every row of `file` and write them to data/NAME, replacing an older staging of that
    name.

    Memory stays the same at any size. With a policy the checked rows are kept beside what it made
    of them.

    Raises:
        UsageError: the name, a format or a column can't be used.
        InputError: the file is missing, empty, or of a kind that isn't read.
        CheckFailed: rows are wrong; the findings have their row numbers and fields. Nothing was
        staged. TransferError, EnvironmentFault: the copy can't be written, or the disk is full.
    """
    _check_name(name)
    source = open_source(file, formats, columns, ignore=ignore, roles=roles)
    return stage_all({"": source}, name, workspace, drop_bad=drop_bad, policy=policy,
                     progress=progress)  # fmt: skip


def stage_all(
    sources: Mapping[str, Source],
    name: str,
    workspace: Workspace,
    *,
    drop_bad: bool = False,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Staging:
    """The same for the rows of several files, one after the other, in any of the forms; the
    dataset's record tells how many rows each name has.
    """
    _check_name(name)
    hashing, reading = halves(progress)
    asked = {
        **_in_one([_about(source, hashing) for source in sources.values()]),
        "drop_bad": drop_bad,
        "policy": policy.identity if policy else None,
        "iisft": __version__,
    }
    if same := _staged_before(name, workspace, asked):
        return Staging(same, Findings(), unchanged=True)
    folder = workspace.data / name
    with _writable(folder, list(sources.values())):
        return _stage(sources, name, folder, asked, policy, reading)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            "data-name", f"a dataset name has letters, digits, '.', '_' and '-', not {name!r}"
        )


def _about(source: Source, progress: Progress | None) -> dict[str, Any]:
    return {
        "source_sha256": digest_of(source.file, progress),
        "format": source.describe(),
        "columns": dict(source.layout.columns),
        "ignored": list(source.layout.ignored),
        "roles": dict(source.layout.roles),
    }


def _in_one(about: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several files a list under each key, but for the format, which people read."""
    if len(about) == 1:
        return about[0]
    formats = dict.fromkeys(one["format"] for one in about)
    return {key: [one[key] for one in about] for key in about[0]} | {"format": "; ".join(formats)}


def _staged_before(name: str, workspace: Workspace, asked: dict[str, Any]) -> StagedDataset | None:
    try:
        staged = load(name, workspace)
    except IisftError:
        return None
    return staged if {key: staged.record.get(key) for key in asked} == asked else None


@contextmanager
def _writable(folder: Path, sources: Sequence[Source]) -> Iterator[None]:
    """The dataset's folder, locked; errors of the disk as a person reads them.

    No empty folder is left behind.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        needed = sum(one.size for one in sources if one.container in ("json", "jsonl"))
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free",
            )
        with files.exclusive_lock(folder / ".lock"):
            try:
                yield
            finally:
                if not (folder / RECORD).exists():
                    _remove_others(folder, set())
                    for file_name in (dataset_info.FILE_NAME, ".lock"):
                        (folder / file_name).unlink(missing_ok=True)
    except BlockingIOError as error:
        text = "another process is staging this dataset"
        raise TransferError("stage-busy", text, where=str(folder), fix="wait for it") from error
    except OSError as error:
        raise unwritable("stage-write", error, folder) from error
    finally:
        for left in (folder / _ORIGINALS, folder):
            with suppress(OSError):  # something is in it
                left.rmdir()


def _stage(
    sources: Mapping[str, Source],
    name: str,
    folder: Path,
    asked: dict[str, Any],
    policy: Policy | None,
    progress: Progress | None,
) -> Staging:
    check = Check(list(sources.values()), progress=progress)
    rows: Iterable[Row] = check.sound_rows()
    counts = [0] * len(sources)
    with ExitStack() as stack:
        written = stack.enter_context(RowsFile(folder))
        originals = (
            stack.enter_context(_originals(folder)) if policy and policy.changes_rows else None
        )
        if originals:
            rows = originals.copying(rows)
        for row in written.copying(policy.apply(rows) if policy else rows):
            counts[row.source] += 1
        _require_sound(check, written, policy, asked["drop_bad"])
        kept = originals.publish("") if originals else None
        published = written.publish("rows-")
        record = {
            **asked,
            **published,
            "source": "; ".join(str(one.file.absolute()) for one in sources.values()),
            "not_read": list(
                dict.fromkeys(key for one in sources.values() for key in one.layout.unused)
            ),
            "originals": {**kept, "file": f"{_ORIGINALS}/{kept['file']}"} if kept else None,
            "rows_read": check.report.rows,
            "warnings": {
                code: group.count
                for code, group in check.findings.groups.items()
                if group.severity != "error"
            },
            "left_out": _left_out(check, folder),
            **(_parts(sources, counts) if len(sources) > 1 else {}),
            **(policy.for_record(folder / published["file"]) if policy else {}),
            "staged": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
    staged = from_record(name, folder, record)
    entry = dataset_info.entry(staged.file.name, staged.keys)
    files.write_text_atomically(folder / dataset_info.FILE_NAME, dataset_info.render({name: entry}))
    files.write_json_atomically(folder / RECORD, record)
    _remove_others(folder, _files_of(record))
    return Staging(staged, check.findings, unchanged=False)


def _parts(names: Iterable[str], counts: Sequence[int]) -> dict[str, Any]:
    """How many rows of each file there are, one file after the other (as iisft.data.stage.mixing
    has them).
    """
    pairs = zip(names, counts, strict=True)
    parts = [{"name": name, "rows": count} for name, count in pairs]
    return {"parts": parts, "in_order": True}


def _files_of(record: Mapping[str, Any]) -> set[str | None]:
    return {
        record["file"],
        record["originals"] and record["originals"]["file"],
        (record.get("overlong") or {}).get("report"),
        record["left_out"] and record["left_out"]["report"],
    }


def _originals(folder: Path) -> RowsFile:
    (folder / _ORIGINALS).mkdir(exist_ok=True)
    return RowsFile(folder / _ORIGINALS)


def _require_sound(check: Check, written: RowsFile, policy: Policy | None, drop_bad: bool) -> None:
    objections = policy.findings() if policy else []
    dropping = drop_bad and not check.torn and written.rows
    if (check.findings.errors and not dropping) or objections:
        raise CheckFailed([*check.findings.first_of_each(), *objections])
    if not written.rows:
        where = ", ".join(str(source.file) for source in check.report.sources)
        raise InputError("data-empty", "there is no row in it", where=where)


def _left_out(check: Check, folder: Path) -> dict[str, Any] | None:
    """The rows that --drop-bad left out, counted and listed; None where there are none."""
    if not check.findings.errors:
        return None
    wrong = [one for one in check.findings if one.severity == "error"]
    lines = (json.dumps(one.as_row_json()) for one in wrong)
    files.write_text_atomically(folder / LEFT_OUT, "".join(f"{line}\n" for line in lines))
    return {
        "rows": check.report.rows - check.report.sound,
        "counts": {
            code: group.count
            for code, group in check.findings.groups.items()
            if group.severity == "error"
        },
        "report": LEFT_OUT,
    }


def _remove_others(folder: Path, kept: set[str | None]) -> None:
    """Remove what older stagings wrote and what a killed one left; a file of the user's stays."""
    digest = "[0-9a-f]" * 12
    for pattern in (
        f"rows-{digest}.jsonl",
        f"{_ORIGINALS}/{digest}.jsonl",
        REPORT,
        LEFT_OUT,
        "**/.rows.*.tmp",
    ):
        for path in folder.glob(pattern):
            if str(path.relative_to(folder)) not in kept:
                path.unlink(missing_ok=True)
