from pathlib import Path

import pytest
from harness import HERE, run_python


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tiny models, their starting adapters and the rows, in a folder with a space and Chinese
    letters.
    """
    folder = tmp_path_factory.mktemp("fidelity") / "模型 与 数据"
    run_python(HERE / "tiny_models.py", folder, folder=folder)
    return folder
