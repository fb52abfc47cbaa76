"""A run's figures in a line, for people."""

import contextlib
from collections.abc import Mapping
from typing import Any

from iisft.cli import console


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
