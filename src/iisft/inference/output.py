"""A file of predictions and the record beside it: rows are appended as they finish.

Each line is one JSON object: `row` (number in the staged data, from 1), `prompt`, `reference` (null
if there is none), `prediction`, `prompt_tokens`, `tokens` (generated), `stop` ("eos" or "length"),
`error` (null or text), and `source` where the data is of several datasets. Until all rows are there
they are in the order in which they finished, afterwards in that of the data.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files, json_values
from iisft.errors import EnvironmentFault, RunStateError

Row = dict[str, Any]
# Settings that make answers comparable row by row.
_SAME = ("data_sha256", "generation", "model", "adapter_sha256", "backend")


@dataclass(frozen=True, slots=True)
class Predictions:
    """One file of predictions, RUN/predictions/DATA@WHICH.jsonl."""

    path: Path

    @property
    def record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def read_record(self) -> dict[str, Any]:
        return files.read_json_object(self.record_path) or {}

    def rows(self) -> Iterator[Row]:
        """Every complete row; half-written lines are skipped."""
        try:
            stream = files.open_regular(self.path)
        except FileNotFoundError:
            return
        with stream:
            for line in files.lines_of(stream):
                with contextlib.suppress(ValueError):
                    row = json_values.parse_json(line)
                    if isinstance(row, dict) and type(row.get("row")) is int:
                        yield row

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other command from writing here.

        Raises:
            RunStateError: another one does.
            EnvironmentFault: the folder can't be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.parent.mkdir(exist_ok=True)
                stack.enter_context(
                    files.exclusive_lock(self.path.with_name(f".{self.path.name}.lock"))
                )
            except BlockingIOError:
                text = "another command is writing these predictions"
                raise RunStateError("predicting-already", text, where=str(self.path)) from None
            except OSError as error:
                raise unwritable(self.path, error) from error
            yield

    def begin(self, about: Mapping[str, Any], *, restart: bool) -> set[int]:
        """Prepare the file to be continued: keep the rows that are there, except failed ones.

        Args:
            about: the record; its settings must be those of the rows that are there.
            restart: throw those rows away.

        Raises:
            RunStateError: they were made with other settings.
            EnvironmentFault: the disk is full or read-only.
        """
        before = self.read_record()
        kept = {} if restart else {row["row"]: row for row in self.rows() if not row.get("error")}
        changed = [key for key in _SAME if before.get(key) != about.get(key)]
        if kept and changed:
            told = "; ".join(
                f"{key}: {before.get(key)} there, {about.get(key)} now" for key in changed
            )
            text = f"there are {len(kept)} predictions made with other settings ({told})"
            raise RunStateError(
                "predictions-differ",
                text,
                where=str(self.path),
                fix="--from-start replaces them; or move them away",
            )
        started = before.get("started") if kept else None
        with self._writing():
            # rows before the record: a kill in between leaves rows that the old record still fits
            self._rewrite(kept.values())
            files.write_json_atomically(
                self.record_path,
                dict(about) | ({"started": started} if started else {}) | {"ended": None},
            )
        return set(kept)

    def note(self, **facts: Any) -> None:
        """Add facts to the record.

        Raises:
            EnvironmentFault: the disk is full.
        """
        with self._writing():
            files.write_json_atomically(self.record_path, self.read_record() | facts)

    def append(self, rows: list[Row]) -> None:
        """Append finished rows and sync them, all or none.

        Raises:
            EnvironmentFault: the disk is full.
        """
        with self._writing():
            files.append_line(
                self.path,
                "\n".join(map(json_values.json_text, rows)),
                durably=True,
            )

    def finish(self) -> list[Row]:
        """Sort the rows by number, record that they are complete, and return them.

        Raises:
            EnvironmentFault: the disk is full; all rows are still there.
        """
        rows = sorted(self.rows(), key=lambda row: int(row["row"]))
        with self._writing():
            self._rewrite(rows)
            files.write_json_atomically(
                self.record_path, self.read_record() | {"rows": len(rows), "ended": time.time()}
            )
        return rows

    def _rewrite(self, rows: Iterable[Row]) -> None:
        with files.atomic_writer(self.path) as stream:
            for row in rows:
                stream.write(json_values.json_text(row).encode() + b"\n")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.path, error) from error


def unwritable(path: Path, error: OSError) -> EnvironmentFault:
    fix = "free some space; the same command continues after the last row written"
    return EnvironmentFault(
        "predictions-unwritable",
        f"predictions can't be written: {os.strerror(error.errno or 0)}",
        where=str(path),
        fix=fix,
    )
