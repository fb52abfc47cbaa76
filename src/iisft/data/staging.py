"""Staging: a checked copy of a dataset under data/NAME with its own dataset_info.json and the digest of its rows.

Covered: Alpaca rows in a JSON array or JSON lines. Not covered here: other formats, token lengths.
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import CheckFailed, Finding, InputError, TransferError, UsageError
from iisft.llamafactory import datasets
from iisft.workspace import Workspace

RECORD = "staged.json"
ROWS = "rows.jsonl"
_NAME = re.compile(r"\w[\w.-]{0,99}")  # LLaMA-Factory separates dataset names by commas
_TEXT_KEYS = ("instruction", "input", "output", "system")
_SHOWN_FINDINGS = 50
_TURN_BYTES = 32  # what a template puts around one turn of a history


@dataclass(frozen=True, slots=True)
class StagedDataset:
    """A dataset under data/NAME: `rows` Alpaca rows with these `keys`, and the sha256 of their file.

    `longest_row_bytes` is the UTF-8 size of the longest row's texts, prompt and answer together.
    """

    name: str
    folder: Path
    rows: int
    sha256: str
    keys: tuple[str, ...]
    source: str
    longest_row_bytes: int

    @property
    def file(self) -> Path:
        return self.folder / ROWS


def stage(source: Path, name: str, workspace: Workspace) -> StagedDataset:
    """Check every row of `source` and copy it to data/NAME, replacing an older staging of that name.

    Raises:
        UsageError: the name can't be used.
        InputError: the file is missing, empty or no Alpaca JSON.
        CheckFailed: rows are wrong; each finding has its row number and field.
        TransferError: the copy can't be written.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("data-name", f"a dataset name has letters, digits, '.', '_' and '-', not {name!r}")
    findings: list[Finding] = []
    rows = []
    for number, where, row in _read_rows(source):
        problems = list(_row_problems(row))
        findings += [Finding(code, f"row {number}: {field}: {text}", where=where) for field, code, text in problems]
        if not problems:
            rows.append(row)
    if findings:
        raise CheckFailed(findings[:_SHOWN_FINDINGS] + _rest(findings))
    if not rows:
        raise InputError("data-empty", "there is no row in it", where=str(source))
    keys = tuple(
        key
        for key in (*_TEXT_KEYS, "history")
        if key in ("instruction", "input", "output") or any(row.get(key) for row in rows)
    )
    return _write(source, name, workspace, rows, keys)


def load(name: str, workspace: Workspace) -> StagedDataset:
    """The staged dataset `name`.

    Raises:
        InputError: it isn't staged, its record is broken, or its rows are not those that were staged.
    """
    folder = workspace.data / name
    record = files.read_json_object(folder / RECORD)
    if record is None:
        near = difflib.get_close_matches(name, staged_names(workspace), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            "data-missing",
            f"no staged dataset {name!r}{hint}",
            where=str(folder),
            fix=f"iisft data stage FILE --name {name}",
        )
    try:
        staged = StagedDataset(
            name,
            folder,
            int(record["rows"]),
            record["sha256"],
            tuple(record["keys"]),
            record["source"],
            int(record["longest_row_bytes"]),
        )
        stat = staged.file.stat()
        untouched = (stat.st_size, stat.st_mtime_ns) == (record["size"], record["mtime_ns"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            "data-torn",
            f"the staged dataset is incomplete: {error}",
            where=str(folder),
            fix=f"iisft data stage FILE --name {name}",
        ) from error
    if not untouched and _sha256(staged.file) != staged.sha256:
        raise InputError(
            "data-changed",
            "the rows were changed after they were checked",
            where=str(staged.file),
            fix=f"iisft data stage FILE --name {name}",
        )
    return staged


def staged_names(workspace: Workspace) -> list[str]:
    """Names of all staged datasets."""
    return sorted(path.parent.name for path in workspace.data.glob(f"*/{RECORD}"))


def link_into(folder: Path, staged: list[StagedDataset]) -> None:
    """Make `folder` the dataset_dir of a run: hard links to the rows (copies where links can't be made)."""
    entries = {}
    for dataset in staged:
        target = folder / f"{dataset.name}.jsonl"
        try:
            os.link(dataset.file, target)
        except OSError:
            shutil.copy2(dataset.file, target)
        entries[dataset.name] = datasets.entry(target.name, dataset.keys)
    files.write_text_atomically(folder / datasets.FILE_NAME, datasets.render(entries))


def _read_rows(source: Path) -> Iterator[tuple[int, str, Any]]:
    """Row number (from 1), place, and row."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "data-encoding",
            "not UTF-8 text",
            where=str(source),
            fix=f"iconv -f GB18030 -t UTF-8 {source} > utf8.json",
        ) from error
    except OSError as error:
        raise InputError("data-unreadable", f"can't be read: {error.strerror}", where=str(source)) from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise InputError("data-json", f"no valid JSON: {error}", where=str(source)) from error
        yield from ((number, str(source), row) for number, row in enumerate(rows, 1))
        return
    number = 0
    for line_number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            number += 1
            try:
                yield number, f"{source}:{line_number}", json.loads(line)
            except ValueError as error:
                raise InputError("data-json", f"no valid JSON: {error}", where=f"{source}:{line_number}") from error


def _row_problems(row: Any) -> Iterator[tuple[str, str, str]]:
    """Field, code and sentence of everything that keeps one row from being trained on as it stands."""
    if not isinstance(row, dict):
        yield "row", "row-no-object", f"an object is expected, not {type(row).__name__}"
        return
    for key in ("instruction", "output"):
        if row.get(key) is None:
            yield key, "field-missing", "missing or null (LLaMA-Factory would drop or garble the row)"
    for key in _TEXT_KEYS:
        value = row.get(key)
        if isinstance(value, str) and not value.isprintable() and _is_unencodable(value):
            yield key, "field-encoding", "half of a surrogate pair, which no file can hold"
        if value is not None and not isinstance(value, str):
            yield key, "field-type", f"text is expected, not {type(value).__name__}: {str(value)[:40]}"
    if row.get("output") == "":
        yield "output", "answer-empty", "an empty answer trains on the end-of-turn alone"
    history = row.get("history") or []
    if not (isinstance(history, list) and all(_is_turn(turn) for turn in history)):
        yield "history", "history-shape", "a list of [question, answer] texts is expected"


def _is_unencodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def _rest(findings: list[Finding]) -> list[Finding]:
    hidden = len(findings) - _SHOWN_FINDINGS
    return [Finding("data-more", f"and {hidden} more rows with faults")] if hidden > 0 else []


def _write(
    source: Path, name: str, workspace: Workspace, rows: list[dict[str, Any]], keys: tuple[str, ...]
) -> StagedDataset:
    folder = workspace.data / name
    empty: dict[str, Any] = {"history": []}
    longest = max(_text_bytes(row) for row in rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_writer(folder / ROWS) as stream:
            for row in rows:
                kept = {key: row.get(key) or empty.get(key, "") for key in keys}
                stream.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
        stat = (folder / ROWS).stat()
        digest = _sha256(folder / ROWS)
        files.write_text_atomically(folder / datasets.FILE_NAME, datasets.render({name: datasets.entry(ROWS, keys)}))
        record = {
            "rows": len(rows),
            "sha256": digest,
            "keys": list(keys),
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "source": str(source.absolute()),
            "longest_row_bytes": longest,
            "staged": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        files.write_json_atomically(folder / RECORD, record)
    except OSError as error:
        raise TransferError("stage-write", f"can't be written: {error.strerror}", where=str(folder)) from error
    return StagedDataset(name, folder, len(rows), digest, keys, str(source.absolute()), longest)


def _text_bytes(row: dict[str, Any]) -> int:
    turns = [text for turn in row.get("history") or [] for text in turn]
    texts = sum(len(text.encode()) for text in (*(row.get(key) or "" for key in _TEXT_KEYS), *turns))
    return texts + _TURN_BYTES * len(turns)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
