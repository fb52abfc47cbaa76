"""Which adapter --checkpoint means."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from helpers import CLI
from iisft.errors import IisftError, RunStateError, UsageError
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.selection import choose, choose_one

MakeRun = Callable[..., RunFolder]


def names(folder: RunFolder, wanted: str | None) -> list[str]:
    return [one.which for one in choose(folder, wanted)]


def record_eval_losses(folder: RunFolder, losses: dict[int, float]) -> None:
    for step, loss in losses.items():
        folder.append_event("metrics", step=step, total_steps=40, eval_loss=loss)


def test_a_finished_run_means_its_final_adapter(make_run: MakeRun) -> None:
    folder = make_run()
    assert choose_one(folder, None).adapter == folder.output
    assert (names(folder, None), names(folder, "final"), names(folder, "20")) == (
        ["final"],
        ["final"],
        ["20"],
    )
    assert choose_one(folder, "20").adapter == folder.output / "checkpoint-20"
    assert choose_one(folder, "base").adapter is None


@pytest.mark.parametrize("state", ["stopped", "failed", "lost"])
def test_an_unfinished_run_means_its_newest_complete_checkpoint_and_says_so(
    make_run: MakeRun, state: str
) -> None:
    folder = make_run(state=state, checkpoints=(20, 40, 60))
    (folder.output / "checkpoint-60" / "optimizer.pt").write_text("torn")
    chosen = choose_one(folder, None)
    assert (chosen.which, chosen.reason) == (
        "40",
        f"run is {state}: its newest complete checkpoint-40 is taken",
    )
    with pytest.raises(RunStateError, match="it has no final adapter yet"):
        choose_one(folder, "final")


def test_a_checkpoint_without_its_optimizer_still_answers(make_run: MakeRun) -> None:
    folder = make_run()
    (folder.output / "checkpoint-20" / "optimizer.pt").unlink()
    assert choose_one(folder, "20").step == 20


def test_best_is_the_lowest_evaluation_loss_among_the_kept(make_run: MakeRun) -> None:
    folder = make_run(checkpoints=(20, 40))
    record_eval_losses(folder, {10: 1.0, 20: 1.5, 40: 1.75})
    chosen = choose_one(folder, "best")
    assert chosen.which == "20"
    assert chosen.reason == (
        "checkpoint-20 has the lowest evaluation loss of those kept, 1.5000 "
        "(step 10 had 1.0000, but its checkpoint is gone; save.best keeps it)"
    )


def test_the_best_is_named_where_the_checkpoints_are(make_run: MakeRun, iisft: CLI) -> None:
    folder = make_run(checkpoints=(20, 40, 60))
    record_eval_losses(folder, {20: 1.5, 40: 1.25, 60: 1.25})
    shown = [line for line in iisft("status", "run").out.splitlines() if "checkpoint-" in line]
    assert shown == [
        "checkpoint-20  eval_loss 1.5000",
        "checkpoint-40  eval_loss 1.2500, the best",
        "checkpoint-60  eval_loss 1.2500",
    ]
    waited = iisft("wait", "run").err
    assert "  best: checkpoint-40, eval_loss 1.2500: take it with --checkpoint best\n" in waited
    (folder.output / "checkpoint-40" / "optimizer.pt").write_text("torn")
    saved = json.loads(iisft("status", "run", "--json").out)["checkpoints"]
    assert [one["best"] for one in saved] == [False, False, True]


def test_an_evaluation_that_was_nan_is_never_the_best(make_run: MakeRun) -> None:
    folder = make_run(checkpoints=(20, 40))
    record_eval_losses(folder, {20: 1.5})
    folder.append_event("metrics", step=40, eval_loss="nan")  # as the recorder writes it
    assert names(folder, "best") == ["20"]


def test_all_leaves_out_a_final_adapter_that_is_the_last_checkpoints(make_run: MakeRun) -> None:
    folder = make_run(checkpoints=(20, 40))
    assert names(folder, "all") == ["20", "40"]
    (folder.output / "checkpoint-40").rename(folder.output / "torn-checkpoint-40")
    assert names(folder, "all") == ["20", "final"]


def test_a_torn_adapter_is_never_loaded(make_run: MakeRun) -> None:
    folder = make_run()
    weights = folder.output / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunStateError) as caught:
        choose_one(folder, None)
    assert (caught.value.code, caught.value.fix) == (
        "adapter-torn",
        "another checkpoint: iisft status run",
    )


@pytest.mark.parametrize(
    ("wanted", "state", "checkpoints", "kind", "code"),
    [
        ("30", "finished", (20, 40), RunStateError, "no-such-checkpoint"),
        ("newest", "finished", (20,), UsageError, "checkpoint-word"),
        ("best", "finished", (20,), RunStateError, "no-best"),
        (None, "failed", (), RunStateError, "no-checkpoint"),
        ("all", "failed", (), RunStateError, "no-checkpoint"),
    ],
)
def test_what_is_not_there(
    make_run: MakeRun,
    wanted: str,
    state: str,
    checkpoints: tuple[int, ...],
    kind: type[IisftError],
    code: str,
) -> None:
    with pytest.raises(kind) as caught:
        choose(make_run(state=state, checkpoints=checkpoints), wanted)
    assert caught.value.code == code


def test_the_message_names_what_is_kept(
    iisft: Callable[..., Any], make_run: MakeRun, staged: str
) -> None:
    make_run()
    result = iisft("predict", "run", "--data", staged, "--checkpoint", "30", "--json")
    assert result.code == 6
    assert json.loads(result.out)["error"]["message"] == "run has no checkpoint-30; kept: 20, 40"
