"""The HTML file: data compressed into it, scripts and styles inlined, everything else forbidden.

Nothing from a run or a dataset is ever HTML or script: it is in the file as gzip in base64, and the
page's own script reads it as JSON and inserts it as text. The Content-Security-Policy allows that
one script, by its digest, and no request at all.
"""

import base64
import gzip
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from iisft import json_values
from iisft.secrets import hide

_SCRIPTS = (
    "uPlot.iife.min.js",
    "words.js",
    "base.js",
    "charts.js",
    "evaluation.js",
    "diff.js",
    "predictions.js",
    "setup.js",
    "main.js",
)
_STYLES = ("uPlot.min.css", "page.css")
_LICENSE = "uPlot.LICENSE"
_COMPRESSION = 6


def render(document: Mapping[str, Any]) -> bytes:
    """The whole file.

    Args:
        document: what the page shows, as JSON values.
    """
    script = "\n".join(map(_asset, _SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # mtime=0: gzip would write the present time into the file
    data = base64.b64encode(gzip.compress(_data(document), _COMPRESSION, mtime=0))
    parts = {
        "POLICY": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "LICENSE": _asset(_LICENSE).strip(),
        "STYLE": "\n".join(map(_asset, _STYLES)),
        "DATA": data.decode(),
        "SCRIPT": script,
    }
    page = _asset("page.html")
    for name, text in parts.items():
        # not str.replace: a text that was inserted may itself contain a placeholder
        before, _, after = page.partition(f"@@{name}@@")
        page = before + text + after
    return page.encode()


def _data(document: Mapping[str, Any]) -> bytes:
    return hide(json_values.json_text(document)).encode()


def _asset(name: str) -> str:
    return resources.files("iisft.report").joinpath("assets", name).read_text(encoding="utf-8")
