"""What is known of a dataset's rows before they are trained on: how they were counted in staging,
else guesses from the bytes of the file.
"""

import math
from pathlib import Path

from iisft import files
from iisft.data.stage.staged import RECORD
from iisft.estimate.timing import Span
from iisft.presets.schema import Preset
from iisft.runs.plan.datasets import RunDataset

# UTF-8 bytes of a row's text per token of a modern vocabulary, English and Chinese alike: high,
# typical, low. Inferred.
_BYTES_PER_TOKEN = (5.0, 4.0, 3.0)
_TEMPLATE_TOKENS = 30  # roles, ends of turns, a default system prompt
_JSON_BYTES = 6  # around a key and its value


def row_tokens(dataset: RunDataset) -> Span | None:
    """Tokens of a row: as they were counted when it was staged, else guessed from the bytes of the
    staged file; in a mix, of all its rows together.
    """
    if dataset.parts:
        spans = [(row_tokens(part.dataset), part.count) for part in dataset.parts]
        known = [(span, count) for span, count in spans if span is not None]
        if len(known) < len(spans):
            return None
        low, typical, high = (
            sum(getattr(span, name) * count for span, count in known) / dataset.rows
            for name in ("low", "typical", "high")
        )
        return Span(low, typical, high)
    record = files.read_json_object(dataset.file.parent / RECORD) or {}
    counted = ((record.get("tokens") or {}).get("epoch") or {}).get("tokens")
    if isinstance(counted, int | float) and counted > 0:
        each = counted / max(dataset.rows, 1)
        return Span(each, each, each)
    try:
        size = dataset.file.stat().st_size
    except OSError:
        return None
    text = max(
        1.0, size / max(dataset.rows, 1) - sum(len(key) + _JSON_BYTES for key in dataset.keys)
    )
    low, typical, high = (_TEMPLATE_TOKENS + text / per_token for per_token in _BYTES_PER_TOKEN)
    return Span(low, typical, high)


def longest(preset: Preset, dataset: RunDataset, model: Path) -> int | None:
    """Tokens of the longest row: as counted for this run, else as counted in staging for the same
    model and template.
    """
    if dataset.longest:
        return dataset.longest
    if dataset.parts:
        return _longest_of_parts(preset, dataset, model)
    record = files.read_json_object(dataset.file.parent / RECORD) or {}
    counted_for, tokens = record.get("counted_for"), record.get("tokens")
    if not isinstance(counted_for, dict) or not isinstance(tokens, dict):
        return None
    given = str(counted_for.get("model")), counted_for.get("template")
    sample, longest = tokens.get("sample") or {}, tokens.get("lossless_cutoff_len")
    if given != (str(model), preset.model.template) or sample.get("rows") != sample.get("of"):
        return None
    return longest if isinstance(longest, int) and longest > 0 else None


def packs(preset: Preset, dataset: RunDataset) -> int | None:
    """How many rows packing makes of a dataset, as counted in staging for the same cutoff_len."""
    record = files.read_json_object(dataset.file.parent / RECORD) or {}
    try:
        tokens, limit = record["tokens"], record["counted_for"]["cutoff_len"]
        filled = 1 - float(tokens["padding"]["share_packed"])
        each = float(tokens["epoch"]["tokens"]) / (filled * limit)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    known = limit == preset.train.cutoff_len and 0 < each < dataset.rows + 1
    return math.ceil(round(each, 6)) if known else None


def trained(dataset: RunDataset) -> tuple[float | None, int | None]:
    """The share of tokens that have a label, and the most of one row, as they were counted in
    staging; None twice where not every row was.
    """
    if dataset.parts:
        return _trained_of_parts(dataset)
    counted = (files.read_json_object(dataset.file.parent / RECORD) or {}).get("tokens")
    account = counted if isinstance(counted, dict) else {}
    epoch, sample = account.get("epoch") or {}, account.get("sample") or {}
    tokens, trained, most = (epoch.get(key) for key in ("tokens", "trained", "most_trained"))
    if not (isinstance(tokens, int) and isinstance(trained, int) and isinstance(most, int)):
        return None, None
    if tokens <= 0 or sample.get("rows") != sample.get("of"):
        return None, None
    return min(1.0, trained / tokens), most


def _trained_of_parts(dataset: RunDataset) -> tuple[float | None, int | None]:
    tokens = labelled = 0.0
    most_of_all = 0
    for part in dataset.parts:
        (share, most), span = trained(part.dataset), row_tokens(part.dataset)
        if share is None or most is None or span is None:
            return None, None
        tokens += span.typical * part.count
        labelled += share * span.typical * part.count
        most_of_all = max(most_of_all, most)
    return labelled / max(tokens, 1), most_of_all


def _longest_of_parts(preset: Preset, dataset: RunDataset, model: Path) -> int | None:
    each = [longest(preset, part.dataset, model) for part in dataset.parts]
    known = [tokens for tokens in each if tokens is not None]
    return max(known) if len(known) == len(each) else None
