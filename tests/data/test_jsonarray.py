"""Properties of the reader of one JSON array, whatever its windows are."""

import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from iisft.data.read import readers
from iisft.data.read.jsonarray import json_array
from iisft.data.read.rows import Row, Unreadable
from properties import tried

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
INTEGERS = st.integers() | st.integers(2**63, 2**65)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), -float("inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
# Rows of one data set begin with the same key: what the quick way looks for.
ALIKE = st.lists(st.fixed_dictionaries({"instruction": TEXT, "output": TEXT | VALUES}), max_size=6)
ARRAYS = ALIKE | st.lists(VALUES, max_size=6)
WINDOWS = st.integers(1, 40)
LAYOUTS = st.fixed_dictionaries(
    {"indent": st.sampled_from([None, 0, 2, "\t"]), "ensure_ascii": st.booleans()}
)


def read(content: bytes, window: int = readers.CHUNK) -> list[Row]:
    with mock.patch.object(readers, "CHUNK", window):
        return list(json_array(io.BytesIO(content), Path("rows.json")))


def strictly(value: Any) -> str:
    """Text that tells 1 from 1.0 and from true."""
    return json.dumps(value)


@tried
@given(ARRAYS, LAYOUTS, WINDOWS, st.sampled_from(["", " \n", "\r\n\t"]))
def test_every_element_comes_back_with_its_number_and_its_line(
    array: list[Any], layout: dict[str, Any], window: int, space: str
) -> None:
    text = json.dumps(array, **layout)
    rows = read(f"{space}{text}{space}".encode("utf-8-sig"), window)
    assert strictly([row.value for row in rows]) == strictly(array)
    assert [row.number for row in rows] == list(range(1, len(array) + 1))
    if layout["indent"] is not None and all(not isinstance(one, dict | list) for one in array):
        first = 2 + space.count("\n")
        assert [row.line for row in rows] == list(range(first, first + len(array)))
    for row in rows:
        assert row.raw is None or strictly(json.loads(row.raw)) == strictly(row.value)


@tried
@given(ARRAYS, LAYOUTS, WINDOWS, st.data())
def test_of_a_file_cut_short_the_rows_before_the_cut_are_read_and_the_cut_is_told(
    array: list[Any], layout: dict[str, Any], window: int, data: st.DataObject
) -> None:
    content = json.dumps(array, **layout).encode()
    cut = data.draw(st.integers(1, len(content) - 1))
    *whole, last = read(content[:cut], window)
    assert isinstance(last.value, Unreadable)
    told = [row for row in whole if not isinstance(row.value, Unreadable)]
    # A number that is cut is another number: only the element at the cut may differ.
    read_in_full = told[:-1] if len(told) == len(whole) else told
    assert strictly([row.value for row in read_in_full]) == strictly(array[: len(read_in_full)])


@tried
@given(st.binary(max_size=60), WINDOWS)
def test_any_bytes_are_rows_or_one_fault(content: bytes, window: int) -> None:
    rows = read(b"[" + content, window)
    try:
        expected = json.loads(b"[" + content)
    except (ValueError, RecursionError):
        assert isinstance(rows[-1].value, Unreadable)
    else:
        assert strictly([row.value for row in rows]) == strictly(expected)
