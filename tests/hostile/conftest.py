"""What the attacks share: the runs' tiny model, rows and fake trainer."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "machine"))


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
