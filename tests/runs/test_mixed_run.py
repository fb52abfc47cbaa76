"""A run on several datasets: one file with exact shares, recorded, counted and proven; its
predictions and figures by the dataset that a row comes from.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI, train_argv
from iisft.runs.record.folder import RunFolder

TRAINED = "问答~chat~"


@pytest.fixture
def sources(iisft: CLI, workspace: Path) -> dict[str, Path]:
    """Alpaca rows and messages, staged, and two sets to evaluate."""
    files = {}
    for name, count in (("问答", 30), ("val_a", 3)):
        rows: list[Any] = [
            {"instruction": f"问 {i}", "input": "", "output": f"答 {i}"} for i in range(count)
        ]
        files[name] = write(workspace, name, rows)
    for name, count in (("chat", 20), ("val_b", 2)):
        rows = [
            {"messages": [{"role": "user", "content": f"ask {i} " + "word " * (i == 7) * 90},
                          {"role": "assistant", "content": f"say {i}"}]}
            for i in range(count)
        ]  # fmt: skip
        files[name] = write(workspace, name, rows)
    for name, file in files.items():
        assert iisft("data", "stage", str(file), "--name", name).code == 0
    return files


def write(workspace: Path, name: str, rows: list[Any]) -> Path:
    file = workspace / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


@pytest.fixture
def train(
    iisft: CLI, model: Path, sources: dict[str, Path], fake_trainer: Callable[..., None]
) -> CLI:
    def run(*sets: str, more: tuple[str, ...] = ()) -> Any:
        values = ("data.name=[问答, chat]", "train.accumulation=2", "train.cutoff_len=600", *sets)
        options = [part for value in values for part in ("--set", value)]
        argv = train_argv(model, "--gpus", "1", "--name", "run", data="")
        argv = [word for word in argv if word not in ("--data", "")]
        return iisft(*argv, *options, *more)

    return run


def rows_of(file: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()]


def test_a_run_trains_on_the_mix_and_records_of_what_it_is(
    iisft: CLI, train: CLI, folder: RunFolder
) -> None:
    result = train("data.mix={问答: 0.75, chat: 0.25}", "data.eval=[val_a, val_b]",
                   "save.eval_every_steps=50")  # fmt: skip
    assert result.code == 0, result.err
    said = "40 rows are trained: 30 of 30 rows of 问答 (75.00 %), 10 of 20 rows of chat (25.00 %)"
    assert said in result.err
    assert "5 rows are evaluated: 3 of 3 rows of val_a (60.00 %), 2 of 2 rows" in result.err
    record = json.loads(folder.record.read_text())
    arguments = (record["train_yaml"]["dataset"], record["train_yaml"]["eval_dataset"])
    assert arguments == (TRAINED, "val_a+val_b")
    file = folder.dataset / f"{TRAINED}.jsonl"
    rows = rows_of(file)
    assert Counter(text.split()[0] for text in rows) == {"问": 30, "ask": 10}
    assert len(set(rows)) == record["expected"]["rows"] == record["observed"]["rows"] == 40
    trained, evaluated = record["data"]
    assert (trained["name"], trained["rows"]) == (TRAINED, 40)
    assert trained["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    parts = [(one["name"], one["rows"], one["of"]) for one in trained["parts"]]
    assert parts == [("问答", 30, 30), ("chat", 10, 20)]
    assert all(len(one["sha256"]) == 64 for one in trained["parts"])
    assert [one["name"] for one in evaluated["parts"]] == ["val_a", "val_b"]
    again = json.loads(train("data.mix={问答: 0.75, chat: 0.25}", more=(
        "--name", "again", "--dry-run", "--json")).out)  # fmt: skip
    assert [(one["name"], one["rows"], one["share"]) for one in again["data"]] == [
        ("问答", 30, 0.75),
        ("chat", 10, 0.25),
    ]
    assert all(one["tokens"] > one["rows"] for one in again["data"])


def test_a_changed_row_of_the_mix_is_drift_and_a_new_staging_of_a_source_is_not(
    iisft: CLI, train: CLI, folder: RunFolder, sources: dict[str, Path],
    fake_trainer: Callable[..., None],
) -> None:  # fmt: skip
    fake_trainer("crash-at-3")
    assert train("watch.restarts=0").code == 1
    fake_trainer("ok")
    sources["chat"].write_text(sources["chat"].read_text().replace("say", "tell"))
    assert iisft("data", "stage", str(sources["chat"]), "--name", "chat").code == 0
    file = folder.dataset / "问答+chat.jsonl"
    kept = file.read_bytes()
    file.unlink()
    file.write_bytes(kept.replace(b"say 1", b"say 2"))
    refused = iisft("resume", "run")
    assert (refused.code, "the rows of 问答+chat have changed" in refused.err) == (6, True)
    file.write_bytes(kept)
    assert iisft("resume", "run").code == 0
    assert train(more=("--name", "other")).code == 0
    told = iisft("runs", "diff", "run", "other").out
    assert "data.0.parts.1.sha256" in told and "data.0.parts.0.sha256" not in told


def test_a_finding_names_the_source_and_its_line(train: CLI, workspace: Path) -> None:
    short = "train.cutoff_len=300"
    refused = train(short, "data.overlong=fail", more=("--dry-run",))
    assert refused.code == 3
    assert "1 of 20 rows of chat are longer than cutoff_len 300" in refused.err
    assert "rows of 问答 are longer" not in refused.err
    fitted = train(short, "data.overlong=fit")
    assert fitted.code == 0, fitted.err
    assert "1 of 20 rows of chat are longer than cutoff_len 300: 1 shortened" in fitted.err
    dataset = RunFolder(workspace / "runs" / "run").dataset
    report = [json.loads(line) for line in (dataset / "chat.overlong-report.jsonl").open()]
    assert [(entry["row"], entry["what"]) for entry in report] == [(8, "shortened")]
    assert sum("[... truncated ...]" in text for text in rows_of(dataset / "问答+chat.jsonl")) == 1


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("data.mix={问答: 31, chat: 5}",),
         "data.mix asks for more rows than there are: 问答 has 30 of 31"),
        (("data.mix={问答: 0.7, chat: 0.2}",), "the shares of data.mix add up to 0.9, not to 1"),
        (("data.mix={问答: 0.5000001, chat: 0.5}",), "add up to 1 + 1e-07, not to 1"),
        (("data.mix={问答: 0.999999, chat: 0.000001}",),
         "a larger share, or --set 'data.mix={问答: 30, chat: 1}'"),
        (("data.mix={问答: 1000000000, chat: 5}", "data.repeat=true"),
         "the mix would have 1,000,000,005 rows, of 50 that there are"),
        (("data.mix={问答: 0.999999999, chat: 0.000000001}", "data.repeat=true"),
         "the mix would have 20,000,000,000 rows"),
        (("train.cutoff_len=16", "data.overlong=drop"), "no row of 问答 is left"),
        (("train.cutoff_len=16", "data.overlong=drop", "data.mix={问答: 2, chat: 2}",
          "data.repeat=true"), "no row of chat is left"),
        (("data.mix={问答: 0.7, chat: 5}",), "has shares (0.7) and numbers of rows (500)"),
        (("data.mix={问答: 5}",), "don't name the same datasets: chat is in one of them"),
        (("data.mix={问答: 1.5, chat: 2}",),
         "data.mix.问答 is 1.5, but should be at most 1 or a whole number"),
        (("data.name=[问答, 问答]",), "data.name names 问答 twice"),
        (("data.name=[问答, chet]",), "no staged dataset 'chet'; did you mean chat?"),
        (("data.repeat=true",), "data.repeat has no effect without data.mix"),
    ],
)  # fmt: skip
def test_what_can_not_be_mixed_is_refused_with_the_reason(
    train: CLI, sets: tuple[str, ...], said: str
) -> None:
    refused = train(*sets, more=("--dry-run",))
    assert (refused.code, said in refused.err) == (3, True), refused.err


def test_an_empty_mix_is_none(train: CLI) -> None:
    done = train("data.mix={}", more=("--dry-run",))
    assert (done.code, "50 rows are trained: 30 of 30 rows of 问答" in done.err) == (0, True)


def test_a_script_and_the_plan_tell_what_is_mixed(
    iisft: CLI, train: CLI, model: Path, tmp_path: Path
) -> None:
    refused = train(more=("--script", str(tmp_path / "train.sh")))
    assert (refused.code, "iisft data stage '问答' chat --name NAME" in refused.err) == (3, True)
    shown = iisft("plan", "-p", "mi50", "--model", str(model), "--data", "问答,chat")
    assert "training: 30 of 30 rows of 问答 (60.00 %), about " in shown.out, shown.err


def test_a_mix_is_rehearsed_with_rows_of_it(
    iisft: CLI, model: Path, sources: dict[str, Path], fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("ok", STEPS="7")
    values = ("train.accumulation=2", "train.cutoff_len=600", "data.mix={问答: 8, chat: 20}",
              "data.eval=[val_a, 问答]", "save.eval_every_steps=50")  # fmt: skip
    argv = ["rehearse", *train_argv(model, data="问答,chat")[1:], "--gpus", "1", "--json"]
    done = iisft(*argv, *(part for value in values for part in ("--set", value)))
    document = json.loads(done.out)
    assert (done.code, document["ok"], document["prediction"]) == (0, True, True), done.err
