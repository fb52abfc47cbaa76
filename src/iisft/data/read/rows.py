"""One row of a data file as every step after the readers sees it."""

from typing import Any, NamedTuple


class Unreadable(NamedTuple):
    """What a reader yields in place of a row that it can't read.

    `last` says that nothing after it can be read either (a broken array, a file that is cut short).
    """

    code: str
    message: str
    excerpt: str = ""
    fix: str = ""
    last: bool = False


class Row(NamedTuple):
    """`number` counts rows from 1, `line` is the line of the file in which the row begins (0 where
    there are no lines).

    `value` is the parsed object as it stands in the file, whatever its type, or Unreadable. `raw`
    are the row's own bytes of JSON where the reader has them, else None. `source` is the place of
    its file among several, from 0.
    """

    number: int
    line: int
    value: Any
    raw: bytes | None = None
    source: int = 0
