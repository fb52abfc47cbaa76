"""What `iisft compare` says of the runs of a sweep."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_compare import rows

from iisft.runs.record.folder import RunFolder, event_line

CLI = Callable[..., Any]


def member(name: str, rank: int, losses: dict[int, float], *, state: str = "finished") -> RunFolder:
    folder = RunFolder(Path(os.environ["IISFT_HOME"]) / "runs" / name)
    folder.predictions.mkdir(parents=True)
    record = {
        "id": name,
        "created": 1.0,
        "preset": {"lora": {"rank": rank, "target": ["q"]}, "train": {"seed": 42}},
        "queue": {"family": "秋 s"},
    }
    folder.record.write_text(json.dumps(record))
    lines = [event_line("metrics", step=step, eval_loss=loss) for step, loss in losses.items()]
    folder.events.write_text("".join(f"{line}\n" for line in lines))
    folder.exit.write_text(json.dumps({"state": state, "preset": "mi50", "step": 40}))
    return folder


def predict(folder: RunFolder, wrong: int, data: str = "val") -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows(i >= wrong for i in range(40)))
    (folder.predictions / f"{data}@final.jsonl").write_text(text)


@pytest.fixture
def family() -> list[RunFolder]:
    """Four runs of three ranks; the last one is not finished and has no evaluation."""
    return [
        member("s-1", 8, {20: 0.9, 40: 0.7}),
        member("s-2", 16, {20: 0.5, 40: 0.8}),
        member("s-3", 32, {40: 0.6}),
        member("s-4", 64, {}, state="failed"),
    ]


def test_evaluation_losses_rank_and_say_that_they_are_no_test(
    iisft: CLI, family: list[RunFolder]
) -> None:
    result = iisft("compare", "秋 s")
    assert result.code == 0, result.err
    table, _, said = result.out.partition("\n\n")
    assert [line.split() for line in table.splitlines()] == [
        ["RUN", "lora.rank", "EVAL", "LOSS", "STEP", "STATE"],
        ["1", "s-2", "16", "0.5000", "20", "finished"],
        ["2", "s-3", "32", "0.6000", "40", "finished"],
        ["3", "s-1", "8", "0.7000", "40", "finished"],
        ["-", "s-4", "64", "-", "-", "failed"],
    ]
    assert said.splitlines() == [
        "s-2 has the lowest evaluation loss, 0.5000 at step 20.",
        "s-3 follows with 0.1000 more: whether that is chance can't be told from the losses alone. "
        "Predict the same rows with each (iisft predict s-2 --data NAME, ...), and compare again "
        "for intervals and tests.",
    ]
    assert "warning: not finished, so ranked by what is there: s-4 failed" in result.err


def test_predictions_rank_with_intervals_and_tests_that_count_each_other(
    iisft: CLI, family: list[RunFolder]
) -> None:
    for folder, wrong in zip(family, (2, 4, 14), strict=False):
        predict(folder, wrong)
    predict(family[0], 0, data="other")  # of which there is nothing to compare
    result = iisft("compare", "秋 s", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["family"], found["figure"], found["best"]) == ("秋 s", "balanced_accuracy", "s-1")
    first, second, third, last = found["runs"]
    assert first == {
        "rank": 1,
        "id": "s-1",
        "state": "finished",
        "values": {"lora.rank": 8},
        "eval_loss": 0.7,
        "eval_step": 40,
        "predictions": "s-1@final",
        "score": pytest.approx(0.95),
        "behind": None,
        "interval": None,
        "p_value": None,
        "chance": None,
    }
    assert [(one["id"], one["chance"]) for one in (second, third)] == [
        ("s-2", True),
        ("s-3", False),
    ]
    # of two tests the smaller p counts twice
    assert third["p_value"] == pytest.approx(2 * 2 / 2**12)
    assert second["p_value"] == pytest.approx(0.5)
    assert third["interval"][0] > 0 > second["interval"][0] - 1e-9
    assert (last["id"], last["rank"], last["score"]) == ("s-4", None, None)
    assert found["sentences"][-1].startswith("p counts all 2 comparisons (Holm)")


def test_of_runs_that_answer_alike_the_one_with_the_lowest_loss_is_named(
    iisft: CLI, family: list[RunFolder]
) -> None:
    for folder in family[:3]:
        predict(folder, 3)
    found = json.loads(iisft("compare", "秋 s", "--json").out)
    assert (found["best"], [one["id"] for one in found["runs"]]) == (
        "s-2",
        ["s-2", "s-3", "s-1", "s-4"],
    )
    assert found["sentences"][0].startswith("s-2@final is best")


def test_a_run_without_predictions_is_said(iisft: CLI, family: list[RunFolder]) -> None:
    for folder in family[:2]:
        predict(folder, 3)
    result = iisft("compare", "秋 s")
    assert "warning: without predictions of val, so not ranked by them: s-3" in result.err
    assert "fix:   iisft predict s-3 --data val" in result.err


def test_nothing_to_rank_by_is_said_and_a_broken_record_is_left_out(iisft: CLI) -> None:
    member("s-1", 8, {})
    member("s-2", 16, {}).record.write_text('{"id": ')
    result = iisft("compare", "秋 s")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1].startswith("nothing to rank them by yet")
    assert "s-2" not in result.out
    assert "fix:   iisft predict s-1 --data NAME" in result.err


def test_the_report_puts_a_sweep_side_by_side(
    iisft: CLI, family: list[RunFolder], tmp_path: Path
) -> None:
    for folder in family[:3]:
        predict(folder, 3)
    page = tmp_path / "page.html"
    result = iisft("report", "--compare", "秋 s", "-o", str(page))
    assert result.code == 0, result.err
    assert page.stat().st_size > 10_000
    listed = iisft("sweep")
    assert [line.split() for line in listed.out.splitlines()] == [
        ["SWEEP", "RUNS"],
        ["秋", "s", "4", "1", "failed,", "3", "finished"],
    ]
