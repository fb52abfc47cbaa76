"""The line that follows a run: whatever the width, how far it is comes first."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from iisft.cli import console, follow

FACTS = (
    "ETA 2m 06s  0.503 s/step  loss 0.5572  grad_norm 0.228  lr 2.00e-03  epoch 1.25  812 tokens/s"
)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_bar_and_the_step_stay_at_every_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "rich_stderr", lambda: terminal)
    progress, task = follow._new_bar()
    progress.update(task, description="training", completed=7400, total=12345, facts=FACTS)
    with terminal.capture() as capture:
        terminal.print(progress.get_renderable())
    [line] = capture.get().splitlines()
    assert cell_len(line) <= width
    assert line.startswith("training ━") and " 7400/12345 ETA 2m 06s" in line
    assert ("tokens/s" in line) == (width == 200)
