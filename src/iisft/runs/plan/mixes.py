"""Several staged datasets as the one that a run trains on or evaluates."""

from collections.abc import Sequence
from typing import Any

from iisft.data.stage import mixing
from iisft.errors import Finding, IisftError
from iisft.presets.schema import Preset
from iisft.runs.plan import known_rows
from iisft.runs.plan.datasets import Part, RunDataset


def of_parts(
    findings: list[Finding],
    preset: Preset,
    name: str,
    parts: Sequence[tuple[RunDataset, str]],
) -> list[RunDataset]:
    """The dataset `name` of checked ones, each with its digest as staged; none where they can't be
    mixed, with the finding why.
    """
    data = preset.data
    is_trained = name == data.trained
    mix = data.mix if is_trained else None
    if len(parts) == 1 and not mix:
        return [parts[0][0]]
    if mix and data.wrong_mix:  # a rule has said so
        return []
    if not all(part.rows for part, _ in parts):  # and a finding that every row is left out
        return []
    try:
        available = {part.name: part.rows for part, _ in parts}
        counts = mixing.counts(available, mix, repeat=data.repeat and is_trained)
        drawn = [mixing.Drawn(part, counts[part.name], part.changes) for part, _ in parts]
        made = mixing.mixed(name, drawn, preset.train.seed if is_trained else None)
    except IisftError as error:
        findings.append(error.finding)
        return []
    lengths = [part.longest for part, _ in parts]
    mixed = RunDataset(
        name,
        made.file,
        made.rows,
        made.sha256,
        made.keys,
        made.source,
        longest=max(filter(None, lengths)) if all(lengths) else None,
        parts=tuple(Part(part, counts[part.name], digest) for part, digest in parts),
    )
    findings.append(_said(mixed, trained=is_trained))
    return [mixed]


def account(datasets: Sequence[RunDataset], trained: str) -> list[dict[str, Any]]:
    """The rows of a run by the dataset that they come from."""
    return [
        {
            "name": part.dataset.name,
            "for": "training" if dataset.name == trained else "evaluation",
            "rows": part.count,
            "of": part.dataset.rows,
            "share": round(part.count / max(dataset.rows, 1), 6),
            "tokens": span and round(span.typical * part.count),
        }
        for dataset in datasets
        for part in dataset.parts or (Part(dataset, dataset.rows, dataset.sha256),)
        for span in (known_rows.row_tokens(part.dataset),)
    ]


def _said(mixed: RunDataset, *, trained: bool) -> Finding:
    each = ", ".join(
        f"{part.count:,} of {part.dataset.rows:,} rows of {part.dataset.name} "
        f"({100 * part.count / mixed.rows:.2f} %)"
        for part in mixed.parts
    )
    use, key = ("trained", "data.name") if trained else ("evaluated", "data.eval")
    return Finding("data-mixed", f"{mixed.rows:,} rows are {use}: {each}", key, severity="info")
