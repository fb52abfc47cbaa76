"""A run's state, derived from its files and the live processes, never remembered."""

import difflib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from iisft import files, process
from iisft.errors import Finding, RunStateError
from iisft.runs.record.checkpoints import Saved, best_of, checkpoints, eval_losses
from iisft.runs.record.folder import EXIT, RunFolder, parse_event
from iisft.runs.record.measurements import measure
from iisft.runs.record.run_record import RunRecord, count, moment, why_unusable
from iisft.workspace import Workspace

LIVE = ("pending", "running", "stopping")
QUEUED = "queued"
UNSUPERVISED = "unsupervised: the supervisor died, the trainer goes on"
_LONGEST_START_S = 3600.0  # from the record to the supervisor; a record may name any process
_RECENT_STEPS = 21
_LISTED = ("step", "total_steps", "loss", "eval_loss")


@dataclass(frozen=True)
class RunStatus:
    """What is known about one run now. `eta_s` counts from the present life of the trainer."""

    folder: RunFolder
    state: str
    reason: str
    preset: str
    started: float | None
    ended: float | None
    ranks: int | None
    metrics: dict[str, Any]
    observed: Mapping[str, Any] | None = None
    restarts: int = 0
    findings: tuple[dict[str, Any], ...] = ()
    forecast: Mapping[str, Any] | None = None
    measured: dict[str, Any] | None = None
    fix: str = ""
    comes_again: bool = False
    eval_losses: Mapping[int, float] = field(default_factory=dict)

    @property
    def can_go_on(self) -> bool:
        """Whether a resume has a chance: it ended early, not of what would come again."""
        return self.state in ("lost", "stopped", "failed") and not self.comes_again

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def over(self) -> bool:
        """Whether nobody trains it or waits to."""
        return not self.live and self.state != QUEUED

    @property
    def supervised(self) -> bool:
        return self.reason != UNSUPERVISED

    @property
    def eta_s(self) -> float | None:
        """Steps left x median of the last steps' seconds.

        Nothing of it depends on when the run began.
        """
        step_s = self.metrics.get("median_step_s")
        if not self.live or step_s is None or not self.metrics["total_steps"]:
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
            "eval_loss": self.metrics.get("eval_loss"),
            "eta_s": self.eta_s,
            "ranks": self.ranks,
        }

    def as_full_json(self) -> dict[str, Any]:
        return self.as_json() | {
            "observed": self.observed,
            "checkpoints": self._checkpoints(),
            "restarts": self.restarts,
            "findings": list(self.findings),
            "run_dir": str(self.folder.path),
            "metrics": self.metrics,
            "forecast": self.forecast,
            "measured": self.measured,
        }

    @property
    def _saved(self) -> list[Saved]:
        return checkpoints(self.folder.output, self.ranks or 1)

    @property
    def best(self) -> Saved | None:
        """The kept checkpoint with the lowest evaluation loss."""
        return best_of(self._saved, self.eval_losses)

    def _checkpoints(self) -> list[dict[str, Any]]:
        saved = self._saved
        best = best_of(saved, self.eval_losses)
        return [
            one.as_json() | {"eval_loss": self.eval_losses.get(one.step), "best": one is best}
            for one in saved
        ]


def status_of(folder: RunFolder) -> RunStatus:
    """Read one run; broken files show as what they are and never raise."""
    record = folder.read_record()
    events = list(folder.read_events())
    outcome = files.read_json_object(folder.exit)
    brief = _brief(folder, record, outcome, events)
    state, reason = brief.state, brief.reason
    findings = [
        {key: value for key, value in event.items() if key != "kind"}
        for event in events
        if event["kind"] == "finding"
    ]
    if reason == UNSUPERVISED:
        fix = f"iisft resume {folder.id}"
        findings.append(Finding("unsupervised", reason, fix=fix, severity="warn").as_json())
    if state == "lost" and (left := process.processes_of_run(folder.marker)):
        reason += f"; {len(left)} processes of it still run (iisft stop {folder.id} ends them)"
    # without a record nothing resumes
    comes_again = record is None or (outcome or {}).get("comes_again") is True
    return replace(
        brief,
        reason=reason,
        fix=str((outcome or {}).get("fix") or ""),
        comes_again=comes_again,
        observed=record.observed if record else None,
        restarts=sum(event.get("state") == "restarting" for event in events),
        findings=tuple(findings),
        forecast=record.forecast if record else None,
        measured=measure(events),
        eval_losses=eval_losses(events),
    )


def is_live(folder: RunFolder) -> bool:
    """Whether a supervisor or trainer of it lives: asked again where the status of a moment ago may
    be too old, it reads two small files.
    """
    if folder.exit.exists():
        return False
    here = folder.live_supervisor() is not None or folder.live_trainer() is not None
    return here or bool(folder.live_elsewhere())


def brief_of(folder: RunFolder) -> RunStatus:
    """What a list shows of a run: one file for an ended run, the end of the events for another."""
    outcome = files.read_json_object(f"{folder.path}/{EXIT}")
    # earlier versions kept no loss where an evaluation was the last thing said
    if outcome is not None and "preset" in outcome and outcome.get("loss") is not None:
        return RunStatus(
            folder=folder,
            state=str(outcome.get("state", "failed")),
            reason=str(outcome.get("reason", "")),
            preset=str(outcome["preset"]),
            started=moment(outcome.get("started")),
            ended=moment(outcome.get("ended")),
            ranks=count(outcome.get("ranks")),
            metrics=_figures({key: outcome.get(key) for key in _LISTED}),
        )
    record = folder.read_record()
    events = [
        event
        for line in files.last_lines(folder.events)
        if (event := parse_event(line)) is not None
    ]
    return _brief(folder, record, outcome, events)


def _brief(
    folder: RunFolder,
    record: RunRecord | None,
    outcome: dict[str, Any] | None,
    events: list[dict[str, Any]],
) -> RunStatus:
    state, reason = _state(folder, record, outcome, events)
    return RunStatus(
        folder=folder,
        state=state,
        reason=reason,
        preset=record.preset_name if record else "",
        started=record.created if record else None,
        ended=moment((outcome or {}).get("ended")),
        ranks=record.world_size if record else None,
        metrics=latest_metrics(events),
    )


def all_runs(workspace: Workspace) -> list[RunStatus]:
    """Every run of the workspace, newest first."""
    try:
        with os.scandir(workspace.runs) as entries:
            names = [
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            ]
    except OSError:
        return []
    found = [brief_of(RunFolder(workspace.runs / name)) for name in names]
    return sorted(found, key=lambda status: status.started or 0, reverse=True)


def find_run(workspace: Workspace, name: str | None) -> RunFolder:
    """The run of that id, or the newest one that does not wait in the queue.

    Raises:
        RunStateError: there is none; the message has the nearest ids.
    """
    if name is None:
        runs = all_runs(workspace)
        if not runs:
            raise RunStateError(
                "no-runs",
                "there is no run yet",
                where=str(workspace.runs),
                fix="iisft train --preset demo",
            )
        return next((run for run in runs if run.state != QUEUED), runs[0]).folder
    path = workspace.runs / name
    if name and path.parent == workspace.runs and name != ".." and path.is_dir():
        return RunFolder(path)
    ids = [entry.name for entry in workspace.runs.glob("*") if entry.is_dir()]
    near = difflib.get_close_matches(name, ids, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise RunStateError(
        "no-such-run", f"no run named {name!r}{hint}", where=str(workspace.runs), fix="iisft runs"
    )


def _state(
    folder: RunFolder,
    record: RunRecord | None,
    outcome: dict[str, Any] | None,
    events: list[dict[str, Any]],
) -> tuple[str, str]:
    if outcome is not None:
        return str(outcome.get("state", "failed")), str(outcome.get("reason", ""))
    if record is None:
        return "lost", why_unusable(folder.record)
    if folder.live_supervisor() is not None:
        last: dict[str, Any] = next(
            (event for event in reversed(events) if event["kind"] == "state"), {}
        )
        if last.get("state") == "restarting":
            return "running", f"restarting after: {last.get('message', '')}"
        return ("stopping" if last.get("state") == "stopping" else "running"), ""
    if folder.live_trainer() is not None:
        return "running", UNSUPERVISED
    if host := folder.live_elsewhere():
        return "running", f"on {host}"
    never_started = not folder.processes.exists()
    if record.queue and never_started and folder.queue_entry.exists():
        return QUEUED, "it waits in the queue (iisft queue)"
    launching = record.launcher is not None and record.launcher.alive() and not record.queue
    if never_started and launching and 0 <= time.time() - (record.created or 0) < _LONGEST_START_S:
        return "pending", ""
    return "lost", "the supervisor and the trainer are gone and left no exit record"


def latest_metrics(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Each figure as it was last said: the evaluation at a run's end says no loss of a step."""
    metrics: dict[str, Any] = {}
    step_times = []
    for event in events:
        if event["kind"] in ("metrics", "redone") and count(event.get("step")) is not None:
            figures = _figures(event)
            metrics = {"total_steps": 0} | metrics | figures
            step_times.append(figures.get("step_s"))
    known = sorted(float(seconds) for seconds in step_times[-_RECENT_STEPS:] if seconds is not None)
    if known:
        metrics["median_step_s"] = known[len(known) // 2]
    return metrics


def _figures(values: dict[str, Any]) -> dict[str, Any]:
    """Of a metrics event or an outcome what is a figure; NaN and infinities stand there as text."""
    counts = {
        key: number
        for key in ("step", "total_steps")
        if (number := count(values.get(key))) is not None
    }
    rest = {
        key: value for key, value in values.items() if key not in ("kind", "step", "total_steps")
    }
    return counts | {key: value for key, value in rest.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
