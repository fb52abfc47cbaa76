"""The plan as a command: everything computed for one request, and what the extras (best, trace,
probe) add.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

from iisft.errors import Finding, IisftError
from iisft.estimate.memory import GIB
from iisft.estimate.suggestions import Suggestion, contrasts
from iisft.estimate.timing import Span
from iisft.gpu_table import Device
from iisft.llamafactory.environment import Placement
from iisft.machine.facts.gpus import Gpu, visible_gpus
from iisft.presets import documents
from iisft.presets.schema import Preset
from iisft.runs.plan import fit, preflight
from iisft.runs.plan.fit import Outlook
from iisft.runs.plan.request import Resolved, TrainRequest, resolve
from iisft.workspace import Workspace

_FALLBACK = "mi50"


@dataclass(frozen=True)
class Planned:
    """A plan, whole."""

    resolved: Resolved
    outlook: Outlook
    suggestions: tuple[Suggestion, ...]
    contrasts: tuple[Suggestion, ...]
    findings: tuple[Finding, ...]

    @property
    def preset(self) -> Preset:
        return self.resolved.preset

    @property
    def placement(self) -> Placement:
        return self.resolved.placement

    def as_json(self) -> dict[str, Any]:
        """The keys of the design first; what is not known is null."""
        result, place = self.outlook.forecast, self.outlook.place
        parts = {name: _gib(size) for name, size in result.memory.parts.items()} if result else {}
        overhead = (
            {name: _gib(size) for name, size in result.memory.overhead.items()} if result else {}
        )
        seconds, total = (result.step_s, result.total_s) if result else (None, None)
        measured = self.outlook.situation.measured if self.outlook.situation else None
        return {
            "fits": result.fits if result else None,
            "gpu_gib": round(place.gpu_gib, 3),
            "peak_gib": round(sum(parts.values()), 4) if result else None,
            "phase": result.memory.phase if result else None,
            "parts": parts if result else None,
            "overhead_gib": round(sum(overhead.values()), 4) if result else None,
            "suggestions": [one.as_json() for one in self.suggestions],
            "step_s": round(seconds.typical, 6) if seconds else None,
            "total_h": round(total.typical / 3600, 6) if total else None,
            "overhead": overhead if result else None,
            "phases": {name: _gib(size) for name, size in result.memory.phases.items()}
            if result
            else None,
            "contrasts": [one.as_json() | {"name": one.change.reason} for one in self.contrasts],
            "step_s_range": _range(seconds, 1.0),
            "steps": result.steps if result else None,
            "epoch_h": round(total.typical / 3600 / self.preset.train.epochs, 6) if total else None,
            "total_h_range": _range(total, 3600.0),
            "finish": _finish(total),
            "checkpoint_gib": round(result.checkpoint_gib, 3) if result else None,
            "disk_gib": round(result.disk_gib, 3) if result else None,
            "preset": self.resolved.document.name,
            "model": self.preset.model.id,
            "model_source": self.outlook.facts.source if self.outlook.facts else None,
            "device": place.device.key if place.device else None,
            "planned_for": place.source,
            "world_size": self.placement.world_size,
            "global_batch": self.preset.global_batch(self.placement.world_size),
            "measured": _measured_json(measured),
            "findings": [finding.as_json() for finding in self.findings],
        }


def make(request: TrainRequest, workspace: Workspace, device: Device | None = None) -> Planned:
    """Plan one request; milliseconds beyond reading its files.

    Raises:
        IisftError: the preset or the request itself is wrong.
    """
    gpus = visible_gpus()
    resolved = resolve(request, workspace, gpus or _imagined(request), judge=False)
    preset, placement = resolved.preset, resolved.placement
    findings = [*resolved.loaded.warnings, *resolved.notes]
    of_data: list[Finding] = []
    datasets = preflight.datasets_for(of_data, preset, workspace, None)
    place = fit.place_for(preset, gpus, placement.ranks, device)
    seen = fit.look(
        preset,
        workspace.model_folder(preset.model.id),
        place,
        placement.world_size,
        datasets,
        workspace.runs,
    )
    findings += [*seen.findings, *(replace(finding, severity="warn") for finding in of_data)]
    compared = contrasts(preset, seen.situation) if seen.situation and not place.on_cpu else []
    return Planned(
        resolved, seen, tuple(seen.suggestions(preset)), tuple(compared), tuple(findings)
    )


def default_preset(workspace: Workspace, device: Device | None) -> str:
    """The first preset for the GPUs that are meant or here; `demo` without any."""
    gpus = visible_gpus()
    arch = device.arch if device else gpus[0].arch if gpus else "cpu"
    for name in sorted(documents.available(workspace)):
        try:
            hardware = documents.read_document(name, workspace).values.get("hardware")
        except IisftError:  # somebody's broken preset is not the one that is looked for
            continue
        wanted = hardware.get("arch") if isinstance(hardware, dict) else None
        if isinstance(wanted, str) and wanted and arch.startswith(wanted):
            return name
    return _FALLBACK


def _imagined(request: TrainRequest) -> list[Gpu]:
    """Without GPUs `train --gpus N` means CPU ranks; a plan is about GPUs."""
    return [Gpu("", "", 0.0)] * (request.gpus or 1)


def _gib(size: int) -> float:
    return round(size / GIB, 4)


def _range(span: Span | None, unit: float) -> list[float] | None:
    return [round(span.low / unit, 6), round(span.high / unit, 6)] if span else None


def _finish(total: Span | None) -> str | None:
    if total is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() + total.typical))


def _measured_json(measured: Any) -> dict[str, Any] | None:
    if measured is None:
        return None
    return {
        "runs": measured.runs,
        "tflops": round(measured.tflops, 4) if measured.tflops else None,
        "peak_measured_over_predicted": round(measured.peak_ratio, 4)
        if measured.peak_ratio
        else None,
        "step_measured_over_predicted": round(measured.step_ratio, 4)
        if measured.step_ratio
        else None,
    }
