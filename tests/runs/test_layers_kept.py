"""gradient_checkpointing: fit, from the plan to the record, the view, the proof and a restart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI
from iisft.runs.record.folder import RunFolder

LAYERS = 8
OOM = Path(__file__).parents[1] / "llamafactory" / "failures" / "gpu-out-of-memory.log"
FIT = ("--set", "train.gradient_checkpointing=fit")


@pytest.fixture
def sized(model: Path) -> Path:
    """The tiny checkpoint with every size that a plan needs."""
    file = model / "config.json"
    sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 16}
    file.write_text(json.dumps(json.loads(file.read_text()) | sizes))
    return model


@pytest.fixture
def run(train: CLI, sized: Path) -> CLI:
    return train


def kept(folder: RunFolder) -> tuple[int, Any, int | None]:
    """As the record expects it, the view says it and the trainer reported it."""
    record = json.loads(folder.record.read_text())
    view = json.loads((folder.model / "config.json").read_text())
    observed = (record["observed"] or {}).get("layers_kept")
    return record["expected"]["layers_kept"], view.get("iisft_layers_kept"), observed


def test_a_run_keeps_what_fits_and_a_resumed_one_the_same(
    run: CLI, folder: RunFolder, iisft: CLI, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash-at-3")
    assert run(*FIT, "--set", "watch.restarts=0").code == 1
    assert kept(folder) == (LAYERS, LAYERS, LAYERS)
    assert json.loads(folder.record.read_text())["forecast"]["layers_kept"] == LAYERS
    fake_trainer("ok")
    assert iisft("resume", "run").code == 0
    assert kept(folder) == (LAYERS, LAYERS, LAYERS)
    assert f"layers kept {LAYERS}" in " ".join(iisft("status", "run").out.split())


def test_checkpointing_that_keeps_nothing_says_nothing(run: CLI, folder: RunFolder) -> None:
    assert run("--set", "train.gradient_checkpointing=true").code == 0
    assert kept(folder) == (0, None, 0)


def test_other_layers_than_were_planned_are_not_as_preset(
    run: CLI, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LAYERS_KEPT", "3")
    result = run(*FIT)
    assert (
        result.code,
        f"3 layers keep their products, but the run says {LAYERS}" in result.err,
    ) == (
        1,
        True,
    )


@pytest.mark.parametrize(
    ("step", "code", "numbers"), [("2", 0, [(8, 6)]), ("1", 1, [(8, 6), (6, 4)])]
)
def test_without_memory_fewer_layers_are_kept_and_it_is_said(
    step: str,
    code: int,
    numbers: list[tuple[int, int]],
    run: CLI,
    folder: RunFolder,
    fake_trainer: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_LOG_AT", step)  # after a checkpoint at 2 it goes on, at 1 never
    fake_trainer(f"log:{OOM}")
    assert run(*FIT, "--set", "watch.restarts=2").code == code
    assert kept(folder)[:2] == (numbers[-1][1], numbers[-1][1])
    events = folder.read_events()
    said = [event["message"] for event in events if event.get("id") == "fewer-layers-kept"]
    assert said == [
        f"a GPU ran out of memory with the products of {before} layers kept: now {after} keep them"
        for before, after in numbers
    ]


def test_full_recomputation_that_runs_out_of_memory_is_not_started_again(
    run: CLI, folder: RunFolder, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer(f"log:{OOM}")
    assert run("--set", "train.gradient_checkpointing=true").code == 1
    assert not [event for event in folder.read_events() if event.get("state") == "restarting"]


def test_fit_without_known_memory_is_true_and_says_so(
    train: CLI, folder: RunFolder, model: Path
) -> None:
    file = model / "config.json"
    values = json.loads(file.read_text())
    del values["intermediate_size"]
    file.write_text(json.dumps(values))
    result = train(*FIT)
    assert (result.code, kept(folder)[:2]) == (0, (0, None))
    assert "nothing is known about memory: every layer is computed twice" in result.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("llamafactory.use_dft_loss=true",), "llamafactory.use_dft_loss reads them"),
        (("sharding=fsdp", "weights=fp32"), "that is not verified with sharding fsdp"),
    ],
)
def test_what_reads_all_logits_gets_them(
    iisft: CLI, sized: Path, more: tuple[str, ...], said: str
) -> None:
    sets = [part for value in ("train.logits=trained", *more) for part in ("--set", value)]
    sets += ["--set", "train.gradient_checkpointing=true"]
    result = iisft("plan", "-p", "mi50", "--model", str(sized), *sets, "--json")
    texts = [finding["message"] for finding in json.loads(result.out)["findings"]]
    assert f"the logits of all positions are made: {said}" in texts
