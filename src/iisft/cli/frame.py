"""One picture of a run as lines of text: header, progress, curves, checkpoints, GPUs, findings,
log.

Every text from outside goes through `_line` or `_wrapped`, which take it literally and drop its
control characters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from iisft.cli.figures import SMALLEST, curve, describe_metrics
from iisft.machine.facts.sensors import GpuSample
from iisft.quoting import plain
from iisft.runs.record.history import History
from iisft.runs.record.state import RunStatus

_STATE_STYLE = {
    "finished": "green",
    "running": "green",
    "failed": "red",
    "lost": "red",
    "pending": "cyan",
}
_SEVERITY_STYLE = {"error": "red", "warn": "yellow", "info": "cyan"}
_SIDE_BY_SIDE = 80
_NARROWEST = 40
_FINDINGS = 5
_FEWEST_LOG_LINES = 3
_CURVE_LINES = (4, 16)
_ROOM_WITHOUT_TERMINAL = (6, 8)  # lines of a curve, lines of the log


@dataclass(frozen=True)
class View:
    """What a frame shows. `log`: the last lines, at least as many as fit."""

    status: RunStatus
    history: History
    gpus: Sequence[GpuSample]
    log: Sequence[str]


def frame(view: View, terminal: Console, height: int | None = None) -> Text:
    """The picture in the terminal's width and at most `height` lines.

    None = as many as it takes.
    """
    width = max(_NARROWEST, terminal.width)
    curve_height, log_lines = _ROOM_WITHOUT_TERMINAL
    above = [*_header(view.status, terminal), *_progress(view, terminal, width)]
    below = [
        *_milestones(view.history, width),
        *_gpu_table(view.gpus, width),
        *_findings(view.status.findings, terminal),
    ]
    if height is not None:  # what is left is shared by the curves and the log
        stacked = 1 if width >= _SIDE_BY_SIDE else 2
        free = height - len(above) - len(below) - len(_log(["x"])) - 2 * stacked
        least, most = _CURVE_LINES
        curve_height = min(max(free // (1 + stacked), least), most)
    lines = [*above, *_curves(view.history, width, curve_height), *below]
    if height is not None:
        log_lines = max(height - len(lines) - 2, _FEWEST_LOG_LINES)
    lines += _log(view.log[-log_lines:])
    for line in lines:
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="ellipsis").join(lines[:height])


def _line(text: str = "", style: str = "") -> Text:
    return Text(plain(text), style=style)


def _wrapped(text: str, terminal: Console, style: str = "", indent: str = "") -> list[Text]:
    folded = Text(plain(text), style=style).wrap(
        terminal, max(_NARROWEST, terminal.width) - len(indent)
    )
    return [Text(indent).append_text(part) for part in folded]


def _packed(parts: Sequence[str], width: int) -> list[Text]:
    """As many whole parts on a line as fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return [_line(line) for line in lines]


def _header(status: RunStatus, terminal: Console) -> list[Text]:
    state = _line(status.state, "bold " + _STATE_STYLE.get(status.state, "yellow"))
    parts = [
        _line(status.folder.id, "bold"),
        state,
        *([_line(f"preset {status.preset}")] if status.preset else []),
    ]
    return [Text("  ").join(parts), *(_wrapped(status.reason, terminal) if status.reason else [])]


def _progress(view: View, terminal: Console, width: int) -> list[Text]:
    latest, live = view.history.latest, view.status.live
    if not latest:
        waiting = "no step yet: the trainer imports torch, loads model and data"
        return [_line(), _line(waiting if live else "no step was logged")]
    step, total = latest["step"], latest["total_steps"]
    start = f"step {step}/{total or '?'}  "
    share = min(1.0, step / total) if total else 0.0
    end = f"  {100 * share:.0f} %" if total else ""
    room = width - len(start) - len(end)
    done = math.floor(room * share)
    figures = describe_metrics(latest, view.history.step_s if live and total else [])
    bar = _line(start).append("█" * done, "green").append("░" * (room - done), "dim").append(end)
    return [_line(), bar, *_packed(figures.split("  "), width)]


def _curves(history: History, width: int, height: int) -> list[Text]:
    series: dict[str, Sequence[float | None]] = {
        "loss": history.loss,
        "grad_norm": history.grad_norm,
    }
    side_by_side = width >= _SIDE_BY_SIDE
    block_width = max(SMALLEST[0], (width - 2) // 2 if side_by_side else width)
    blocks = []
    for name, values in series.items():
        said = [value for value in values if value is not None]
        if said:
            broken = sum(not math.isfinite(value) for value in said)
            title = f"{name}, steps {history.steps[0]} to {history.steps[-1]}"
            title += f", {broken} not finite" if broken else ""
            drawn = curve(
                [math.nan if value is None else value for value in values], block_width, height
            )
            blocks.append([_line(title, "bold"), *(_line(row, "cyan") for row in drawn)])
    if not side_by_side:
        return [line for block in blocks for line in (_line(), *block)]
    rows = [
        Text("  ").join(_padded(part, block_width) for part in row)
        for row in zip(*blocks, strict=True)
    ]
    return [_line(), *rows] if rows else []


def _padded(text: Text, width: int) -> Text:
    padded = text.copy()
    padded.pad_right(max(0, width - text.cell_len))
    return padded


def _milestones(history: History, width: int) -> list[Text]:
    lines = []
    if history.checkpoints:
        steps = " ".join(str(step) for step in history.checkpoints)
        room = width - len("saved at     ")
        if len(steps) > room:
            steps = "… " + steps[-(room - 2) :].partition(" ")[2]
        lines.append(_line(f"saved at     {steps}"))
    if history.restarts:
        lines.append(
            _line(f"restarts     {len(history.restarts)}  {history.restarts[-1]}", "yellow")
        )
    return [_line(), *lines] if lines else []


def _gpu_table(gpus: Sequence[GpuSample], width: int) -> list[Text]:
    """The name takes what room the figures leave."""
    if not gpus:
        return []
    rows = [("GPU", "BUSY", "MEMORY", "TEMP", "POWER")]
    rows += [
        (str(i), _busy(gpu), _memory(gpu), _temperature(gpu), _power(gpu))
        for i, gpu in enumerate(gpus)
    ]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    names = ["NAME", *(plain(gpu.name or gpu.vendor) for gpu in gpus)]
    name_width = min(max(map(cell_len, names)), max(4, width - sum(widths) - 2 * len(widths)))
    styles = ["bold", *("red" if gpu.throttled else "" for gpu in gpus)]
    lines = [_line()]
    for name, style, row in zip(names, styles, rows, strict=True):
        number, *figures = [f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True)]
        lines.append(_line("  ".join([number, set_cell_size(name, name_width), *figures]), style))
    return lines


def _busy(gpu: GpuSample) -> str:
    return "-" if gpu.busy_percent is None else f"{gpu.busy_percent:.0f} %"


def _memory(gpu: GpuSample) -> str:
    used, total = (
        "?" if gib is None else f"{gib:.1f}" for gib in (gpu.memory_used_gib, gpu.memory_total_gib)
    )
    return f"{used}/{total} GiB"


def _temperature(gpu: GpuSample) -> str:
    degrees = "-" if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} °C"
    return f"{degrees} too hot" if gpu.throttled else degrees


def _power(gpu: GpuSample) -> str:
    return "-" if gpu.power_w is None else f"{gpu.power_w:.0f} W"


def _findings(findings: Sequence[dict[str, Any]], terminal: Console) -> list[Text]:
    if not findings:
        return []
    lines = [_line()]
    if len(findings) > _FINDINGS:
        lines.append(_line(f"{len(findings) - _FINDINGS} earlier findings: iisft status", "dim"))
    for finding in findings[-_FINDINGS:]:
        severity = str(finding.get("severity") or "finding")
        lines += _wrapped(
            f"{severity}: {finding.get('message', '')}", terminal, _SEVERITY_STYLE.get(severity, "")
        )
        if finding.get("fix"):
            lines += _wrapped(f"fix: {finding['fix']}", terminal, indent="  ")
    return lines


def _log(lines: Sequence[str]) -> list[Text]:
    return [_line(), _line("log", "bold"), *(_line(text) for text in lines)] if lines else []
