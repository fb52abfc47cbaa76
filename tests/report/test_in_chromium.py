"""The report in a real browser: it draws, filters, keeps verdicts, asks for nothing, and runs no
foreign script.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iisft.runs.record.folder import RunFolder

from . import chromium
from .chromium import Page
from .conftest import make_run

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason=f"no Chromium: {chromium.INSTALL}")
CLI = Callable[..., Any]
ROWS = (
    "[...document.querySelectorAll('#rowlist .item')].map((item) => "
    "+item.querySelector('b').textContent)"
)
CHOSEN = "+document.querySelector('#rowlist .chosen b').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def report(iisft: CLI, page: Page, run: RunFolder, tmp_path: Path) -> Iterator[Page]:
    """The report of the run, open; at the end nothing may have gone wrong or left the page."""
    file = tmp_path / "报告.html"
    assert iisft("report", run.id, "-o", str(file)).code == 0
    page.requests.clear()
    page.problems.clear()
    page.open(file)
    page.evaluate("localStorage.clear()")
    yield page
    page.evaluate("1")
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(("file:", "blob:"))] == []
    assert page.evaluate("window.owned") is None


def click(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def text(page: Page, selector: str) -> str:
    found: str = page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll('{selector}')].map((each) => each.innerText)"
    )
    return found


def test_it_shows_what_ran_and_what_came_of_it(report: Page, run: RunFolder) -> None:
    report.wait_for("document.querySelectorAll('.chart canvas').length === 5")
    assert text(report, "h1").startswith(run.id)
    assert "Balanced accuracy" in text(report, "#evaluation .sentences")
    assert "rank 1 was killed (SIGKILL)" in text(report, "#eventlist")
    assert "window.owned = 1" in text(report, "#eventlist"), (
        "what tries to be script is shown as text"
    )
    by_dataset = "[...document.querySelectorAll('h3')].find((h) => h.innerText === 'By dataset')"
    tabled = report.evaluate(f"{by_dataset}.nextSibling.innerText").splitlines()
    assert [line.split("\t")[:2] for line in tabled if line.startswith("chat")] == [["chat", "8"]]
    report.evaluate("document.querySelector('#setup details').open = true")
    assert "Preset mi50: every value" in text(report, "#setup")
    assert "train.learning_rate" in text(report, "#setup")
    assert "2.7.1+rocm6.3" in text(report, "#setup")
    drawn = (
        "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((value) => "
        "value)"
    )
    assert report.evaluate(f"[...document.querySelectorAll('.chart canvas')].every({drawn})")


def test_filters_search_and_keys_find_rows(report: Page) -> None:
    assert report.evaluate(ROWS) == list(range(1, 25))
    click(report, "[data-filter=wrong]")
    assert report.evaluate(ROWS) == [1, 2, 3, 4, 24]
    report.press("j")
    report.press("j")
    report.press("k")
    assert report.evaluate(CHOSEN) == 2
    assert text(report, "#detail h3") == "row 2"
    click(report, "[data-filter=error]")
    assert report.evaluate(ROWS) == [23]
    assert "CUDA out of memory" in text(report, "#detail")
    click(report, "[data-filter=flipped]")
    assert report.evaluate(ROWS) == [5, 6, 7, 8, 9, 10]
    click(report, "[data-filter=all]")
    report.press("/")
    report.send("Input.insertText", text="REASON 17")
    assert report.evaluate(ROWS) == [18]
    report.evaluate("document.querySelector('td.cell.miss').click()")
    assert report.evaluate("state.search") == ""
    assert len(report.evaluate(ROWS)) == 2


def test_a_difference_is_shown_by_field_and_by_word(report: Page) -> None:
    click(report, "[data-filter=wrong]")
    assert texts(report, "tr.different td:first-child") == ["keep", "place"]
    assert texts(report, "tr.different ins") == ["false", "北京"]
    report.press("d")
    assert report.evaluate("document.querySelectorAll('.pair del').length") > 0
    parts = report.evaluate("wordDiff('the old 猫 sat', 'the 狗 sat down')")
    assert parts == [["=", "the "], ["-", "old 猫"], ["+", "狗"], ["=", " sat"], ["+", " down"]]


def test_verdicts_are_kept_and_exported(report: Page) -> None:
    report.press("b")
    report.press("j")
    report.press("g")
    report.press("n")
    report.send("Input.insertText", text='fine "indeed"')
    report.press("Enter")
    lines = [json.loads(line) for line in report.evaluate("exportLines()")]
    assert [(line["row"], line["verdict"], line["note"]) for line in lines] == [
        (1, "bad", ""),
        (2, "good", 'fine "indeed"'),
    ]
    assert lines[0]["data"] == "情报 val" and json.loads(lines[0]["reference"])["keep"] is True
    click(report, "[data-filter=judged]")
    assert report.evaluate(ROWS) == [1, 2]
    report.send("Page.reload")
    report.wait_for(
        "document.querySelector('header') !== null && Object.keys(verdicts).length === 2"
    )


def test_zoom_smoothing_and_time_move_all_curves(report: Page) -> None:
    report.wait_for("document.querySelectorAll('.chart canvas').length === 5")
    report.evaluate("document.getElementById('curves').scrollIntoView()")
    box = "document.querySelector('.u-over').getBoundingClientRect()"
    x, y, width, height = report.evaluate(
        f"(({{x, y, width, height}}) => [x, y, width, height])({box})"
    )
    report.drag((x + width * 0.25, y + height / 2), (x + width * 0.75, y + height / 2))
    report.wait_for("plots.every((plot) => plot.scales.x.min > 5 && plot.scales.x.max < 35)")
    slider = "document.getElementById('smoothing')"
    report.evaluate(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
    assert report.evaluate("plots[0].series.length") == 3, "step, loss, evaluation loss"
    click(report, "#whole")
    report.wait_for("plots.every((plot) => plot.scales.x.min <= 1 && plot.scales.x.max >= 40)")
    click(report, "#axis")
    report.wait_for(
        "plots.length === 5 && plots.every((plot) => plot.byTime && plot.scales.x.max < 0.1)"
    )
    smoothed = report.evaluate("smooth([1, null, 1, 1], 0.9)")
    assert smoothed[1] is None and smoothed[3] == pytest.approx(1)


def test_it_speaks_chinese_and_is_dark(report: Page) -> None:
    click(report, "#language")
    assert text(report, "#evaluation h2") == "评估"
    assert "生成出错" in text(report, "#evaluation")
    light = report.evaluate("getComputedStyle(document.body).backgroundColor")
    click(report, "#theme")
    assert report.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert report.evaluate(
        "Object.values(WORDS).every((words) => words.length === 2 && words.every(Boolean))"
    )


def test_two_runs_are_drawn_together(
    iisft: CLI, report: Page, run: RunFolder, tmp_path: Path
) -> None:
    make_run("other", {"final": 12})
    file = tmp_path / "both.html"
    assert iisft("report", "--compare", run.id, "other", "-o", str(file)).code == 0
    report.open(file)
    report.wait_for("document.querySelectorAll('.chart canvas').length === 5")
    assert report.evaluate("plots[0].series.length") == 7, (
        "step; of each run the loss, its mean, the evaluation loss"
    )
    assert "other@final" in text(report, "#evaluation")


def test_a_narrow_window_needs_no_sideways_scrolling(report: Page, run: RunFolder) -> None:
    report.send(
        "Emulation.setDeviceMetricsOverride",
        width=400,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    report.wait_for(
        "document.documentElement.scrollWidth <= innerWidth && plots.every((plot) => plot.width "
        "<= 400)"
    )
