"""What a run trains on: staged rows as they are, or fitted again for the preset's own model,
template and cutoff_len.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iisft import files
from iisft.data.stage import overlong
from iisft.data.stage.overlong import Changes, Survey
from iisft.data.stage.policy import damage_finding, unfit_findings
from iisft.data.stage.staged import other_thoughts
from iisft.data.stage.staging import REPORT, StagedDataset
from iisft.data.tokens.counting import unrenderable_finding
from iisft.data.tokens.limit import Limit
from iisft.data.tokens.target import limit_of
from iisft.errors import Finding, IisftError, InputError
from iisft.llamafactory import dataset_info
from iisft.llamafactory.templates import Template
from iisft.llamafactory.turns import Options
from iisft.presets.schema import Preset
from iisft.presets.sections import Overlong
from iisft.runs.record.run_record import DatasetRecord

Progress = Callable[[int, int], None]
"""Called with the rows counted so far and the rows in all."""


@dataclass(frozen=True)
class RunDataset:
    """One dataset of a run: `file` has its rows, `changes` (if any) are applied when the run's
    folder is made.

    `rows` and `sha256` are those that are trained on; the digest of changed rows is known once they
    are written. `longest` is the longest row's tokens, where they were counted. `parts` are what it
    is mixed of.
    """

    name: str
    file: Path
    rows: int
    sha256: str
    keys: tuple[str, ...]
    source: str
    changes: Changes | None = None
    longest: int | None = None
    parts: "tuple[Part, ...]" = ()

    def as_record(self) -> DatasetRecord:
        """For run.json; `fitted` says what the rows were fitted to for this run."""
        fitted: dict[str, Any] | None = None
        if self.changes is not None:
            cuts, left_out = len(self.changes.cuts), len(self.changes.left_out)
            fitted = {
                "overlong": self.changes.policy,
                "shortened": cuts,
                "left_out": left_out,
                **self.changes.limit,
            }
        return DatasetRecord(
            name=self.name,
            rows=self.rows,
            sha256=self.sha256,
            source=self.source,
            fitted=fitted,
            parts=tuple(part.as_json() for part in self.parts),
        )


@dataclass(frozen=True)
class Part:
    """A staged dataset in a mix: `count` of its rows, which have this digest as staged."""

    dataset: RunDataset
    count: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        record = self.dataset.as_record().as_json()
        return record | {"rows": self.count, "of": self.dataset.rows, "sha256": self.sha256}


def prepare(
    findings: list[Finding],
    preset: Preset,
    staged: StagedDataset,
    model: Path | None,
    progress: Progress | None = None,
) -> RunDataset:
    """Check a staged dataset against the preset's real tokenizer, and decide what the run trains
    on.

    `model` is None when there is no sound model folder, which is a finding of its own; then nothing
    is counted.
    """
    dataset = RunDataset(
        staged.name, staged.file, staged.rows, staged.sha256, staged.keys, staged.source
    )
    if model is None:
        return dataset
    try:
        limit = limit_of(preset, model)
        findings += _thoughts(preset, dataset, limit.tokens.template)
        return _prepare(findings, preset, staged, dataset, limit, progress)
    except InputError as error:
        findings.append(_uncounted(error, preset.data.overlong))
    except OSError as error:
        findings.append(
            Finding("data-unreadable", f"can't be read: {error.strerror}", where=str(staged.folder))
        )
    return dataset


def _thoughts(preset: Preset, dataset: RunDataset, template: Template) -> list[Finding]:
    marks = template.thought_marks
    if not marks or not (count := other_thoughts(dataset.file, marks)):
        return []
    thinks = Options.of(preset.llamafactory).thinks
    return [
        Finding(
            "thought-form",
            f"{count:,} rows of {dataset.name} have a thought in another form than template "
            f"{template.name} writes it: LLaMA-Factory trains it as a part of the answer"
            + ("" if thinks else ", though thinking is off"),
            where=str(dataset.file),
            fix=f"write thoughts as {'...'.join(marks)!r}",
            severity="warn",
        )
    ]


def _prepare(
    findings: list[Finding],
    preset: Preset,
    staged: StagedDataset,
    dataset: RunDataset,
    limit: Limit,
    progress: Progress | None,
) -> RunDataset:
    before = staged.record.get("policy") or {}
    originals = staged.record.get("originals")
    policy = preset.data.overlong
    if originals and policy not in ("fit", "drop"):
        # fail and allow say nothing against rows that were fitted by hand
        policy = before["overlong"]
    if originals and (before["limit"], before["overlong"]) == (limit.identity, policy):
        return dataset  # fitted for exactly this
    if originals:
        dataset = _as_they_came(dataset, staged, originals)
        why = _difference(
            {**before["limit"], "policy": before["overlong"]}, {**limit.identity, "policy": policy}
        )
        text = (
            f"{staged.name} was staged for another {why}: its original rows are taken, for this "
            "run alone"
        )
        findings.append(Finding("data-refitted", text, where=str(dataset.file), severity="info"))
    told = None if progress is None else lambda done: progress(done, dataset.rows)
    survey = overlong.survey(dataset.file, dataset.sha256, limit, told)
    dataset = replace(dataset, longest=survey.longest)
    if survey.refused:
        refusal = unrenderable_finding(survey.uncounted, *survey.refused)
        findings.append(replace(refusal, where=str(dataset.file)))
    if not survey.damaged:
        return dataset
    if policy in ("fail", "allow"):
        finding = damage_finding(staged.name, survey.rows, survey.counts, limit.cutoff_len)
        findings.append(finding if policy == "fail" else replace(finding, severity="warn", fix=""))
        return dataset
    changes = overlong.changes(dataset.file, dataset.sha256, limit, survey.damaged, policy, told)
    refused = changes.unfit and not before.get("drop_unfit")
    findings += (
        [replace(one, where=str(dataset.file)) for one in unfit_findings(changes.unfit, limit)]
        if refused
        else [_fitted(dataset.name, survey, changes, limit)]
    )
    if len(changes.left_out) == dataset.rows:
        findings.append(
            Finding("data-empty", f"no row of {dataset.name} is left", fix="raise train.cutoff_len")
        )
    return replace(dataset, rows=dataset.rows - len(changes.left_out), sha256="", changes=changes)


def _as_they_came(
    dataset: RunDataset, staged: StagedDataset, originals: Mapping[str, Any]
) -> RunDataset:
    return replace(
        dataset,
        file=staged.folder / originals["file"],
        rows=originals["rows"],
        sha256=originals["sha256"],
        keys=tuple(originals["keys"]),
    )


def _fitted(name: str, survey: Survey, changes: Changes, limit: Limit) -> Finding:
    parts = [f"{len(changes.cuts):,} shortened"] if changes.cuts else []
    parts += [f"{len(changes.left_out):,} left out"] if changes.left_out else []
    return Finding(
        "data-fitted",
        f"{len(survey.damaged):,} of {survey.rows:,} rows of {name} are longer than cutoff_len "
        f"{limit.cutoff_len}: "
        f"{', '.join(parts)} in this run's own copy (data.overlong: {changes.policy})",
        severity="info",
    )


def write_into(folder: Path, prepared: list[RunDataset]) -> list[RunDataset]:
    """Make `folder` the dataset_dir of a run, and return the datasets with the digests of what lies
    there.

    Unchanged rows are hard links (copies where links can't be made).

    Raises:
        OSError: the disk is full or read-only.
    """
    entries, written = {}, []
    for dataset in prepared:
        target = folder / f"{dataset.name}.jsonl"
        if dataset.changes:
            rows, sha256 = overlong.write(dataset.file, target, dataset.changes)
            overlong.write_report(folder / f"{dataset.name}.{REPORT}", dataset.changes)
            dataset = replace(dataset, rows=rows, sha256=sha256)
        else:
            try:
                os.link(dataset.file, target)
            except OSError:
                shutil.copy2(dataset.file, target)
        for part in dataset.parts:
            if part.dataset.changes:
                report = folder / f"{part.dataset.name}.{REPORT}"
                overlong.write_report(report, part.dataset.changes)
        entries[dataset.name] = dataset_info.entry(target.name, dataset.keys)
        written.append(dataset)
    files.write_text_atomically(folder / dataset_info.FILE_NAME, dataset_info.render(entries))
    return written


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The names under which two identities differ, for people."""
    return ", ".join(
        sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    )


def _uncounted(error: IisftError, policy: Overlong) -> Finding:
    """A template or tokenizer that can't be counted is no error; one that is broken is."""
    if error.code not in ("template-uncounted", "tokens-uncounted", "tokenizer-missing"):
        return error.finding
    return replace(
        error.finding,
        id="overlong-unchecked",
        message=f"whether rows are cut was not checked: {error.message}",
        severity="info" if policy == "allow" else "warn",
    )
