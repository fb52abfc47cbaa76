"""The report's file: what it holds, how large it may be, and what it does with what is missing."""

import base64
import gzip
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from iisft.cli.evaluate import NAMES
from iisft.evaluation import similarity
from iisft.report.series import series_of
from iisft.runs.record.folder import RunFolder

from .conftest import EVIL, make_run

CLI = Callable[..., Any]


def content(file: Path) -> dict[str, Any]:
    """The data that lie compressed in a report."""
    packed = re.search(
        rb'<script type="application/gzip" id="data">([A-Za-z0-9+/=]*)</script>', file.read_bytes()
    )
    assert packed is not None
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return found


def test_a_report_holds_the_run_its_evaluation_and_its_predictions(
    iisft: CLI, run: RunFolder, tmp_path: Path
) -> None:
    file = tmp_path / "报告 1.html"
    result = iisft("report", run.id, "-o", str(file), "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["file"], document["bytes"], document["rows_shown"]) == (
        str(file),
        file.stat().st_size,
        24,
    )
    found = content(file)
    [facts] = [each["facts"] for each in found["runs"]]
    assert (facts["id"], facts["state"], facts["restarts"], facts["gpus"]) == (
        run.id,
        "finished",
        1,
        ["gfx906"] * 2,
    )
    assert {
        "name": "arithmetic",
        "expected": "float32",
        "observed": "float32",
        "differs": False,
    } in facts["proof"]
    values = {each["key"]: each for each in facts["preset"]}
    assert (values["train.epochs"]["value"], values["train.epochs"]["changed"]) == (3, True)
    assert values["train.learning_rate"]["changed"] is False
    assert values["train.learning_rate"]["meaning"]
    [answers] = found["answers"]
    assert [each["name"] for each in answers["sets"]] == [f"{run.id}@20", f"{run.id}@final"]
    final = answers["sets"][1]
    assert (final["label"], final["counts"]["generation_errors"]) == ("keep", 1)
    assert final["baselines"]["base model"]["accuracy"] == 0
    words = [final["answers"][str(place)][1] for place in range(24)]
    assert words == [["wrong"]] * 4 + [["right"]] * 18 + [["error"], ["wrong", "invalid_json"]]
    assert final["sentences"]["zh"][0][1].startswith("24 行中有 1 行（4.2 %）生成出错")
    [compared] = found["comparisons"]
    assert compared["best"] == f"{run.id}@final"


def test_curves_are_one_line_and_what_happened_stands_on_their_axis(run: RunFolder) -> None:
    found = series_of(run)
    assert found["step"] == list(range(1, 41))
    assert (found["loss"][0], found["loss"][29], found["loss"][20]) == (3.2, None, 0.3429)
    assert (found["eval"]["step"], found["eval"]["loss"]) == ([20], [0.61])
    assert "tokens_per_s" not in found and found["vram_allocated_gib"] == [19.5] * 40
    marks = [(mark["kind"], mark["step"]) for mark in found["marks"]]
    assert marks == [
        ("checkpoint", 20),
        ("restarting", 25),
        ("resumed", 20),
        ("nan", 30),
        ("finding", 33),
    ]


def test_nothing_of_the_data_is_markup(iisft: CLI, run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    assert iisft("report", run.id, "-o", str(file)).code == 0
    text = file.read_text(encoding="utf-8")
    assert "owned" not in text
    assert EVIL in json.dumps(content(file), ensure_ascii=False).replace('\\"', '"')
    assert "default-src 'none'; script-src 'sha256-" in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_runs_are_set_side_by_side(iisft: CLI, run: RunFolder, tmp_path: Path) -> None:
    make_run("other", {"final": 12})
    file = tmp_path / "both.html"
    result = iisft("report", "--compare", run.id, "other", "-o", str(file))
    assert result.code == 0, result.err
    found = content(file)
    assert [each["facts"]["id"] for each in found["runs"]] == [run.id, "other"]
    assert [each["name"] for each in found["answers"][0]["sets"]] == [
        f"{run.id}@final",
        "other@final",
    ]
    assert found["comparisons"][0]["best"] == f"{run.id}@final"
    assert iisft("report", run.id, "other").code == 2
    assert iisft("report", "--compare", run.id).code == 2


def test_a_run_that_has_not_predicted_and_one_that_is_broken_are_reported_too(
    iisft: CLI, tmp_path: Path
) -> None:
    bare = make_run("bare", {})
    file = tmp_path / "bare.html"
    result = iisft("report", "bare", "-o", str(file))
    assert (result.code, content(file)["answers"]) == (0, [])
    assert "no predictions yet: iisft predict bare --data NAME" in result.err
    bare.record.write_text("{")
    bare.events.unlink()
    assert iisft("report", "bare", "-o", str(file)).code == 0
    assert content(file)["runs"][0]["series"]["step"] == []


def test_broken_predictions_are_a_finding_and_not_the_end(
    iisft: CLI, run: RunFolder, tmp_path: Path
) -> None:
    (run.path / "predictions" / "情报 val@20.jsonl").write_text("{broken\n{}\n")
    file = tmp_path / "r.html"
    result = iisft("report", run.id, "-o", str(file))
    assert result.code == 0
    assert "@20: " in result.err
    assert [each["name"] for each in content(file)["answers"][0]["sets"]] == [f"{run.id}@final"]


def test_every_figure_has_a_name_in_the_terminal_and_in_the_report() -> None:
    page = resources.files("iisft") / "report" / "assets"
    script = (page / "evaluation.js").read_text(encoding="utf-8")
    words = (page / "words.js").read_text(encoding="utf-8")
    listed = re.search(r"^const FIGURES = (\[.*\]);$", script, re.MULTILINE)
    assert listed is not None
    assert json.loads(listed[1]) == list(NAMES)
    assert set(similarity.FIGURES) < set(NAMES)
    assert [name for name in NAMES if f"\n  {name}: [" not in words] == []


def test_a_report_that_can_not_be_written_says_so(
    iisft: CLI, run: RunFolder, tmp_path: Path
) -> None:
    result = iisft("report", run.id, "-o", str(tmp_path / "nowhere" / "r.html"), "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (4, "output-unwritable")


@pytest.mark.slow
def test_of_many_long_predictions_as_many_are_shown_as_fit(
    iisft: CLI, run: RunFolder, tmp_path: Path
) -> None:
    file = run.path / "predictions" / "long@final.jsonl"
    noise = __import__("random").Random(1)
    with file.open("w", encoding="utf-8") as stream:
        for row in range(1500):
            text = noise.randbytes(6000).hex()
            stream.write(
                json.dumps({"row": row, "prompt": text, "reference": "a", "prediction": "a"}) + "\n"
            )
    report = tmp_path / "r.html"
    result = iisft("report", run.id, "--data", "long", "-o", str(report), "--json")
    assert report.stat().st_size < 10_000_000
    shown = json.loads(result.out)["rows_shown"]
    assert 100 < shown <= 1000
    assert content(report)["answers"][0]["sets"][0]["counts"]["rows"] == 1500
