"""The demo without a trainer: its rows are unique, disjoint, short enough to be cut nowhere, and
reproducible from their generator; a dry run builds nothing. tests/inference/test_real_models.py
trains it.
"""

import json
import runpy
from pathlib import Path

import pytest

from helpers import CLI
from iisft import demo

ROOT = Path(__file__).parents[1]


def read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_rows_are_unique_and_the_held_out_ones_are_new() -> None:
    train, held_out = read(demo.TRAIN_ROWS), read(demo.EVAL_ROWS)
    inputs = [row["input"] for row in train + held_out]
    assert (len(train), len(held_out), len(set(inputs))) == (240, 32, 272)


def test_every_answer_is_one_line_of_json_and_both_languages_and_decisions_occur() -> None:
    rows = read(demo.TRAIN_ROWS)
    answers = [json.loads(row["output"]) for row in rows]
    kept = sum(answer["keep"] for answer in answers)
    chinese = sum("简报" in row["instruction"] for row in rows)
    assert 90 < kept < 150
    assert 90 < chinese < 150
    assert all(
        set(answer) == ({"keep", "topic", "place"} if answer["keep"] else {"keep"})
        for answer in answers
    )


def test_the_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    generator = runpy.run_path(str(ROOT / "scripts" / "make_demo_data.py"))
    generator["main"].__globals__["FOLDER"] = tmp_path
    generator["main"]()
    for file in (demo.TRAIN_ROWS, demo.EVAL_ROWS):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_dry_run_of_the_demo_builds_nothing(iisft: CLI, workspace: Path) -> None:
    first = iisft("train", "--preset", "demo", "--dry-run")
    assert (first.code, "the model iisft/demo-qwen2 is not there" in first.err) == (3, True)
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize(
    "mistyped",
    [("--set", "train.epoch=1"), ("--nodes", "2", "--rendezvous", "h:99999", "--name", "x")],
)
def test_nothing_is_built_for_what_was_mistyped(
    mistyped: tuple[str, ...], iisft: CLI, workspace: Path
) -> None:
    assert iisft("train", "--preset", "demo", *mistyped).code in (2, 3)
    assert list(workspace.iterdir()) == []
