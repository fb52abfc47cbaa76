"""A staged dataset as it lies under data/NAME: its record and its rows."""

import contextlib
import difflib
import itertools
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from iisft import files
from iisft.data.read.conversation import from_row
from iisft.data.read.source import digest_of
from iisft.errors import InputError, UsageError
from iisft.workspace import Workspace

RECORD = "staged.json"


@dataclass(frozen=True, slots=True)
class StagedDataset:
    """A dataset under data/NAME: `rows` rows with these `keys` in `file`, and the sha256 of the
    file.

    The keys are Alpaca's, or messages, system and tools. `record` is all of staged.json.
    """

    name: str
    folder: Path
    file: Path
    rows: int
    sha256: str
    keys: tuple[str, ...]
    source: str
    record: dict[str, Any] = field(repr=False)


def remove(name: str, workspace: Workspace) -> None:
    """Delete one of staged_names(). Runs keep their rows: they have links of their own.

    Raises:
        InputError: it can't be deleted.
    """
    folder = workspace.data / name
    try:
        if folder.is_symlink():  # what it points to is somebody else's
            folder.unlink()
            return
        hidden = folder.with_name(f".removed-{name}-{time.time_ns()}")
        folder.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        text = f"{name} can't be deleted: {error.strerror}"
        raise InputError("data-not-removed", text, where=str(folder)) from error


def load(name: str, workspace: Workspace) -> StagedDataset:
    """The staged dataset `name`.

    Raises:
        InputError: it isn't staged, its record is broken, or its rows are not those that were
        staged.
    """
    folder = workspace.data / name
    record = files.read_json_object(folder / RECORD)
    again = f"iisft data stage FILE --name {name}"
    if record is None:
        near = difflib.get_close_matches(name, staged_names(workspace), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            "data-missing", f"no staged dataset {name!r}{hint}", where=str(folder), fix=again
        )
    try:
        staged = from_record(name, folder, record)
        stat = staged.file.stat()
        untouched = (stat.st_size, stat.st_mtime_ns) == (record["size"], record["mtime_ns"])
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        text = f"the staged dataset is incomplete: {error}"
        raise InputError("data-torn", text, where=str(folder), fix=again) from error
    if not untouched and digest_of(staged.file) != staged.sha256:
        text = "the rows were changed after they were checked"
        raise InputError("data-changed", text, where=str(staged.file), fix=again)
    return staged


def from_record(name: str, folder: Path, record: dict[str, Any]) -> StagedDataset:
    """The dataset that a record describes.

    Raises:
        KeyError, TypeError, ValueError: the record is not whole.
    """
    if not isinstance(record["file"], str) or Path(record["file"]).name != record["file"]:
        raise ValueError("it names a file of another folder")
    return StagedDataset(
        name,
        folder,
        folder / record["file"],
        int(record["rows"]),
        record["sha256"],
        tuple(record["keys"]),
        record["source"],
        record,
    )


def staged_names(workspace: Workspace) -> list[str]:
    """Names of all staged datasets."""
    return sorted(path.parent.name for path in workspace.data.glob(f"*/{RECORD}"))


def row_of(staged: StagedDataset, number: int) -> dict[str, Any]:
    """The staged row with this number, from 1.

    Raises:
        UsageError: there is no such row.
    """
    if not 1 <= number <= staged.rows:
        raise UsageError("data-row", f"{staged.name} has rows 1 to {staged.rows}, not {number}")
    with files.open_regular(staged.file) as stream:
        row: dict[str, Any] = orjson.loads(next(itertools.islice(stream, number - 1, None)))
    return row


def has_tools(file: Path) -> bool:
    """Whether a staged row has tools, which are written as the text of a JSON list."""
    with contextlib.suppress(OSError), files.open_regular(file) as stream:
        return any(
            b'"tools":"[' in line and b'"tools":"[]"' not in line for line in files.lines_of(stream)
        )
    return False


def other_thoughts(file: Path, words: tuple[str, str]) -> int:
    """Staged rows whose answers have a thought in another form than a template's words.

    LLaMA-Factory looks for the very words, and takes such a thought for a part of the answer.
    """
    bare = [word.strip() for word in words]
    found = 0
    with contextlib.suppress(OSError), files.open_regular(file) as stream:
        for line in files.lines_of(stream):
            if not any(word.encode() in line for word in bare):
                continue
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found += any(
                    message.content.count(short) != message.content.count(word)
                    for message in from_row(orjson.loads(line)).messages
                    if message.role in ("assistant", "function_call")
                    for short, word in zip(bare, words, strict=True)
                )
    return found
