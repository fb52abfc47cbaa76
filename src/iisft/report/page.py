"""Puts a page together from the assets: scripts and styles inlined, everything else forbidden.

The Content-Security-Policy allows the one script by its digest, and no other. `report_page` has its
data in the file and may ask for nothing; `live_page` has none, and may ask where it came from.
"""

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from iisft import json_values
from iisft.secrets import hide

_DRAWING = ("uPlot.iife.min.js", "words.js", "base.js", "charts.js")
_OF_REPORT = (*_DRAWING, "evaluation.js", "diff.js", "predictions.js", "setup.js", "main.js")
_OF_LIVE_PAGE = (*_DRAWING, "setup.js", "live_words.js", "live_parts.js", "live.js")
_STYLES = ("uPlot.min.css", "page.css")
_LICENSE = "uPlot.LICENSE"
_COMPRESSION = 6


def report_page(document: Mapping[str, Any]) -> bytes:
    """The whole file of a report.

    Args:
        document: what the page shows, as JSON values.
    """
    # mtime=0: gzip would write the present time into the file
    data = base64.b64encode(gzip.compress(_data(document), _COMPRESSION, mtime=0)).decode()
    return _page(_OF_REPORT, _STYLES, "style-src 'unsafe-inline'", data)[0]


@lru_cache(maxsize=1)
def live_page() -> tuple[bytes, str]:
    """The page that shows what a stream of events tells it, and its policy as a header says it."""
    styles = (*_STYLES, "live.css")
    allowed = (
        f"style-src '{_digest(_joined(styles))}'; connect-src 'self'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    page, policy = _page(_OF_LIVE_PAGE, styles, allowed)
    # a page's own policy can't say this one (CSP 3, frame-ancestors)
    return page, f"{policy}; frame-ancestors 'none'"


def _page(
    scripts: Sequence[str], styles: Sequence[str], allowed: str, data: str = ""
) -> tuple[bytes, str]:
    script, style = _joined(scripts), _joined(styles)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; {allowed}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "LICENSE": _asset(_LICENSE).strip(),
        "STYLE": style,
        "DATA": data,
        "SCRIPT": script,
    }
    page = _asset("page.html")
    for name, text in parts.items():
        # not str.replace: a text that was inserted may itself contain a placeholder
        before, _, after = page.partition(f"@@{name}@@")
        page = before + text + after
    return page.encode(), policy


def _data(document: Mapping[str, Any]) -> bytes:
    return hide(json_values.json_text(document)).encode()


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _joined(names: Sequence[str]) -> str:
    return "\n".join(map(_asset, names))


def _asset(name: str) -> str:
    return resources.files("iisft.report").joinpath("assets", name).read_text(encoding="utf-8")
