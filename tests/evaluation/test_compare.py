"""What `iisft compare` says of predictions for the same rows."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from iisft.runs.record.folder import RunFolder, event_line

CLI = Callable[..., Any]
Write = Callable[..., Path]


def rows(right: Iterable[bool]) -> list[dict[str, Any]]:
    """Every other reference is no; a wrong answer is the other one."""
    found = []
    for i, is_right in enumerate(right):
        reference = ("yes", "no")[i % 2]
        found.append(
            {
                "row": i,
                "prompt": f"p{i}",
                "reference": reference,
                "prediction": reference if is_right else "?",
            }
        )
    return found


@pytest.fixture
def run() -> RunFolder:
    """A run with two checkpoints that have predicted, and losses that say the contrary of the
    answers.
    """
    folder = RunFolder(Path(os.environ["IISFT_HOME"]) / "runs" / "跑 1")
    (folder.path / "predictions").mkdir(parents=True)
    folder.record.write_text(json.dumps({"id": "跑 1", "preset_name": "mi50", "created": 1.0}))
    events = [
        event_line("metrics", step=s, total_steps=40, loss=4 / s, eval_loss=None)
        for s in range(1, 41)
    ]
    events += [
        event_line("metrics", step=20, eval_loss=0.9),
        event_line("metrics", step=40, eval_loss=0.5),
    ]
    folder.events.write_text("\n".join(events) + "\n")
    for checkpoint, wrong in (("20", 2), ("final", 14), ("base", 40)):
        text = "".join(json.dumps(row) + "\n" for row in rows(i >= wrong for i in range(40)))
        (folder.path / "predictions" / f"val@{checkpoint}.jsonl").write_text(text)
    return folder


def test_the_best_checkpoint_is_named_with_its_reason(iisft: CLI, run: RunFolder) -> None:
    result = iisft("compare", "跑 1", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["figure"], found["best"], found["rows"]) == ("balanced_accuracy", "跑 1@20", 40)
    assert [each["name"] for each in found["compared"]] == ["跑 1@base", "跑 1@20", "跑 1@final"]
    losses = [
        (each["step"], round(each["train_loss"], 3), each["eval_loss"])
        for each in found["compared"][1:]
    ]
    assert losses == [(20, 0.268, 0.9), (40, 0.113, 0.5)]
    of_base, pair = found["pairs"]
    assert (of_base["other"], of_base["only_other_right"]) == ("跑 1@base", 0)
    assert pair["difference"] == pytest.approx(0.3)
    assert pair["interval"][0] > 0.15
    assert (pair["only_best_right"], pair["rows_only_best_right"], pair["only_other_right"]) == (
        12,
        [*range(2, 14)],
        0,
    )
    assert pair["p_value"] == pytest.approx(2 / 2**12)
    assert (
        found["sentences"][0]
        == "跑 1@20 is best: Balanced accuracy 95.0 % on the 40 rows that all of them generated."
    )
    assert "The lowest evaluation loss (0.5000) is that of 跑 1@final" in found["sentences"][-1]


def test_the_newest_run_and_its_base_model_are_evaluated(iisft: CLI, run: RunFolder) -> None:
    found = json.loads(iisft("evaluate", "--json").out)
    assert (found["run"], found["checkpoint"], found["data"]) == ("跑 1", "final", "val")
    assert found["baselines"]["base model"]["accuracy"] == 0
    assert json.loads(iisft("evaluate", "跑 1@20", "--json").out)["metrics"]["accuracy"] == 0.95


def test_predictions_that_are_not_there_are_asked_for(iisft: CLI, run: RunFolder) -> None:
    result = iisft("evaluate", "跑 1@30", "--data", "val")
    assert result.code == 6
    assert (
        "跑 1 has no predictions of val by 30; there are val@base, val@20, val@final" in result.err
    )
    assert "iisft predict 跑 1 --checkpoint 30 --data val" in result.err
    result = iisft("evaluate", "跑 2")
    assert (result.code, "did you mean 跑 1?" in result.err) == (6, True)


def test_predictions_that_are_not_all_there_are_said_to_be_so(iisft: CLI, run: RunFolder) -> None:
    record = run.predictions / "val@20.json"
    for facts, said in (
        ('{"ended": null}', ["predict-unfinished"]),
        ('{"ended": 5.0}', []),
        ('{"end', []),
    ):
        record.write_text(facts)
        for command in (["evaluate", "跑 1@20"], ["compare", "跑 1"]):
            found = json.loads(iisft(*command, "--json").out)
            assert [finding["id"] for finding in found["findings"]] == said
    record.write_text('{"ended": null}')
    reported = iisft("report", "跑 1", "-o", str(run.path / "r.html"))
    assert "fix:   iisft predict 跑 1 --checkpoint 20 --data val" in reported.err


def test_equal_ones_are_a_tie_of_the_earlier(iisft: CLI, run: RunFolder) -> None:
    folder = run.path / "predictions"
    (folder / "val@final.jsonl").write_bytes((folder / "val@20.jsonl").read_bytes())
    found = json.loads(iisft("compare", "跑 1@final", "跑 1@20", "--json").out)
    assert found["best"] == "跑 1@20"
    assert "the earliest step is named" in found["sentences"][1]
    assert found["pairs"][0]["p_value"] == 1.0


def test_files_are_compared_and_rows_that_one_lacks_left_out(iisft: CLI, write: Write) -> None:
    one, other = rows([True] * 30), rows([True] * 20 + [False] * 10)
    other[3] |= {"prediction": "", "error": "timeout"}
    result = iisft(
        "compare", str(write(one, "a.jsonl")), str(write(other[:28], "b.jsonl")), "--json"
    )
    found = json.loads(result.out)
    assert (found["best"], found["rows"]) == ("a.jsonl", 27)
    assert [finding["id"] for finding in found["findings"]] == ["rows-left-out"]


def test_text_is_compared_by_rouge_and_json_by_its_fields(iisft: CLI, write: Write) -> None:
    texts = [
        {"reference": f"the {i} birds fly over a town", "prediction": f"the {i} birds fly"}
        for i in range(30)
    ]
    better = [row | {"prediction": row["reference"]} for row in texts]
    found = json.loads(
        iisft("compare", str(write(texts, "a.jsonl")), str(write(better, "b.jsonl")), "--json").out
    )
    assert (found["figure"], found["best"]) == ("rougel", "b.jsonl")
    assert found["pairs"][0]["test"] == "paired permutation test"
    answers = [
        {"reference": json.dumps({"a": i, "b": i}), "prediction": json.dumps({"a": i, "b": 0})}
        for i in range(30)
    ]
    worse = [row | {"prediction": "{}"} for row in answers]
    found = json.loads(
        iisft("compare", str(write(answers, "c.jsonl")), str(write(worse, "d.jsonl")), "--json").out
    )
    assert (found["figure"], found["best"]) == ("fields_right", "c.jsonl")
    assert found["pairs"][0]["difference"] == pytest.approx(31 / 60)


def test_other_rows_and_too_few_files_are_refused(iisft: CLI, write: Write) -> None:
    one = write(rows([True] * 6), "a.jsonl")
    strange = write([row | {"reference": "other"} for row in rows([True] * 6)], "b.jsonl")
    result = iisft("compare", str(one), str(strange), "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (3, "other-rows")
    assert iisft("compare", str(one), str(one)).code == 2
    assert iisft("compare", str(one)).code == 2
