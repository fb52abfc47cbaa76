"""What a run trains on: rows as staged where they fit, else fitted anew for this run, or refused.

All of it said.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import target_options, train_argv
from iisft.data.stage import staging
from iisft.data.stage.bodies import MARKER
from iisft.data.tokens.tokenization import Tokenization
from iisft.runs.plan import datasets
from iisft.runs.plan.datasets import RunDataset
from iisft.runs.record.folder import RunFolder
from iisft.runs.supervise import drift
from iisft.workspace import Workspace

CLI = Callable[..., Any]
LONG = [2, 5]


@pytest.fixture
def rows(workspace: Path) -> Path:
    """Eight rows, two of them with about 400 bytes of body."""
    lines = [
        {
            "instruction": f"say {i}",
            "input": "word " * (80 if i in LONG else 4),
            "output": f"number {i}",
        }
        for i in range(8)
    ]
    file = workspace / "rows 行.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def train(iisft: CLI, model: Path, fake_trainer: Callable[..., None]) -> Callable[..., Any]:
    def run(*more: str, cutoff: int = 300, policy: str = "fit") -> Any:
        values = [f"train.cutoff_len={cutoff}", f"data.overlong={policy}"]
        options = [part for value in values for part in ("--set", value)]
        argv = train_argv(model, "--gpus", "1", "--name", "r")
        return iisft(*argv, *options, *more)

    return run


def stage(iisft: CLI, rows: Path, model: Path, *more: str, cutoff: int = 300) -> Any:
    return iisft(
        "data", "stage", str(rows), "--name", "rows", *target_options(model, cutoff), *more
    )


def trained_on(workspace: Path) -> list[dict[str, Any]]:
    text = (workspace / "runs" / "r" / "dataset" / "rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def shortened(workspace: Path) -> list[int]:
    return [index for index, row in enumerate(trained_on(workspace)) if MARKER in row["input"]]


def test_rows_that_were_never_fitted_are_fitted_for_the_run(
    iisft: CLI, train: CLI, rows: Path, model: Path, workspace: Path
) -> None:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    result = train()
    assert result.code == 0, result.err
    assert (
        "2 of 8 rows of rows are longer than cutoff_len 300: 2 shortened in this run's own copy"
        in result.err
    )
    assert shortened(workspace) == LONG
    (data,) = json.loads((workspace / "runs" / "r" / "run.json").read_text())["data"]
    assert (data["rows"], data["fitted"]["shortened"], data["fitted"]["cutoff_len"]) == (8, 2, 300)
    report = (
        (workspace / "runs" / "r" / "dataset" / "rows.overlong-report.jsonl")
        .read_text()
        .splitlines()
    )
    assert [json.loads(line)["row"] for line in report] == [3, 6]
    assert MARKER not in rows.read_text()
    run = RunFolder(workspace / "runs" / "r")
    assert not [
        sentence for sentence in drift.differences(run, run.whole_record()) if "rows" in sentence
    ]
    fitted = run.dataset / "rows.jsonl"
    fitted.write_text(fitted.read_text().replace("number 1", "number 9"))
    assert "the rows of rows have changed" in " ".join(drift.differences(run, run.whole_record()))


def test_rows_fitted_for_this_very_target_are_taken_as_they_are(
    iisft: CLI, train: CLI, rows: Path, model: Path, workspace: Path
) -> None:
    assert stage(iisft, rows, model, "--overlong", "fit").code == 0
    result = train(policy="fail")
    assert (
        result.code == 0 and "refitted" not in result.err and "staged for another" not in result.err
    )
    (staged,) = (workspace / "data" / "rows").glob("rows-*.jsonl")
    assert staged.samefile(workspace / "runs" / "r" / "dataset" / "rows.jsonl")
    assert shortened(workspace) == LONG


def test_rows_fitted_for_a_shorter_limit_are_taken_from_the_originals(
    iisft: CLI, train: CLI, rows: Path, model: Path, workspace: Path
) -> None:
    assert stage(iisft, rows, model, "--overlong", "fit").code == 0
    result = train(cutoff=2000)
    assert result.code == 0 and "rows was staged for another cutoff_len" in result.err
    assert [row["input"] for row in trained_on(workspace)] == [
        json.loads(line)["input"] for line in rows.read_text().splitlines()
    ]


def test_another_tokenizer_is_another_target(
    iisft: CLI, train: CLI, rows: Path, model: Path, workspace: Path
) -> None:
    assert stage(iisft, rows, model, "--overlong", "fit").code == 0
    (model / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"})
    )
    result = train()
    assert result.code == 0 and "rows was staged for another tokenizer" in result.err
    assert shortened(workspace) == LONG


def test_drop_leaves_rows_out_and_the_run_expects_fewer(
    iisft: CLI, train: CLI, rows: Path, model: Path, workspace: Path
) -> None:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    result = train(policy="drop")
    assert result.code == 0 and "2 left out in this run's own copy" in result.err
    assert len(trained_on(workspace)) == 6
    assert json.loads((workspace / "runs" / "r" / "run.json").read_text())["expected"]["rows"] == 6


def test_the_presets_policy_wins_over_that_of_the_staging(
    iisft: CLI, train: CLI, rows: Path, model: Path, workspace: Path
) -> None:
    assert stage(iisft, rows, model, "--overlong", "drop").code == 0
    result = train(policy="fit")
    assert result.code == 0 and "rows was staged for another policy" in result.err
    assert shortened(workspace) == LONG


def test_a_policy_that_leaves_no_row_is_refused(iisft: CLI, train: CLI, rows: Path) -> None:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    result = train(policy="drop", cutoff=20)
    assert (result.code, "no row of rows is left" in result.err) == (3, True)


def test_damaged_rows_are_refused_before_anything_is_made(
    iisft: CLI, train: CLI, rows: Path, model: Path, workspace: Path
) -> None:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    result = train(policy="fail")
    assert result.code == 3
    assert (
        "2 of 8 rows of rows are longer than cutoff_len 300 and would be damaged: 2 lose the end"
        in result.err
    )
    assert "--set data.overlong=fit" in result.err and not (workspace / "runs").exists()
    assert train("--detach", policy="allow").code == 0


def test_rows_that_can_not_be_fitted_stop_the_run(
    iisft: CLI, train: CLI, rows: Path, workspace: Path
) -> None:
    with rows.open("a") as stream:
        stream.write(json.dumps({"instruction": "q", "input": "", "output": "answer " * 60}) + "\n")
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    result = train()
    assert (result.code, "row 9 can't be shortened enough" in result.err) == (3, True)
    assert "left out" not in result.err  # nothing is: the run is refused
    assert not (workspace / "runs").exists()


def test_counts_are_remembered_and_a_changed_file_is_counted_anew(
    iisft: CLI, train: CLI, rows: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    assert train("--dry-run", cutoff=310).code == 0
    with monkeypatch.context() as patched:
        patched.delattr(Tokenization, "lengths")
        assert train("--dry-run", cutoff=310).code == 0
    with rows.open("a") as stream:
        stream.write(
            json.dumps({"instruction": "new", "input": "word " * 90, "output": "x"}) + "\n"
        )
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    assert "3 of 9 rows" in train("--dry-run", cutoff=310).err


def test_a_torn_cache_is_taken_for_none(
    iisft: CLI, train: CLI, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    train("--dry-run", cutoff=320)  # which builds the model as well, and remembers that
    told = train("--dry-run", cutoff=320).err
    assert "2 of 8 rows of rows are longer than cutoff_len 320: 2 shortened" in told
    kept = [
        path
        for kind in ("tokens", "surveys", "fits")
        for path in (tmp_path / "iisft" / kind).iterdir()
    ]
    for damage in (
        lambda content: b"",
        lambda content: content[:-3],
        lambda content: b"\x00" * len(content),
    ):
        for path in kept:
            path.write_bytes(damage(path.read_bytes()))
        assert train("--dry-run", cutoff=320).err == told


def test_a_template_that_llamafactory_does_not_have_is_an_error(
    iisft: CLI, train: CLI, rows: Path
) -> None:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    result = train("--set", "model.template=qwem", "--dry-run")
    assert result.code == 3
    assert "LLaMA-Factory 0.9.5 has no template 'qwem'; did you mean qwen?" in result.err


def test_a_script_is_not_written_for_rows_that_would_be_fitted(
    iisft: CLI, train: CLI, rows: Path, tmp_path: Path
) -> None:
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    result = train("--script", str(tmp_path / "train.sh"))
    assert (result.code, "stage them for this preset" in result.err) == (3, True)


def test_a_run_gets_links_and_a_register_of_its_own(
    iisft: CLI, rows: Path, workspace: Path, tmp_path: Path
) -> None:
    for name in ("训练", "eval"):
        assert iisft("data", "stage", str(rows), "--name", name).code == 0
    staged = [staging.load(name, Workspace.current()) for name in ("训练", "eval")]
    written = datasets.write_into(
        tmp_path, [RunDataset(s.name, s.file, s.rows, s.sha256, s.keys, "") for s in staged]
    )
    assert [dataset.sha256 for dataset in written] == [s.sha256 for s in staged]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dataset_info.json",
        "eval.jsonl",
        "训练.jsonl",
    ]
    assert (tmp_path / "训练.jsonl").samefile(staged[0].file)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert {name: entry["file_name"] for name, entry in info.items()} == {
        "训练": "训练.jsonl",
        "eval": "eval.jsonl",
    }
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:5]))
    assert iisft("data", "stage", str(rows), "--name", "训练").code == 0
    # a later staging does not reach the run
    assert len((tmp_path / "训练.jsonl").read_text().splitlines()) == 8
