"""A real run, its trainer killed in the middle, on the live page in a real browser."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import steps
from iisft.runs.record.folder import RunFolder
from report import chromium

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason=f"no Chromium: {chromium.INSTALL}")


def test_the_page_goes_on_through_a_crash_and_a_restart(
    iisft: Callable[..., Any],
    train: Callable[..., Any],
    folder: RunFolder,
    fake_trainer: Callable[..., None],
    tmp_path: Path,
) -> None:
    argv = [sys.executable, "-m", "iisft", "watch", "--web", "--port", "0"]
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as web,
        chromium.browser(tmp_path / "profile") as page,
    ):
        try:
            assert web.stdout is not None
            page.send("Page.navigate", url=(url := web.stdout.readline().strip()))
            page.wait_for("document.querySelector('#run pre')?.textContent.includes('demo')")
            fake_trainer("crash-once-at-3")
            train("--detach")
            page.wait_for("heard.now?.state === 'finished' && heard.facts?.state === 'finished'")
            page.wait_for("heard.log?.length && document.querySelector('#log pre').textContent")
            kinds = page.evaluate("report.runs[0].series.marks.map((mark) => mark.kind)")
            assert kinds.index("restarting") < kinds.index("resumed")
            assert page.evaluate("report.runs[0].series.step") == steps(folder) == [1, 2, 3, 4]
            assert page.evaluate("heard.facts.restarts") == 1
            assert page.problems == []
            assert [asked for asked in page.requests if not asked.startswith(url)] == []
        finally:
            web.terminate()
