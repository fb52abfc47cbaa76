"""What finished runs reached on this machine, kept beside the runs, and used by the next plan.
Standard library only.

runs/measured.jsonl: one line per finished run, appended by its supervisor. It outlives the run's
folder.
"""

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iisft import files, json_values
from iisft.estimate.shape import Measured
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord

FILE = "measured.jsonl"
PRICE_VARIABLE = "IISFT_KWH_PRICE"
_RECENT = 5
_WARM_UP = 1  # the first step has caches to fill and kernels to choose


def measure(events: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """Medians of a run's steps: `step_s`, `tokens_per_s`; its highest `peak_gib`; the `energy_kwh`
    that its GPUs took; `spent`, the shares of its time by what it went into.

    What was not logged is left out.
    """
    steps, speeds, peaks, spent, joules = [], [], [], [], 0.0
    for event in events:
        if event is not None and event["kind"] == "power" and _is_amount(event.get("joules")):
            joules += event["joules"]
        if event is None or event["kind"] not in ("metrics", "redone"):
            continue
        if isinstance(event.get("step_s"), int | float):
            steps.append(float(event["step_s"]))
        if isinstance(event.get("tokens_per_s"), int | float):
            speeds.append(float(event["tokens_per_s"]))
        if isinstance(event.get("vram_allocated_gib"), int | float):
            peaks.append(float(event["vram_allocated_gib"]))
        if isinstance(event.get("spent"), dict):
            spent.append(event["spent"])
    found: dict[str, Any] = {}
    if steps:
        found["step_s"] = round(statistics.median(steps[_WARM_UP:] or steps), 4)
    if speeds:
        found["tokens_per_s"] = round(statistics.median(speeds[_WARM_UP:] or speeds), 2)
    if peaks:
        found["peak_gib"] = round(max(peaks), 3)
    if shares := _shares(spent[_WARM_UP:] or spent):
        found["spent"] = shares
    if joules:
        found["energy_kwh"] = round(joules / 3.6e6, 5)
    return found


def _shares(spent: Iterable[dict[str, Any]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for seconds in spent:
        for kind, value in seconds.items():
            if _is_amount(value):
                sums[kind] = sums.get(kind, 0.0) + value
    whole = sum(sums.values())
    return {kind: round(value / whole, 4) for kind, value in sums.items()} if whole > 0 else {}


def cost(kwh: float) -> float | None:
    """What the energy cost at $IISFT_KWH_PRICE; None without a price."""
    try:
        price = float(os.environ.get(PRICE_VARIABLE, ""))
    except ValueError:
        return None
    return kwh * price if 0 <= price < 1e6 else None


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e12


def keep(runs: Path, folder: RunFolder, record: RunRecord, found: dict[str, Any]) -> None:
    """Add a finished run to the machine's memory beside `runs`; on a full disk it is let go."""
    planned = record.forecast
    if not found or planned is None:
        return
    entry = {
        "time": round(time.time()),
        "run": folder.id,
        "preset": record.preset_name,
        "machine": platform.node(),
        "kin": planned.get("kin"),
        "ranks": planned.get("ranks"),
        "rows": planned.get("rows"),
        "global_batch": planned.get("global_batch"),
        "flops_per_token": planned.get("flops_per_token"),
        "predicted": {key: planned.get(key) for key in ("peak_gib", "step_s")},
        "measured": found,
    }
    with contextlib.suppress(OSError):
        files.append_line(runs / FILE, json.dumps(entry))


def recall(runs: Path, kin: dict[str, Any], rows: str | None) -> Measured | None:
    """What the latest runs of that kind reached on this machine.

    Tokens per row only of the same `rows`.
    """
    machine = platform.node()
    same: list[dict[str, Any]] = []
    for line in files.last_lines(runs / FILE, 1024 * 1024):
        try:
            entry = json_values.parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("machine") == machine and entry.get("kin") == kin:
            same.append(entry)
    same = same[-_RECENT:]
    if not same:
        return None
    return Measured(
        runs=len(same),
        tflops=_median(_rate(entry) for entry in same),
        peak_ratio=_median(_ratio(entry, "peak_gib") for entry in same),
        step_ratio=_median(_ratio(entry, "step_s") for entry in same),
        row_tokens=_median(
            _row_tokens(entry) for entry in same if rows and entry.get("rows") == rows
        ),
    )


def _rate(entry: dict[str, Any]) -> float | None:
    """TFLOP/s per GPU of a whole step."""
    try:
        return (
            float(entry["measured"]["tokens_per_s"])
            * float(entry["flops_per_token"])
            / int(entry["ranks"])
            / 1e12
        )
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None


def _row_tokens(entry: dict[str, Any]) -> float | None:
    try:
        found = entry["measured"]
        return float(found["tokens_per_s"]) * float(found["step_s"]) / int(entry["global_batch"])
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None


def _ratio(entry: dict[str, Any], name: str) -> float | None:
    try:
        return float(entry["measured"][name]) / float(entry["predicted"][name])
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value]
    return statistics.median(known) if known else None
