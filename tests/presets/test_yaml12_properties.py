"""Properties of the YAML 1.2 reader: JSON is YAML, what is written is read, and text is a value or
one clear error.
"""

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from iisft.errors import InputError
from iisft.presets import yaml12
from iisft.presets.yaml12 import render_yaml
from properties import tried

PRINTABLE = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp"), exclude_characters="\ufeff"),
    max_size=20,
)
# Text that one version of YAML or the other takes for something else.
ODD = "1e-5 1.0e-5 no yes on 012 0o17 0x1f ~ null 1_000 12:30 .5 5. .inf .NaN = << 2026-01-01 - ?"
TEXT = PRINTABLE | st.sampled_from(ODD.split())
FLOATS = st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | TEXT
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(TEXT.filter(bool), TREES, min_size=1, max_size=4)


def strictly(value: Any) -> str:
    """Text that tells 1 from 1.0 and from true."""
    return json.dumps(value)


@tried
@given(MAPPINGS)
def test_what_is_written_is_read(document: dict[str, Any]) -> None:
    values, lines = yaml12.parse(render_yaml(document), where="x")
    assert strictly(values) == strictly(document)
    assert {path for path in lines if len(path) == 1} == {(key,) for key in document}


@tried
@given(TREES.filter(lambda tree: "Infinity" not in json.dumps(tree)))
def test_json_is_yaml(value: Any) -> None:
    assert strictly(yaml12.parse_scalar(json.dumps(value, ensure_ascii=False))) == strictly(value)


@tried
@given(st.text(max_size=40))
def test_any_text_is_a_value_or_one_clear_error(text: str) -> None:
    try:
        value = yaml12.parse_scalar(text)
    except InputError as error:
        assert error.message
    else:
        assert isinstance(value, str | int | float | bool | list | dict | None)


@tried
@given(st.from_regex(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_every_number_of_the_core_schema_is_one(text: str) -> None:
    value = yaml12.parse_scalar(text)
    assert isinstance(value, int | float) and not isinstance(value, bool)
    assert value == float(text) or math.isinf(float(text)) or isinstance(value, int)
