"""What a rehearsal showed: figures beside the plan's, every proof, and what would fail."""

import math
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import CheckFailed, ExitCode, Finding
from iisft.estimate.memory import GIB
from iisft.llamafactory.failures import KNOWN
from iisft.quoting import shell_word
from iisft.rehearsal.figures import STEPS, Ended, figures, losses, measured
from iisft.rehearsal.short import CHECKPOINT, KILLED_AFTER, evaluates
from iisft.runs.plan.plan import Plan
from iisft.runs.record.folder import RunFolder
from iisft.runs.supervise.resume import not_to_the_bit

VERDICT = "verdict.json"

_LONG_H = 6.0  # a run that may be worth some minutes before it
_NEAR = 0.01  # of a loss, where a GPU may add in another order
_ABOVE_PLAN = 1.02
_OF_MACHINE = ("memory", "disk")
_QUOTES = re.compile(r"[:;(].*", re.DOTALL)  # what an exception says may quote a row


@dataclass
class Verdict:
    """`document` is what verdict.json keeps and --json prints; `measured` goes to the next plan."""

    document: dict[str, Any]
    findings: list[Finding]
    measured: dict[str, Any]

    @property
    def ok(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.ok else CheckFailed(self.findings).exit_code

    @property
    def sentence(self) -> str:
        """For a notice."""
        hours, peak = self.document["total_h"], self.document["peak_gib"]
        parts = [f"{hours:.1f} h for the run" if hours is not None else ""]
        parts.append(f"{peak:.1f} GiB at most" if peak is not None else "")
        return "; ".join(filter(None, parts)) or "Nothing was measured"


def judge(plan: Plan, short: Plan, ended: Ended) -> Verdict:
    """What the short run tells about the long one."""
    found = measured(plan, short, ended)
    resume, of_resume = _resume(short.folder, ended)
    document = figures(plan, short, ended, found) | {"resume": resume}
    findings = [*_of_run(ended), *ended.findings]
    if ended.state == "finished":
        findings += of_resume
        findings += _evaluation(plan, ended)
        findings += _memory(plan, document)
        findings += _disk(plan, document)
    verdict = Verdict(document, findings, found)
    document |= {"ok": verdict.ok, "findings": [one.as_json() for one in findings]}
    return verdict


def no_checkpoint(folder: RunFolder) -> Finding:
    return Finding(
        "checkpoint-missing",
        f"there is no whole checkpoint after step {CHECKPOINT}: a crash would lose the run",
        where=str(folder.train_log),
        fix=f"tail -50 {shell_word(str(folder.train_log))}",
        exit_code=ExitCode.FAILED,
    )


def _of_run(ended: Ended) -> Iterator[Finding]:
    """What the supervisor put on record, and why the run ended where it did not finish.

    The kill is no finding: it was done here.
    """
    ours = ended.killed
    fault = "rehearsal-failed"
    for event in ended.events:
        if event["kind"] != "finding":
            continue
        if event.get("id") == "killed" and ours and event in ended.after:
            ours = False
            continue
        failed = event.get("severity") == "error"
        fault = str(event.get("id")) if failed else fault
        if not failed or ended.state == "finished":
            yield Finding(
                str(event.get("id")),
                str(event.get("message")),
                str(event.get("where") or ""),
                str(event.get("fix") or ""),
                severity="info" if event.get("severity") == "info" else "warn",
            )
    if ended.state != "finished" and not ended.findings:
        of_machine = any(one.id == fault and one.kind in _OF_MACHINE for one in KNOWN)
        when = "after it was killed and started again: " if ended.killed else ""
        yield Finding(
            fault,
            f"the rehearsal {ended.state}: {when}{ended.reason}",
            fix=ended.fix or "its logs are kept below rehearsals/",
            exit_code=ExitCode.ENVIRONMENT if of_machine else ExitCode.FAILED,
        )


def _resume(folder: RunFolder, ended: Ended) -> tuple[dict[str, bool | None], list[Finding]]:
    """Whether the killed trainer came back at its checkpoint, and did the same steps again."""
    before, after = losses(ended.before), losses(ended.after)
    begins = [one.get("from_step") for one in ended.after if one.get("state") == "running"]
    if not ended.killed or ended.state != "finished":
        return {"ok": False, "loss_equal": None}, []
    if begins != [CHECKPOINT] or min(after, default=0) != CHECKPOINT + 1:
        text = (
            f"killed after step {KILLED_AFTER} the trainer went on at step "
            f"{min(after, default='?')}, not at {CHECKPOINT + 1} from its checkpoint"
        )
        return {"ok": False, "loss_equal": None}, [_failed("resume-elsewhere", text)]
    again = range(CHECKPOINT + 1, KILLED_AFTER + 1)
    pairs = [
        (step, name, before[step].get(name), after[step].get(name))
        for step in again
        if step in before and step in after
        for name in ("loss", "grad_norm")
    ]
    unlike = [pair for pair in pairs if pair[2] != pair[3]]
    resume: dict[str, bool | None] = {"ok": True, "loss_equal": not unlike}
    if not unlike:
        return resume, []
    said = "; ".join(f"step {step}: {name} {one} and {two}" for step, name, one, two in unlike)
    record = folder.read_record()
    note = not_to_the_bit(record) if record else ""
    if note and all(_near(one, two) for *_, one, two in unlike):
        text = f"the resumed steps are those of before to the last digits, not to the bit: {said}"
        return resume, [Finding("resume-near", text, fix=note, severity="info")]
    text = f"the steps that were done again after the kill came out otherwise: {said}"
    return resume | {"ok": False}, [_failed("resume-differs", text)]


def _near(one: Any, two: Any) -> bool:
    numbers = isinstance(one, int | float) and isinstance(two, int | float)
    return numbers and math.isclose(one, two, rel_tol=_NEAR)


def _failed(name: str, text: str) -> Finding:
    fix = "a crash would cost the run its curve; try --set llamafactory.full_determinism=true"
    return Finding(name, text, fix=fix, exit_code=ExitCode.FAILED)


def _evaluation(plan: Plan, ended: Ended) -> Iterator[Finding]:
    said = any(one["kind"] in STEPS and "eval_loss" in one for one in ended.events)
    if evaluates(plan.preset) and not said:
        yield Finding(
            "evaluation-missing",
            f"the preset evaluates every {plan.preset.save.eval_every_steps} steps, and the "
            "trainer said no evaluation loss",
            where="save.eval_every_steps",
            fix="--set save.eval_every_steps=null, or look at the llamafactory section",
            exit_code=ExitCode.FAILED,
        )


def _memory(plan: Plan, document: Mapping[str, Any]) -> Iterator[Finding]:
    peak, planned, card = (document[name] for name in ("peak_gib", "planned_gib", "card_gib"))
    if peak is None or planned is None or plan.forecast is None:
        return
    beside = sum(plan.forecast.memory.overhead.values()) / GIB
    if peak + beside > card:
        found = plan.suggestions
        text = (
            f"{peak:.2f} GiB of tensors and {beside:.2f} beside them leave no margin on a card of "
            f"{card:.2f}"
        )
        fix = found[0].change.text if found else "a smaller train.cutoff_len"
        yield Finding("memory-tight", text, fix=fix, severity="warn")
    elif peak > planned * _ABOVE_PLAN:
        text = f"the peak is {peak:.2f} GiB, {planned:.2f} were planned; the next plan knows"
        yield Finding("peak-above-plan", text, severity="info")


def _disk(plan: Plan, document: Mapping[str, Any]) -> Iterator[Finding]:
    needed, free, keep = document["disk_gib"], document["free_gib"], plan.preset.save.keep
    if needed is not None and free < needed:
        yield Finding(
            "disk-space",
            f"{keep} checkpoints of {document['checkpoint_gib'] or 0:.2f} GiB and the rows' "
            f"copies need {needed:.1f} GiB, {free:.1f} GiB are free",
            where=str(plan.folder.path.parent),
            fix=f"free some space, or --set save.keep={plan.preset.save.fewest}",
            exit_code=ExitCode.ENVIRONMENT,
        )


def without_rows(document: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict to be sent: of its findings nothing that could quote a row or name a folder."""
    findings = [
        {"id": one["id"], "severity": one["severity"], "message": _QUOTES.sub("", one["message"])}
        for one in document["findings"]
    ]
    return {**document, "model": Path(document["model"]).name, "findings": findings}


def never_rehearsed(plan: Plan, rehearsals: Path) -> Iterator[Finding]:
    """A hint before a long run of a preset that went well in no rehearsal on this machine."""
    result, foreign = plan.forecast, plan.placement.on_cpu and not plan.accelerator.on_cpu
    if result is None or result.total_s is None or foreign:
        return
    hours, name = result.total_s.typical / 3600, plan.document.name
    if hours <= _LONG_H or plan.placement.world_size > plan.placement.ranks:
        return
    wanted = {"ok": True, "preset": name, "machine": platform.node()}
    for file in rehearsals.glob(f"*/{VERDICT}"):
        known = files.read_json_object(file) or {}
        if wanted.items() <= known.items():
            return
    yield Finding(
        "never-rehearsed",
        f"{name} was never rehearsed on this machine, and the run takes about {hours:.0f} h",
        fix=f"iisft rehearse --preset {shell_word(name)}",
        severity="info",
    )
