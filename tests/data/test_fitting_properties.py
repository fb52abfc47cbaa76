"""Properties of fitting: it keeps the limit, and changes one stretch of one text."""

import json
from pathlib import Path
from typing import Any

import pytest
from generated import qwen_like
from hypothesis import given
from hypothesis import strategies as st

from iisft.data.read.conversation import from_row
from iisft.data.stage.bodies import MARKER
from iisft.data.stage.fitting import Cut, Fitter, apply
from iisft.data.tokens.limit import Limit
from iisft.data.tokens.tokenization import Tokenization
from properties import tried

WORDS = st.sampled_from(
    ["word", "情报", "。", "\n", "\n\n", "https://example.com/a1b2", "- key: v", "{}", "😀", " "]
)
BODIES = st.builds(
    lambda words, times: " ".join(words * times), st.lists(WORDS), st.integers(1, 60)
)
ALPACA = st.fixed_dictionaries(
    {"instruction": BODIES, "input": BODIES, "output": BODIES},
    optional={"history": st.lists(st.tuples(BODIES, BODIES).map(list), max_size=2)},
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenization:
    folder: Path = tmp_path_factory.mktemp("fit") / "模型"
    return Tokenization(qwen_like(folder), "qwen", {})


@tried
@given(ALPACA, st.integers(40, 400))
def test_a_fitted_row_keeps_the_limit_and_all_but_one_stretch_of_one_question(
    tokens: Tokenization, row: dict[str, Any], cutoff: int
) -> None:
    limit = Limit(tokens, cutoff, {})

    def total(one: dict[str, Any]) -> int:
        return limit.total(tokens.lengths([from_row(one)])[0])

    before = json.dumps(row)
    if total(row) <= limit.room:
        return
    cut = Fitter(limit, from_row).fit(row)
    assert json.dumps(row) == before
    if cut is None:
        return
    fitted = apply(row, Cut.from_json(json.loads(json.dumps(cut.as_json()))))
    assert total(fitted) == cut.tokens_after <= limit.room < cut.tokens_before == total(row)
    assert fitted["output"] == row["output"]
    *way, last = cut.path
    old, new = row, fitted
    for step in way:
        old, new = old[step], new[step]  # type: ignore[index]
    text = old[last]
    assert new[last] == text[: cut.start] + cut.marker + text[cut.start + cut.characters :]
    assert cut.marker.strip() == MARKER
    new[last] = text  # and nothing else differs
    assert fitted == row
