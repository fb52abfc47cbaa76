"""What the attacks share: the runs' tiny model, rows and fake trainer."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / folder) for folder in ("machine", "models", "inference")]


def _conftest(folder: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"conftest_of_{folder}", TESTS / folder / "conftest.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_RUNS = _conftest("runs")
model, rows, fake_trainer = _RUNS.model, _RUNS.rows, _RUNS.fake_trainer
hub = _conftest("models").hub
_INFERENCE = _conftest("inference")
make_run, staged = _INFERENCE.make_run, _INFERENCE.staged
