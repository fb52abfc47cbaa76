"""Shares are exact, draws repeat nothing unless asked, and a mix is one file in one form."""

import itertools
import json
import os
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import CLI
from iisft.data.stage import mixing, staging
from iisft.data.stage.mixing import Drawn, counts, draw
from iisft.data.stage.staged import StagedDataset
from iisft.errors import InputError
from iisft.workspace import Workspace
from properties import tried

ROWS = st.integers(1, 5000)


@st.composite
def shared(given_to: st.DrawFn) -> tuple[dict[str, int], dict[str, float]]:
    """Datasets of some rows, and shares in thousandths that add up to 1."""
    cuts = given_to(st.lists(st.integers(1, 999), min_size=1, max_size=5, unique=True))
    edges = [0, *sorted(cuts), 1000]
    parts = [high - low for low, high in itertools.pairwise(edges)]
    names = [f"d{number}" for number in range(len(parts))]
    rows = {name: given_to(ROWS) for name in names}
    return rows, {name: part / 1000 for name, part in zip(names, parts, strict=True)}


@tried
@given(shared(), st.booleans())
def test_shares_are_kept_to_within_one_row_and_the_mix_is_as_large_as_they_allow(
    asked: tuple[dict[str, int], dict[str, float]], repeat: bool
) -> None:
    rows, mix = asked
    try:
        found = counts(rows, mix, repeat=repeat)
    except InputError as error:
        assert error.code == "mix-none"
        return
    total = sum(found.values())
    exact = {name: Fraction(repr(share)) * total for name, share in mix.items()}
    assert all(abs(found[name] - exact[name]) < 1 for name in mix)
    # one row more would need a dataset's rows twice, or leave none of the other out
    over = {name: Fraction(repr(share)) * (total + 1) > rows[name] for name, share in mix.items()}
    if repeat:
        assert all(over.values())
    else:
        assert all(found[name] <= rows[name] for name in mix) and any(over.values())


@tried
@given(rows=st.integers(1, 300), count=st.integers(1, 900), seed=st.integers(0, 2**32 - 1))
def test_a_draw_takes_each_row_equally_often_but_for_the_last_pass(
    rows: int, count: int, seed: int
) -> None:
    drawn = draw("a", rows, count, seed)
    often = Counter(drawn)
    assert len(drawn) == count and set(often) <= set(range(rows))
    assert {often[place] for place in range(rows)} <= {count // rows, -(-count // rows)}
    assert drawn == draw("a", rows, count, seed)


def test_numbers_of_rows_are_taken_as_they_are_or_refused_with_what_there_is() -> None:
    rows = {"a": 1000, "b": 100}
    assert counts(rows, None) == rows
    assert counts(rows, {"a": 500, "b": 100}) == {"a": 500, "b": 100}
    assert counts(rows, {"a": 500, "b": 200}, repeat=True) == {"a": 500, "b": 200}
    assert counts(rows, {"a": 0.7, "b": 0.3}) == {"a": 233, "b": 100}
    assert counts(rows, {"a": 0.7, "b": 0.3}, repeat=True) == {"a": 1000, "b": 428}
    with pytest.raises(InputError) as raised:
        counts(rows, {"a": 500, "b": 200})
    assert (raised.value.message, raised.value.fix) == (
        "data.mix asks for more rows than there are: b has 100 of 200",
        "--set 'data.mix={a: 500, b: 100}', or --set data.repeat=true",
    )
    with pytest.raises(InputError, match="there is no row of c to mix"):
        counts({"a": 3, "c": 0}, {"a": 1, "c": 1}, repeat=True)
    with pytest.raises(InputError, match="the mix has no row of b: too small a share of 1,000"):
        counts(rows, {"a": 0.9999, "b": 0.0001})


@pytest.fixture
def staged(iisft: CLI, workspace: Path) -> list[StagedDataset]:
    """Alpaca rows with a system text, and messages."""
    alpaca = [
        {"instruction": f"问 {i}", "input": "", "output": f"答 {i}", "system": "简短" * (i % 2)}
        for i in range(30)
    ]
    chat = [
        {"messages": [{"role": "user", "content": f"ask {i}"},
                      {"role": "assistant", "content": f"say {i}"}]}
        for i in range(10)
    ]  # fmt: skip
    for name, rows in (("问答", alpaca), ("chat", chat)):
        file = workspace / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert iisft("data", "stage", str(file), "--name", name).code == 0
    return [staging.load(name, Workspace.current()) for name in ("问答", "chat")]


def asked_in(dataset: StagedDataset) -> list[tuple[str, str]]:
    """Question and system text of each row of messages."""
    rows = [orjson.loads(line) for line in dataset.file.read_bytes().splitlines()]
    assert {tuple(row) for row in rows} == {("messages", "system", "tools")}
    return [(row["messages"][0]["content"], row["system"]) for row in rows]


def test_alpaca_rows_and_messages_become_one_file_in_the_seeds_order(
    staged: list[StagedDataset],
) -> None:
    drawn = [Drawn(part, 5) for part in staged]
    mix = mixing.mixed("mix", drawn, 42)
    assert (mix.rows, mix.keys) == (10, ("messages", "system", "tools"))
    rows = asked_in(mix)
    kinds = "".join("a" if question.startswith("问") else "b" for question, _ in rows)
    assert (kinds.count("a"), len(set(rows))) == (5, 10)
    assert "aaaaa" not in kinds and "bbbbb" not in kinds
    own = [int(question.split()[1]) for question, _ in rows if question.startswith("问")]
    assert [system for question, system in rows if question.startswith("问")] == [
        "简短" * (number % 2) for number in own
    ]
    written = mix.file.stat().st_mtime_ns
    assert mixing.mixed("mix", drawn, 42).file.stat().st_mtime_ns == written, "found again"
    other = mixing.mixed("mix", drawn, 43)
    assert sorted(asked_in(other)) != sorted(rows)
    mix.file.write_bytes(mix.file.read_bytes()[:-9])
    assert asked_in(mixing.mixed("mix", drawn, 42)) == rows, "a torn one is written again"


def test_mixes_that_are_planned_together_are_kept_together(staged: list[StagedDataset]) -> None:
    """A sweep plans every run, and then makes their folders."""
    drawn = [Drawn(part, 5) for part in staged]
    first = [mixing.mixed("mix", drawn, seed) for seed in range(12)]
    assert all(mix.file.exists() for mix in first)
    for mix in first:
        os.utime(mix.folder, (0, 0))
    assert mixing.mixed("mix", drawn, 3).file == first[3].file, "and is in use again"
    mixing.mixed("mix", drawn, 12)
    assert [mix.file.exists() for mix in first].count(True) <= 8 and first[3].file.exists()


def test_the_mix_of_all_rows_knows_where_each_comes_from(staged: list[StagedDataset]) -> None:
    whole = mixing.whole(staged)
    sources = mixing.Sources(whole)
    found = [sources.of(number) for number in range(1, whole.rows + 2)]
    assert found == ["问答"] * 30 + ["chat"] * 10 + [None]
    assert [question for question, _ in asked_in(whole)] == [
        *(f"问 {i}" for i in range(30)),
        *(f"ask {i}" for i in range(10)),
    ]
    assert mixing.whole(staged[:1]) is staged[0]


def test_rows_drawn_without_the_column_that_the_dataset_has_are_written_without_it(
    staged: list[StagedDataset],
) -> None:
    """A column of which a chunk holds nothing has no type for the trainer's reader."""
    twice = [Drawn(staged[0], 1), Drawn(staged[0], 1)]
    seed = next(seed for seed in range(99) if draw("问答", 30, 1, seed)[0] % 2 == 0)
    mix = mixing.mixed("mix", twice, seed)
    assert mix.keys == ("instruction", "input", "output")
    assert {tuple(orjson.loads(line)) for line in mix.file.open("rb")} == {mix.keys}


def test_files_and_datasets_are_staged_as_one(
    iisft: CLI, workspace: Path, staged: list[StagedDataset]
) -> None:
    more = workspace / "more rows.csv"
    more.write_text("instruction,output\nx,y\n,z\n")
    argv = ("data", "stage", "chat", str(more), "问答", "--name", "all", "--drop-bad")
    result = iisft(*argv)
    assert result.code == 0, result.err
    assert "all: 41 rows in " in result.out
    assert "  10 of chat\n  1 of more rows\n  30 of 问答\n" in result.out
    found: dict[str, Any] = json.loads(iisft(*argv, "--json").out)
    assert found["unchanged"] and [part["rows"] for part in found["parts"]] == [10, 1, 30]
    rows = asked_in(staging.load("all", Workspace.current()))
    assert [rows[index][0] for index in (0, 10, 11)] == ["ask 0", "x", "问 0"]
    wrong = iisft("data", "stage", "chat", str(more), "--name", "two")
    assert (wrong.code, f"{more}:3" in wrong.err) == (3, True)
