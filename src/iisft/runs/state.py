"""A run's state, derived from its files and the live processes, never remembered."""

import difflib
import time
from dataclasses import dataclass
from typing import Any

from iisft import files
from iisft.errors import RunStateError
from iisft.process import ProcessIdentity
from iisft.runs.folder import RunFolder, complete_checkpoints
from iisft.workspace import Workspace

_LAUNCH_GRACE_S = 60.0
LIVE = ("pending", "running", "stopping")


@dataclass(frozen=True)
class RunStatus:
    """What is known about one run now. `eta_s` counts from the present run of the trainer."""

    folder: RunFolder
    state: str
    reason: str
    preset: str
    started: float | None
    ended: float | None
    metrics: dict[str, Any]
    observed: dict[str, Any] | None
    findings: tuple[dict[str, Any], ...]

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def eta_s(self) -> float | None:
        """Steps left x median of the last steps' seconds; nothing of it depends on when the run began."""
        step_s = self.metrics.get("median_step_s")
        if not self.live or step_s is None:
            return None
        left = int(self.metrics["total_steps"]) - int(self.metrics["step"])
        return round(float(step_s) * left, 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.folder.id,
            "state": self.state,
            "reason": self.reason,
            "preset": self.preset,
            "started": self.started,
            "ended": self.ended,
            "step": self.metrics.get("step", 0),
            "total_steps": self.metrics.get("total_steps"),
            "loss": self.metrics.get("loss"),
            "eta_s": self.eta_s,
        }

    def as_full_json(self) -> dict[str, Any]:
        checkpoints = complete_checkpoints(self.folder.output)
        return self.as_json() | {
            "observed": self.observed,
            "checkpoints": [{"step": step, "complete": whole} for step, whole in checkpoints.items()],
            "restarts": 0,
            "findings": list(self.findings),
            "run_dir": str(self.folder.path),
            "metrics": self.metrics,
        }


def status_of(folder: RunFolder) -> RunStatus:
    """Read one run; broken files show as what they are and never raise."""
    record = folder.read_record()
    events = list(folder.read_events())
    outcome = files.read_json_object(folder.exit)
    metrics, step_times = {}, []
    for event in events:
        if event["kind"] == "metrics":
            metrics = {key: value for key, value in event.items() if key != "kind"}
            step_times.append(event.get("step_s"))
    known = sorted(seconds for seconds in step_times[-21:] if seconds is not None)
    if known:
        metrics["median_step_s"] = known[len(known) // 2]
    state, reason = _state(folder, record, outcome, events)
    record = record or {}
    return RunStatus(
        folder=folder,
        state=state,
        reason=reason,
        preset=str(record.get("preset_name", "")),
        started=record.get("created"),
        ended=(outcome or {}).get("ended"),
        metrics=metrics,
        observed=record.get("observed"),
        findings=tuple(
            {k: v for k, v in event.items() if k != "kind"} for event in events if event["kind"] == "finding"
        ),
    )


def _state(
    folder: RunFolder,
    record: dict[str, Any] | None,
    outcome: dict[str, Any] | None,
    events: list[dict[str, Any]],
) -> tuple[str, str]:
    if outcome is not None:
        return str(outcome.get("state", "failed")), str(outcome.get("reason", ""))
    if record is None:
        return "lost", "run.json is missing or broken"
    processes = files.read_json_object(folder.processes) or {}
    supervisor = ProcessIdentity.from_json(processes.get("supervisor"))
    trainer = ProcessIdentity.from_json(processes.get("trainer"))
    if supervisor is not None and supervisor.alive():
        states = [event["state"] for event in events if event["kind"] == "state"]
        return (states[-1] if states and states[-1] in LIVE else "running"), ""
    if trainer is not None and trainer.alive():
        return "running", "unsupervised: the supervisor died, the trainer goes on"
    if supervisor is None:
        launcher = ProcessIdentity.from_json(record.get("launcher"))
        young = time.time() - float(record.get("created") or 0) < _LAUNCH_GRACE_S
        if (launcher is not None and launcher.alive()) or young:
            return "pending", ""
    return "lost", "the supervisor and the trainer are gone and left no exit record"


def all_runs(workspace: Workspace) -> list[RunStatus]:
    """Every run of the workspace, newest first."""
    folders = [RunFolder(path) for path in workspace.runs.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return sorted((status_of(folder) for folder in folders), key=lambda status: status.started or 0, reverse=True)


def find_run(workspace: Workspace, name: str | None) -> RunFolder:
    """The run of that id, or the newest one.

    Raises:
        RunStateError: there is none; the message has the nearest ids.
    """
    if name is None:
        runs = all_runs(workspace)
        if not runs:
            raise RunStateError(
                "no-runs", "there is no run yet", where=str(workspace.runs), fix="iisft train --preset demo"
            )
        return runs[0].folder
    path = workspace.runs / name
    if name and path.parent == workspace.runs and name != ".." and path.is_dir():
        return RunFolder(path)
    ids = [entry.name for entry in workspace.runs.glob("*") if entry.is_dir()]
    near = difflib.get_close_matches(name, ids, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise RunStateError("no-such-run", f"no run named {name!r}{hint}", where=str(workspace.runs), fix="iisft runs")
