"""Rows of a Parquet file, batch by batch. pyarrow is loaded here and nowhere else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iisft.data.read.rows import Row, Unreadable

_BATCH_ROWS = 512


def _without_filling(value: Any, kind: Any) -> Any:
    """The value without null members of its objects.

    All rows of a Parquet column have the members of all: what another row, call or tool has, and
    this one hasn't, `datasets` fills with null. A member that is null everywhere has the type null:
    nobody filled it.
    """
    from pyarrow import types

    if isinstance(value, dict):
        members = ((field, value[field.name]) for field in kind)
        return {
            field.name: _without_filling(member, field.type)
            for field, member in members
            if member is not None or types.is_null(field.type)
        }
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_without_filling(one, kind.value_type) for one in value]
    return value


def parquet_rows(file: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[Row]:
    """Every row as an object; there are no lines.

    A file that is cut short or damaged ends in an Unreadable.
    """
    import pyarrow
    from pyarrow import parquet

    # gives memory back; the others keep what was freed
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    number = 0
    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                if progress:
                    size = file.stat().st_size
                    progress(size * number // max(1, opened.metadata.num_rows), size)
                nested = [
                    (field.name, field.type)
                    for field in batch.schema
                    if pyarrow.types.is_nested(field.type)
                ]
                for value in batch.to_pylist():
                    for name, kind in nested:
                        value[name] = _without_filling(value[name], kind)
                    number += 1
                    yield Row(number, 0, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Row(
            number + 1, 0, Unreadable("row-parquet", f"no whole Parquet file: {reason}", last=True)
        )
