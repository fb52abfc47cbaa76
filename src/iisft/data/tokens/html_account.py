"""The token account as one self-contained HTML page: histograms as inline SVG, and the rows that
would lose most.
"""

from html import escape
from typing import Any, Literal

from iisft.data.tokens.account import Account, WorstRow

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .7rem; text-align: right; }
th { border-bottom: 1px solid #999; }
td.text, th.text { text-align: left; }
pre { white-space: pre-wrap; }
svg { width: 100%; height: auto; }
rect { fill: #4a7ab5; }
rect.over { fill: #c0504d; }
text { font: 11px sans-serif; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; }
  text { fill: #ddd; }
}
"""
_PARTS: dict[Literal["total", "prompt", "answer"], str] = {
    "total": "tokens",
    "prompt": "tokens of the prompt",
    "answer": "tokens of the answer",
}
_WIDTH, _HEIGHT, _FOOT = 800, 220, 40


def render(account: Account, name: str, verdict: str) -> str:
    """The page. `verdict` is what the terminal says, line by line."""
    about = account.as_json()
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>Tokens of {escape(name)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>Tokens of {escape(name)}</h1>",
            f"<pre>{escape(verdict)}</pre>",
            _percentiles(about),
            *(_histogram(account, part) for part in _PARTS),
            _epoch(account, about),
            _worst(account),
            "</body></html>",
            "",
        ]
    )


def _percentiles(about: dict[str, Any]) -> str:
    kinds = about["percentiles"]
    names = list(kinds["total"])
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f'<tr><td class="text">{kind}</td>'
        + "".join(f"<td>{values[name]:,}</td>" for name in names)
        + "</tr>"
        for kind, values in kinds.items()
    )
    return f'<table><tr><th class="text">tokens</th>{head}</tr>{rows}</table>'


def _histogram(account: Account, part: Literal["total", "prompt", "answer"]) -> str:
    bins = account.histogram(part)
    most = max((one["rows"] for one in bins), default=1) or 1
    step = _WIDTH / max(len(bins), 1)
    parts = []
    for index, one in enumerate(bins):
        height = one["rows"] / most * (_HEIGHT - 20)
        x, y = index * step, _HEIGHT - height
        over = ' class="over"' if one["from"] > account.cutoff_len else ""
        parts.append(
            f'<rect{over} x="{x + 2:.1f}" y="{y:.1f}" width="{step - 4:.1f}" '
            f'height="{height:.1f}"/>'
        )
        parts.append(
            f'<text x="{x + step / 2:.1f}" y="{y - 4:.1f}" '
            f'text-anchor="middle">{one["rows"]:,}</text>'
        )
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 16}">{one["from"]:,}</text>')
    label = f"{_PARTS[part]}; red: the whole bin is over cutoff_len {account.cutoff_len}"
    parts.append(f'<text x="{_WIDTH}" y="{_HEIGHT + 32}" text-anchor="end">{label}</text>')
    drawn = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )
    return f"<h2>Rows by {_PARTS[part]}</h2>{drawn}"


def _epoch(account: Account, about: dict[str, Any]) -> str:
    epoch, padding, sample = about["epoch"], about["padding"], about["sample"]
    text = (
        f"An epoch has {epoch['tokens']:,} tokens, {epoch['trained']:,} of them trained on. "
        "Padding is "
        f"{padding['share']:.1%} of what is computed, with packing {padding['share_packed']:.1%}."
    )
    if account.sampled:
        text += f" Counted in a sample of {sample['rows']:,} of {sample['of']:,} rows."
    return f"<p>{text}</p>"


def _worst_row(one: WorstRow) -> str:
    tokens = one.row_tokens
    numbers = (
        one.row,
        tokens.prompt,
        tokens.answer,
        tokens.prompt - tokens.kept_prompt,
        tokens.answer - tokens.kept_answer,
    )
    cells = "".join(f"<td>{number:,}</td>" for number in numbers)
    file, excerpt = (f'<td class="text">{escape(text)}</td>' for text in (one.file, one.excerpt))
    return f"<tr>{file}{cells}{excerpt}</tr>"


def _worst(account: Account) -> str:
    if not account.worst:
        return ""
    rows = "".join(map(_worst_row, account.worst))
    names = ("row", "prompt", "answer", "prompt lost", "answer lost")
    head = '<th class="text">file</th>' + "".join(f"<th>{name}</th>" for name in names)
    return (
        f"<h2>Rows that would lose most</h2><table><tr>{head}<th "
        f'class="text">text</th></tr>{rows}</table>'
    )
