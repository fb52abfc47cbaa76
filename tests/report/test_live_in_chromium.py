"""The live page in a real browser: it follows a run through a restart and a removal, comes back by
itself, asks nobody else, and runs nothing that a file says.
"""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from iisft.machine.facts import sensors
from iisft.machine.facts.sensors import GpuSample
from iisft.report.live import server
from iisft.report.live.server import LivePage
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace

from . import chromium
from .chromium import Page
from .conftest import EVIL, make_run
from .test_live import append, metrics, queued

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason=f"no Chromium: {chromium.INSTALL}")
STEPS = "report.runs[0]?.series.step.length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], LivePage]]:
    """Starts the server at a port; the one before it is ended."""
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    gpu = GpuSample("amd", f"MI50 {EVIL}", 97.0, 24.0, 32.0, 104.0, None, True)
    monkeypatch.setattr(sensors, "sample", lambda: [gpu])
    running: list[tuple[LivePage, threading.Thread]] = []

    def end() -> None:
        while running:
            page, thread = running.pop()
            page.shutdown()
            thread.join()
            page.close()

    def start(port: int = 0) -> LivePage:
        end()
        page = LivePage(socket.create_server(("127.0.0.1", port)), Workspace.current())
        thread = threading.Thread(target=page.serve_forever, args=(0.05,))
        thread.start()
        running.append((page, thread))
        return page

    yield start
    end()


@pytest.fixture
def live(browser: Page, serve: Callable[..., LivePage]) -> Iterator[tuple[Page, LivePage]]:
    """The page, open; at the end nothing may have gone wrong, left its origin, or run."""
    page = serve()
    browser.requests.clear()
    browser.problems.clear()
    browser.send("Page.navigate", url=page.url)
    browser.wait_for("typeof heard !== 'undefined' && heard.link === 'live' && heard.gpus?.length")
    yield browser, page
    browser.evaluate("1")
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(page.url)] == []
    assert browser.evaluate("window.owned") is None
    assert browser.evaluate("document.querySelectorAll('img, script[src], iframe').length") == 0
    browser.send("Page.navigate", url="about:blank")


def shown(browser: Page, selector: str) -> str:
    found: str = browser.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def test_it_follows_a_run_from_nothing_through_a_restart_to_its_removal(
    live: tuple[Page, LivePage],
) -> None:
    browser, _ = live
    assert "iisft train --preset demo" in shown(browser, "#run")
    browser.evaluate("window.same = true")  # gone if the page were loaded again
    folder = make_run("first", {})
    browser.wait_for(f"{STEPS} === 40 && plots.length === 5")
    assert "40 / 40" in shown(browser, "#run .cards") and "0.61" in shown(browser, "#run .cards")
    assert "104 °C" in shown(browser, "#gpus") and "too hot" in shown(browser, "#gpus")
    append(folder, metrics(41, loss=0.25, grad_norm=1.0, total_steps=80))
    browser.wait_for("plots.every((plot) => plot.data[0].at(-1) === 41)")
    browser.wait_for("document.title.startsWith('51 % first')")
    append(
        folder,
        {"time": 2050.0, "kind": "state", "state": "restarting", "message": "rank 0 was killed"},
        {"time": 2051.0, "kind": "state", "state": "running", "from_step": 40},
        metrics(41, "redone", loss=7.0),
        metrics(42, loss=0.2, tokens_per_s=811.0),
    )
    browser.wait_for(f"{STEPS} === 42 && plots.length === 6")
    assert browser.evaluate("report.runs[0].series.loss.slice(-2)") == [0.25, 0.2]
    assert browser.evaluate("report.runs[0].series.tokens_per_s.length") == 42
    assert "rank 0 was killed" in shown(browser, "#eventlist")
    browser.wait_for("document.querySelector('#run .cards').innerText.includes('restarts\\n2')")
    other = make_run("second", {})
    browser.wait_for("document.querySelectorAll('#runlist .line').length === 2")
    browser.evaluate("document.querySelector('#runlist .line:not(.chosen)').click()")
    browser.wait_for("heard.id === (wanted() || 'none') && heard.facts !== null")
    chosen = RunFolder(folder.path.parent / browser.evaluate("heard.id"))
    shutil.rmtree(chosen.path)
    browser.wait_for("document.querySelector('#run').innerText.includes('(any more)')")
    browser.evaluate("document.getElementById('follow').click()")
    left = folder if chosen == other else other
    browser.wait_for(f"heard.id === {json.dumps(left.id)} && heard.facts && wanted() === null")
    assert browser.evaluate("window.same")


def test_it_comes_back_by_itself(
    live: tuple[Page, LivePage], serve: Callable[..., LivePage], monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, page = live
    folder = make_run("first", {})
    browser.wait_for(f"{STEPS} === 40")
    port = page.socket.getsockname()[1]
    monkeypatch.setattr(server.secrets, "token_urlsafe", lambda _: page.key)
    again = serve(port)  # as a tunnel that was cut and is there again
    assert again.url == page.url
    append(folder, metrics(41, loss=0.25))
    browser.wait_for(f"heard.link === 'live' && {STEPS} === 41")
    assert browser.evaluate("document.querySelectorAll('#runlist .line').length") == 1
    browser.problems.clear()  # the console says that the stream was cut


def test_nothing_that_a_file_says_is_more_than_text(live: tuple[Page, LivePage]) -> None:
    browser, page = live
    name = EVIL.replace("/", "")
    folder = make_run(name, {})
    folder.logs.mkdir()
    folder.train_log.write_text(f"a line {EVIL}\n")
    odd: list[Any] = [
        {"time": 3000.0, "kind": "state", "state": "stopped", "reason": EVIL},
        {"time": 3001.0, "kind": "checkpoint", "step": {"__proto__": EVIL}},
        {
            "time": 3002.0,
            "kind": "finding",
            "message": [EVIL],
            "fix": {"a": EVIL},
            "severity": EVIL,
        },
        metrics(41, loss=EVIL, tokens_per_s=[EVIL]) | {"total_steps": EVIL},
    ]
    append(folder, *odd)
    queued(f"waits {name}", 1)
    browser.wait_for(f"{STEPS} === 41 && heard.log?.length")
    for selector, text in {
        "#run h1": name.partition("<img")[0],
        "#runlist": name.partition("<img")[0],
        "#findings": "window.owned = 1",
        "#eventlist": "window.owned = 1",
        "#queue": f"1. waits {name.partition('<img')[0]}",
        "#gpus": "MI50 </script><script>",
        "#log": "a line </script><script>window.owned = 1",
        "#setup": "window.owned",
    }.items():
        browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert text in shown(browser, selector), selector
    refused = (
        "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } })()"
    )
    assert browser.evaluate(refused) == "TypeError", "no text becomes markup here (Trusted Types)"
    assert any("TrustedHTML" in problem for problem in browser.problems)
    browser.problems.clear()
    browser.send("Page.navigate", url=f"{page.url}?run={quote(name)}")
    browser.wait_for(f"document.getElementById('follow') && {STEPS} === 41")
    browser.evaluate("document.getElementById('language').click()")
    assert "跟随最新运行" in shown(browser, "#follow")
    assert browser.evaluate("Object.values(WORDS).every((w) => w.length === 2 && w.every(Boolean))")


def test_a_phone_needs_no_sideways_scrolling(live: tuple[Page, LivePage]) -> None:
    browser, _ = live
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.send("Emulation.setDeviceMetricsOverride", **size)
    make_run("a-name-that-is-far-too-long-" + "x" * 90, {})
    browser.wait_for(f"{STEPS} === 40 && plots.every((plot) => plot.width <= 390)")
    browser.wait_for("document.documentElement.scrollWidth <= innerWidth")
    browser.send("Emulation.clearDeviceMetricsOverride")
