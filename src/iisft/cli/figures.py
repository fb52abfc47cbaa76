"""A run's figures for people: in a line, and a series of them as a curve of braille dots, two dots
a character wide, four high.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from iisft.cli import console
from iisft.runs.record.state import RunStatus


def describe_metrics(event: dict[str, Any], step_s: list[float]) -> str:
    """One line of figures.

    The ETA is steps left x median seconds per step, right after a resume too.
    """
    parts = []
    if step_s:
        median = sorted(step_s)[len(step_s) // 2]
        left = median * (event["total_steps"] - event["step"])
        parts += [f"ETA {console.duration(left)}", f"{median:.3g} s/step"]
    formats = {
        "loss": "loss {:.4f}",
        "grad_norm": "grad_norm {:.3g}",
        "learning_rate": "lr {:.2e}",
        "epoch": "epoch {:.2f}",
    }
    parts += [text.format(float(event[key])) for key, text in formats.items() if key in event]
    if "tokens_per_s" in event:
        parts.append(f"{event['tokens_per_s']:.0f} tokens/s")
    if "vram_allocated_gib" in event:
        parts.append(f"{event['vram_allocated_gib']:.1f} GiB")
    if "eval_loss" in event:
        parts.append(f"eval_loss {float(event['eval_loss']):.4f}")
    return "  ".join(parts)


def describe_spent(measured: Mapping[str, Any] | None) -> str:
    """What the time of a run's steps went into, the largest share first; "" where nobody said."""
    shares = (measured or {}).get("spent") or {}
    ordered = sorted(shares.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{kind} {share:.0%}" for kind, share in ordered if share >= 0.005)


def describe_forecast(forecast: Mapping[str, Any] | None, measured: dict[str, float] | None) -> str:
    """The plan's figures, each with what was measured and measured / predicted.

    "" when there is neither.
    """
    parts = []
    for name, text in (("peak_gib", "peak {:.1f} GiB"), ("step_s", "{:.3g} s/step")):
        predicted, real = _number((forecast or {}).get(name)), _number((measured or {}).get(name))
        if predicted is not None and real is not None:
            ratio = f" (x {real / predicted:.2f})" if predicted else ""
            parts.append(
                f"{text.format(predicted)}, measured "
                f"{text.format(real).removeprefix('peak ')}{ratio}"
            )
        elif predicted is not None:
            parts.append(text.format(predicted))
        elif real is not None:
            parts.append(f"measured {text.format(real)}")
    return "; ".join(parts)


def _number(value: object) -> float | None:
    """A figure of a record, which anybody may have written."""
    with contextlib.suppress(OverflowError):
        return float(value) if isinstance(value, int | float) else None
    return None


def describe_energy(measured: dict[str, float]) -> str:
    """The energy of the GPUs, and its cost where a price is known."""
    from iisft.runs.record.measurements import PRICE_VARIABLE, cost

    kwh = measured.get("energy_kwh")
    if kwh is None:
        return ""
    price = cost(kwh)
    paid = f", {price:.2f} at {PRICE_VARIABLE}" if price is not None else ""
    return f"{kwh:.3g} kWh by the GPUs{paid}"


def in_words(value: object) -> str:
    """What was observed, without the marks of a program."""
    if value is None or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(in_words, value)) or "-"
    return str(value)


_BLANK = 0x2800
# Unicode's braille block, by row and column
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LABEL_WIDTH = 8
SMALLEST = (_LABEL_WIDTH + 2, 2)

Span = tuple[float, float]


def curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """Draw `values` from left to right, with their largest and smallest number as labels.

    What isn't finite is a gap. A series longer than the room is drawn with the smallest and the
    largest value of each dot column, so that no peak is averaged away.

    Args:
        values: one number per point, in equal distances.
        width: characters of a line, the label included.
        height: lines.

    Returns:
        `height` lines of `width` characters each.

    Raises:
        ValueError: less room than SMALLEST (width, height).
    """
    if width < SMALLEST[0] or height < SMALLEST[1]:
        raise ValueError(
            f"a curve needs {SMALLEST[0]} x {SMALLEST[1]} characters, not {width} x {height}"
        )
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return [" " * width] * height
    low, high = min(finite), max(finite)
    columns = 2 * (width - _LABEL_WIDTH - 1)
    cells = [[0] * (columns // 2) for _ in range(height)]
    for x, top, bottom in _dots(downsample(values, columns), columns, 4 * height, low, high):
        for y in range(top, bottom + 1):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    labels = [_label(high), *[""] * (height - 2), _label(low) if low < high else ""]
    return [
        f"{label:>{_LABEL_WIDTH}} {_text(row)}" for label, row in zip(labels, cells, strict=True)
    ]


def downsample(values: Sequence[float], count: int) -> list[Span | None]:
    """At most `count` spans (smallest, largest) of equal shares of the values.

    None where none of them is finite.
    """
    if len(values) > count:
        edges = [len(values) * i // count for i in range(count + 1)]
    else:
        edges = list(range(len(values) + 1))
    shares = ([value for value in values[a:b] if math.isfinite(value)] for a, b in pairwise(edges))
    return [(min(share), max(share)) if share else None for share in shares]


def _dots(
    spans: Sequence[Span | None], columns: int, rows: int, low: float, high: float
) -> list[tuple[int, int, int]]:
    """Column, first and last row of every vertical stroke; neighbours are joined by a line."""

    def x_of(index: int) -> int:
        return round(index * (columns - 1) / max(1, len(spans) - 1))

    def y_of(value: float) -> int:
        # Halves first: the difference of two huge numbers would overflow.
        room = high / 2 - low / 2
        share = (value / 2 - low / 2) / room if room else 0.5
        return round((rows - 1) * (1 - share))

    strokes = [(x_of(i), y_of(span[1]), y_of(span[0])) for i, span in enumerate(spans) if span]
    joined = []
    for i, (left, right) in enumerate(pairwise(spans)):
        if left and right:
            start, end = x_of(i), x_of(i + 1)
            joined += _line(start, y_of(_middle(left)), end, y_of(_middle(right)))
    return strokes + joined


def _line(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int, int]]:
    """Strokes from one point to another (x1 > x0), each beginning where the one before it ended."""
    strokes = []
    before = y0
    for x in range(x0 + 1, x1 + 1):
        here = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
        next_to_before = before + (here > before) - (here < before)
        strokes.append((x, min(here, next_to_before), max(here, next_to_before)))
        before = here
    return strokes


def _middle(span: Span) -> float:
    return span[0] / 2 + span[1] / 2


def _label(value: float) -> str:
    """As many digits as fit, four at most."""
    texts = [f"{value:.{digits}g}" for digits in (4, 3, 2, 1)]
    return next(text for text in texts if len(text) <= _LABEL_WIDTH)


def _text(row: Sequence[int]) -> str:
    return "".join(chr(_BLANK + dots) if dots else " " for dots in row)


def describe_run(found: RunStatus) -> Iterator[str]:
    """What `status` says first: how far it is, what was planned and spent, what was observed."""
    yield f"{found.folder.id}: {found.state}{' - ' + found.reason if found.reason else ''}"
    yield f"preset       {found.preset}"
    if found.metrics:
        step_s = [found.metrics["median_step_s"]] if "median_step_s" in found.metrics else []
        figures = describe_metrics(found.metrics, step_s if found.live else [])
        step, total = found.metrics["step"], found.metrics["total_steps"]
        yield f"progress     step {step}/{total}  {figures}"
    if line := describe_forecast(found.forecast, found.measured):
        yield f"plan         {line}"
    if line := describe_spent(found.measured):
        yield f"time went    {line}"
    if line := describe_energy(found.measured or {}):
        yield f"energy       {line}"
    for name, value in (found.observed or {}).items():
        yield f"{name.replace('_', ' '):<21}{in_words(value)}"
