"""What trackers are told of a run, by stand-ins of their packages."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from iisft.runs.record.folder import RunFolder

TAGS = ["preset:mi50", "model:测试/tiny qwen2", "template:qwen", "data:数据"]


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The child's file, without transformers."""
    base = ModuleType("transformers.trainer_callback")
    base.TrainerCallback = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, "transformers.trainer_callback", base)
    yield importlib.import_module("iisft.child.trackers_iisft")
    del sys.modules["iisft.child.trackers_iisft"]


def test_each_tracker_learns_what_the_run_is_and_none_ends_it(
    train: Callable[..., Any],
    folder: RunFolder,
    trackers: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train().code == 0
    record = json.loads(folder.record.read_text())
    record["forecast"] |= {"peak_gib": 1.5, "total_h": None, "tokens_per_step": 640}
    folder.record.write_text(json.dumps(record))
    told: list[Any] = []

    def tell(**given: Any) -> None:
        told.append(given)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no network")

    packages = {
        "swanlab": {"init": tell},
        "wandb": {
            "run": SimpleNamespace(tags=("mine",)),
            "config": SimpleNamespace(update=lambda values, **_: tell(**values)),
        },
        "mlflow": {"set_tags": lambda tags: tell(**tags), "log_params": broken},
    }
    for name, content in packages.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    callback = trackers.Introduce()
    args = SimpleNamespace(
        report_to=["mlflow", "swanlab", "wandb"], output_dir=folder.output, run_name="run"
    )
    state = SimpleNamespace(is_world_process_zero=True, max_steps=4)
    for event in (callback.on_train_begin, callback.on_step_begin, callback.on_step_begin):
        event(args, state, None)
    plain = {word.partition(":")[0]: word.partition(":")[2] for word in TAGS}
    plain["model"] = record["preset"]["model"]["id"]
    figures = {
        "planned_peak_gib": 1.5, "planned_tokens_per_step": 640, "planned_global_batch": 2,
        "steps": 4,
    }  # fmt: skip
    begun, tagged, configured = told
    assert begun["config"] == configured == {"iisft": plain | figures}
    assert tagged == {f"iisft.{name}": value for name, value in plain.items()}
    words = begun["tags"]
    assert sys.modules["wandb"].run.tags == ("mine", *words)
    assert [*words[:1], *words[2:]] == [*TAGS[:1], *TAGS[2:]] and len(words[1]) <= 64
    assert (begun["experiment_name"], begun["project"]) == ("run", None)
    assert capsys.readouterr().err == "iisft: mlflow was not told what this run is: no network\n"


def test_without_a_record_nothing_is_told(trackers: ModuleType, tmp_path: Path) -> None:
    """A script that trains without iisft, or a torn file."""
    assert trackers.about_run(tmp_path / "run.json", 4) == {}
    (tmp_path / "run.json").write_text('{"preset": {"data"')
    assert trackers.about_run(tmp_path / "run.json", 4) == {}


def test_tensorboard_has_one_place_for_all_lives_of_a_run(
    iisft: Callable[..., Any], model: Path, fake_trainer: Callable[..., None]
) -> None:
    argv = ("train", "-p", "mi50", "--model", str(model), "--name", "run", "--json", "--dry-run")
    places = []
    for track in ("tensorboard", "mlflow"):
        plan = json.loads(iisft(*argv, "--set", f"track=[{track}]").out)
        places.append(plan["env"].get("TENSORBOARD_LOGGING_DIR"))
    assert [place and Path(place).parts[-2:] for place in places] == [("run", "tensorboard"), None]
