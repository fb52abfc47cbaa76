"""BLEU and ROUGE are LLaMA-Factory's to the last digit; the libraries load nothing that trains."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.evaluation.similarity import Scorer, TextSample

CLI = Callable[..., Any]
CHILD = Path(__file__).with_name("similarity_of_llamafactory.py")
PAIRS = [
    ("The cat sat on the mat.", "A cat sat on a mat."),
    ("中国外交部发言人周五表示。会谈将继续！", "外交部发言人表示，会谈会继续。结果未知。"),
    ('{"keep": true, "topic": "energy", "place": "Lima"}', '{"keep": true, "topic": "transport"}'),
    ("same", "same"),
    ("short", ""),
    ("...... 。", "。"),
    ("mixed 中文 and English 文本, twice", "English 文本 and mixed 中文"),
    ("a b c d e f g " * 30, "a b d c e f g " * 25),
]


@pytest.mark.slow
def test_the_figures_are_llamafactorys(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(PAIRS), encoding="utf-8")
    python = os.environ.get("IISFT_PYTHON") or sys.executable
    done = subprocess.run(
        [python, str(CHILD), str(file)], capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    scorer = Scorer()
    ours = [scorer.score(reference, prediction) for reference, prediction in PAIRS]
    for own, other in zip(ours, theirs, strict=True):
        found = {
            "rouge-1": own["rouge1"],
            "rouge-2": own["rouge2"],
            "rouge-l": own["rougel"],
            "bleu-4": own["bleu4"],
        }
        assert {name: round(100 * value, 4) for name, value in found.items()} == other


def test_a_sample_is_the_same_rows_for_every_system_and_time() -> None:
    def chosen(names: list[str]) -> list[list[int]]:
        sample = TextSample(5)
        for row in range(100):
            sample.add(row, "reference", dict.fromkeys(names, "prediction"))
        return [[row for row, _, _ in sample.chosen(name)] for name in names]

    one, other = chosen(["model", "copy"])
    assert one == other and len(one) == 5
    assert chosen(["model"]) == [one]


@pytest.mark.parametrize(
    ("module", "argv", "command"),
    [
        ("rouge_chinese", ["--text-rows", "all"], "pip install rouge-chinese "),
        ("jsonschema", ["--schema", "x.json"], "pip install jsonschema "),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    iisft: CLI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    argv: list[str],
    command: str,
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"reference": "a text", "prediction": "some text"}\n' * 2)
    monkeypatch.setitem(sys.modules, module, None)
    result = iisft("evaluate", str(file), *argv)
    assert (result.code, command in result.err) == (4, True)


def test_text_figures_that_nobody_asked_for_are_left_out_and_said(
    iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"reference": "a text", "prediction": "some text"}\n' * 2)
    monkeypatch.setitem(sys.modules, "jieba", None)
    result = iisft("evaluate", str(file))
    assert (result.code, "exact match" in result.out) == (0, True)
    assert "BLEU, ROUGE and chrF are left out: a text metric needs jieba" in result.err
    assert "pip install jieba" in result.err
