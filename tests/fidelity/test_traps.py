"""Each trap of exact float32 arithmetic, sprung on purpose.

The checks themselves are in traps.py.
"""

import json
import re
from importlib import resources
from pathlib import Path

import pytest
from harness import HERE, run_python

pytestmark = pytest.mark.slow

NAMES = re.findall(
    r"^def (check_\w+)", (HERE / "traps.py").read_text(encoding="utf-8"), flags=re.MULTILINE
)


@pytest.fixture(scope="module")
def report(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("traps")
    with resources.as_file(resources.files("iisft") / "child" / "modeling_iisft.py") as file:
        run_python(
            HERE / "traps.py",
            models,
            folder / "report.json",
            folder=folder,
            IISFT_MODELING_FILE=str(file),
        )
    found: dict[str, str | None] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_trap(report: dict[str, str | None], name: str) -> None:
    assert report[name] is None, report[name]
