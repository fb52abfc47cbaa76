"""A grid of runs: its points, their check, and their place in the queue."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI, train_argv
from iisft.errors import UsageError
from iisft.runs.queue import entries
from iisft.runs.queue.sweep import points
from iisft.workspace import Workspace

RANKS, RATES = "lora.rank=16,64", "train.learning_rate=1e-5,1e-4"


def values(*overrides: str, **more: Any) -> list[tuple[str, ...]]:
    return [tuple(point.values.values()) for point in points(overrides, "s", **more)]


def test_every_combination_is_a_point_and_single_values_are_in_each() -> None:
    found = points(["train.epochs=1", RANKS, RATES], "秋")
    assert [(point.name, tuple(point.values.items())) for point in found] == [
        ("秋-1", (("lora.rank", "16"), ("train.learning_rate", "1e-5"))),
        ("秋-2", (("lora.rank", "16"), ("train.learning_rate", "1e-4"))),
        ("秋-3", (("lora.rank", "64"), ("train.learning_rate", "1e-5"))),
        ("秋-4", (("lora.rank", "64"), ("train.learning_rate", "1e-4"))),
    ]
    assert found[0].overrides == ("train.epochs=1", "lora.rank=16", "train.learning_rate=1e-5")
    ten = points(["lora.rank=" + ",".join(map(str, range(1, 11)))], "s")
    assert (ten[0].name, ten[9].name) == ("s-01", "s-10")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("lora.target=[q_proj,v_proj],[q_proj]", ["[q_proj,v_proj]", "[q_proj]"]),
        ("lora.target='q_proj,v_proj',all", ["'q_proj,v_proj'", "all"]),
        ('lora.target="q,v", all', ['"q,v"', "all"]),
        ("data.mix={a: 0.7, b: 0.3},{a: 1, b: [2, 'x,]']}",
         ["{a: 0.7, b: 0.3}", "{a: 1, b: [2, 'x,]']}"]),
        ("summary=it's one,it's two", ["it's one", "it's two"]),
    ],
)  # fmt: skip
def test_a_comma_inside_of_a_list_or_quotes_is_no_next_value(
    override: str, parts: list[str]
) -> None:
    assert values(override) == [(part,) for part in parts]


def test_a_variables_commas_are_its_own() -> None:
    found = points(["env.ONLY=0,1", RANKS], "s")
    assert [point.overrides[0] for point in found] == ["env.ONLY=0,1"] * 2


def test_some_are_drawn_the_same_for_a_seed() -> None:
    grid = ("lora.rank=1,2,3,4,5", "lora.alpha=1,2,3,4,5")
    drawn = values(*grid, drawn=6, seed=3)
    assert drawn == values(*grid, drawn=6, seed=3) != values(*grid, drawn=6, seed=4)
    assert len(set(drawn)) == 6 and drawn == sorted(drawn)


@pytest.mark.parametrize(
    ("overrides", "more", "code"),
    [
        (["lora.rank=16"], {}, "sweep-single"),
        (["lora.target=[a,b]"], {}, "sweep-single"),
        ([RANKS, "lora.rank=8"], {}, "sweep-twice"),
        (["lora.rank=16,16"], {}, "sweep-twice"),
        (["lora.rank=16,,64"], {}, "sweep-empty"),
        (["lora.rank"], {}, "set-syntax"),
        ([RANKS], {"drawn": 3}, "sweep-random"),
        ([RANKS], {"drawn": 0}, "sweep-random"),
        (["lora.rank=" + ",".join(map(str, range(300)))], {}, "sweep-size"),
        (["notify=a://b,c://d"], {}, "sweep-key"),
    ],
)
def test_what_is_no_grid(overrides: list[str], more: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as error:
        points(overrides, "s", **more)
    assert error.value.code == code


@pytest.fixture
def sweep(iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]) -> CLI:
    """`iisft sweep` of the family `秋`, on eight staged rows and CPU ranks."""
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    argv = train_argv(model, "--gpus", "1", "--set", "train.accumulation=2", "--name", "秋")
    return lambda *more: iisft("sweep", *argv[1:], *(part for one in more for part in one))


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def test_every_point_is_checked_before_any_is_queued(sweep: CLI, workspace: Path) -> None:
    result = sweep(sets("lora.rank=8,nine", "lora.target=q_proj,nowhere"), ["--json"])
    found = json.loads(result.out)["error"]["findings"]
    errors = [one["message"] for one in found if one["severity"] == "error"]
    assert result.code == 3
    assert errors == [
        "秋-2 (lora.rank=8, lora.target=nowhere): Qwen2ForCausalLM has no module nowhere for "
        "lora.target; it has embed_tokens, q_proj",
        "秋-3, 秋-4: lora.rank is 'nine', but should be a whole number",
    ]
    assert not (workspace / "runs").exists() and not (workspace / "queue").exists()


def test_a_dry_run_shows_the_points_and_queues_nothing(sweep: CLI, workspace: Path) -> None:
    result = sweep(sets(RANKS), ["--dry-run"])
    assert result.code == 0, result.err
    assert [line.split() for line in result.out.splitlines()] == [
        ["RUN", "lora.rank", "FITS", "TAKES"],
        ["秋-1", "16", "yes", "0s"],
        ["秋-2", "64", "yes", "0s"],
    ]
    assert "warning: no evaluation loss will rank these runs" in result.err
    assert not (workspace / "runs").exists()


def test_a_sweep_is_queued_run_and_compared(
    sweep: CLI, iisft: CLI, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EVAL_LAST", "1")
    result = sweep(sets(RANKS), ["--json"])
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["family"], document["queued"]) == ("秋", True)
    assert [one["values"] for one in document["runs"]] == [{"lora.rank": "16"}, {"lora.rank": "64"}]
    for name in ("秋-1", "秋-2"):
        assert iisft("wait", name).code == 0
    found = json.loads(iisft("compare", "秋", "--json").out)
    assert [(one["id"], one["values"], one["eval_loss"]) for one in found["runs"]] == [
        ("秋-1", {"lora.rank": 16}, 0.75),
        ("秋-2", {"lora.rank": 64}, 0.75),
    ]
    taken = sweep(sets(RANKS))
    assert (taken.code, "the name 秋 is taken by 秋-1" in taken.err) == (6, True)


def test_a_sweep_that_can_not_be_queued_whole_is_not_queued(
    sweep: CLI, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(sets(RANKS), ["--dry-run"]).code == 0
    blocked = workspace / "runs" / "秋-2"
    from iisft.runs.queue import changes

    real = changes.add

    def add(plan: Any, *more: Any) -> Any:
        if plan.folder.path == blocked:
            raise OSError(28, "No space left on device")
        return real(plan, *more)

    monkeypatch.setattr(changes, "add", add)
    assert sweep(sets(RANKS)).code == 4
    assert entries.read(Workspace(workspace)).entries == ()
    assert not (workspace / "runs" / "秋-1").exists()
