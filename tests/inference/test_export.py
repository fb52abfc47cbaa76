"""export: the whole folder or nothing."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft import files
from iisft.inference import export as exporting
from iisft.runs.record.folder import RunFolder

CLI = Callable[..., Any]
MakeRun = Callable[..., RunFolder]


def left_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_the_folder_is_complete_and_says_what_it_is(
    iisft: CLI, make_run: MakeRun, tmp_path: Path
) -> None:
    make_run()
    target = tmp_path / "out 导出" / "merged"
    result = iisft("export", "run", "-o", str(target), "--json")
    assert (result.code, json.loads(result.out)) == (
        0,
        {
            "dir": str(target),
            "dtype": "bfloat16",
            "check": {"tokens": 100, "agreement": 1.0, "divergence": 0.001, "effect": 1.0},
        },
    )
    assert left_in(target) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert left_in(target.parent) == ["merged"]
    config = json.loads((target / "config.json").read_text())
    assert config == {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    card = (target / "README.md").read_text(encoding="utf-8")
    for fact in (
        'base_model: "测试/tiny"',
        "`run`, preset `mi50`",
        "LoRA rank 8, alpha 16",
        "100.00% of 100 answer tokens",
    ):
        assert fact in card
    assert target.joinpath("model.safetensors").stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize(
    ("mode", "code", "sentence"),
    [
        ("disk-full", 4, "No space left on device"),
        (
            "differs",
            1,
            "the merged bfloat16 model does not answer as the adapter does: 75.00% of 100 answer "
            "tokens",
        ),
    ],
)
def test_nothing_half_merged_is_left(
    mode: str, code: int, sentence: str, iisft: CLI, make_run: MakeRun, tmp_path: Path, child: Any
) -> None:
    make_run()
    child(mode)
    place = tmp_path / "place"
    place.mkdir()
    result = iisft("export", "run", "-o", str(place / "merged"))
    assert (result.code, sentence in result.err, left_in(place)) == (code, True, []), result.err


def test_a_disk_that_is_full_at_the_last_file_leaves_nothing(
    iisft: CLI, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run()
    place = tmp_path / "place"
    place.mkdir()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "make_durable", full)
    result = iisft("export", "run", "-o", str(place / "merged"), "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"], left_in(place)) == (4, "export-unwritable", [])
    assert (
        error["message"]
        == "the merged model can't be written: No space left on device; nothing was left behind"
    )


def test_too_small_a_disk_is_refused_before_anything_is_merged(
    iisft: CLI, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    usage = exporting.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: usage)
    result = iisft("export", "run", "-o", str(tmp_path / "merged"))
    assert (result.code, "the merged model needs 0.1 GiB, 0.0 GiB are free" in result.err) == (
        4,
        True,
    )
    assert not folder.log_of("export").exists()


def test_what_a_killed_export_left_is_removed_by_the_next(
    iisft: CLI, make_run: MakeRun, tmp_path: Path
) -> None:
    make_run()
    place = tmp_path / "place"
    old = place / ".merged.iisft-export" / "merged"
    old.mkdir(parents=True)
    (old / "model-00001-of-00002.safetensors").write_text("half")
    assert iisft("export", "run", "-o", str(place / "merged")).code == 0
    assert left_in(place) == ["merged"]
    assert "model-00001-of-00002.safetensors" not in left_in(place / "merged")


def test_two_exports_to_one_place(iisft: CLI, make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    work = tmp_path / ".merged.iisft-export"
    work.mkdir()
    with files.exclusive_lock(work / "lock"):
        result = iisft("export", "run", "-o", str(tmp_path / "merged"))
    assert (result.code, "another command is exporting there" in result.err) == (6, True)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--dtype", "int8"), 2, "--dtype is fp32, fp16, bf16, not 'int8'"),
        (("--checkpoint", "base"), 3, "the base model has no adapter to merge"),
        ((), 3, "exists already"),
    ],
)
def test_wrong_usage(
    options: tuple[str, ...],
    code: int,
    sentence: str,
    iisft: CLI,
    make_run: MakeRun,
    tmp_path: Path,
) -> None:
    make_run()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    result = iisft("export", "run", "-o", str(tmp_path / "merged"), *options)
    assert (result.code, sentence in result.err) == (code, True), result.err
    assert left_in(tmp_path / "merged") == ["mine.txt"]


@pytest.mark.parametrize(
    ("divergence", "effect", "sound"),
    [(0.01, 1.0, True), (0.2, 1.0, False), (0.0005, 0.001, True), (float("nan"), 1.0, False)],
)
def test_what_counts_as_the_same_answers(divergence: float, effect: float, sound: bool) -> None:
    assert exporting.Check(100, 1.0, divergence, effect).sound is sound
