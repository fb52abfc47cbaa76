"""A few cases of benchmarks/audit.py, which compares hundreds of random presets with what
LLaMA-Factory's parser and the built model say.
"""

import importlib.util
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[2] / "benchmarks" / "audit.py"


@pytest.mark.slow
def test_no_random_preset_differs_without_a_word(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    assert spec and spec.loader
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    ended, silent = audit.audit(range(1000, 1012), tmp_path)
    assert silent == []
    assert ended["compared"] >= 6
    assert ended.total() == 12
