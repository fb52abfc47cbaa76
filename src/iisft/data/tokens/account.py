"""The token account of a data set: how long its rows are, and which of them a limit
would damage.
"""

import heapq
import math
import random
from array import array
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from iisft.data.tokens.limit import RowTokens
from iisft.llamafactory import truncation

SAMPLE_ROWS = 20_000
_PERCENTILES = (50, 90, 95, 99)
_WORST_ROWS = 20
_NEAR = 3
_BINS = 12


class WorstRow(NamedTuple):
    """A damaged row, how many tokens it would lose, and the beginning of its text."""

    lost: int
    row: int
    file: str
    excerpt: str
    row_tokens: RowTokens


class Account:
    """Adds up rows. `rows_in_file` is set when the rows added are only a sample of them."""

    def __init__(self, cutoff_len: int, room: int, *, batch_size: int = 1, seed: int = 42) -> None:
        """`room` is the limit that really holds (one less under packing).

        `batch_size` decides the padding.
        """
        self.cutoff_len, self.room = cutoff_len, room
        self.rows_in_file: int | None = None
        self.uncounted = 0
        self.refused: tuple[int, str] | None = None
        self._batch_size, self._seed = batch_size, seed
        self._prompts, self._answers, self._totals, self._kept = (array("I") for _ in range(4))
        self.over_limit = self.header_lost = self.answer_cut = self.eos_lost = self.damaged = 0
        self._trained = self._most_trained = 0
        self._lost_shares = array("d")
        self._worst: list[tuple[int, int, WorstRow]] = []

    def add(self, row: int, row_tokens: RowTokens, file: str = "", excerpt: str = "") -> None:
        """Count the row with this number.

        Its file and the beginning of its text are for the list of worst rows.
        """
        self._prompts.append(row_tokens.prompt)
        self._answers.append(row_tokens.answer)
        self._totals.append(row_tokens.total)
        self._kept.append(row_tokens.kept)
        self._trained += row_tokens.trained
        self._most_trained = max(self._most_trained, row_tokens.trained)
        if row_tokens.total <= self.room:
            return
        self.over_limit += 1
        self.damaged += row_tokens.damaged
        self.header_lost += row_tokens.header_lost
        self.answer_cut += row_tokens.answer_cut
        self.eos_lost += row_tokens.eos_lost
        if row_tokens.answer_cut:
            self._lost_shares.append(1 - row_tokens.kept_answer / row_tokens.answer)
        lost = row_tokens.total - row_tokens.kept
        entry = (lost, -self.over_limit, WorstRow(lost, row, file, excerpt, row_tokens))
        if len(self._worst) < _WORST_ROWS:
            heapq.heappush(self._worst, entry)
        elif entry[:2] > self._worst[0][:2]:
            heapq.heapreplace(self._worst, entry)

    def refuse(self, row: int, why: str) -> None:
        """Count a row that LLaMA-Factory can't render; the first is kept with its reason."""
        self.uncounted += 1
        self.refused = self.refused or (row, why)

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return len(self._totals)

    @property
    def longest(self) -> int:
        """Tokens of the longest row: the smallest cutoff_len at which nothing is cut."""
        return max(self._totals, default=0) + (self.cutoff_len - self.room)

    @property
    def sampled(self) -> bool:
        return self.rows_in_file is not None and self.rows_in_file > self.rows + self.uncounted

    @property
    def error_bound(self) -> float:
        """Half the 95 % interval of a share in the worst case (one half), for a sample without
        replacement.
        """
        if not self.sampled or not self.rows:
            return 0.0
        whole = self.rows_in_file or self.rows
        return 1.96 * math.sqrt(0.25 / self.rows * (whole - self.rows) / max(whole - 1, 1))

    @property
    def worst(self) -> list[WorstRow]:
        """The rows that would lose most, the worst first."""
        return [
            worst for _, _, worst in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        ]

    def scaled(self, count: int) -> int:
        """A count of the sample as one of the whole file."""
        return (
            round(count * (self.rows_in_file or self.rows) / self.rows)
            if self.sampled and self.rows
            else count
        )

    def as_json(self) -> dict[str, Any]:
        """The keys of `data check --json`.

        Counts are those of the whole file, estimated when it was sampled.
        """
        lost = sorted(self._lost_shares)
        return {
            "cutoff_len": self.cutoff_len,
            "over_limit": self.scaled(self.over_limit),
            "header_lost": self.scaled(self.header_lost),
            "answer_cut": self.scaled(self.answer_cut),
            "eos_lost": self.scaled(self.eos_lost),
            "damaged": self.scaled(self.damaged),
            "lossless_cutoff_len": self.longest,
            "percentiles": {
                "prompt": percentiles(self._prompts),
                "answer": percentiles(self._answers),
                "total": percentiles(self._totals),
            },
            "answer_lost_share": {"median": _rank(lost, 50), "max": lost[-1] if lost else 0.0}
            if lost
            else None,
            "epoch": {
                "tokens": self.scaled(sum(self._kept)),
                "trained": self.scaled(self._trained),
                "most_trained": self._most_trained,
            },
            "padding": self._padding(),
            "histogram": self.histogram(),
            "sample": {
                "rows": self.rows,
                "of": self.rows_in_file or self.rows + self.uncounted,
                "error_bound": self.error_bound,
            },
            "uncounted": self.uncounted,
            "unrenderable": self.refused and {"row": self.refused[0], "reason": self.refused[1]},
            "worst": [
                {"file": w.file, "row": w.row, "tokens": w.row_tokens.total, "lost": w.lost}
                for w in self.worst
            ],
        }

    def histogram(
        self, part: Literal["total", "prompt", "answer"] = "total"
    ) -> list[dict[str, int]]:
        """Rows by tokens: `from` (inclusive), `to` (exclusive), `rows`.

        The last bin holds all the rest.
        """
        ordered = sorted(
            {"total": self._totals, "prompt": self._prompts, "answer": self._answers}[part]
        )
        if not ordered:
            return []
        upper = _rank(ordered, 99)
        # the limit is shown where rows reach it and it is not far from the others
        if part != "answer" and self.room <= min(ordered[-1], _NEAR * upper):
            upper = max(upper, self.room)
        width = _nice((upper - ordered[0]) / _BINS)
        start = ordered[0] // width * width
        bins = [0] * (_BINS + 2)
        for tokens in ordered:
            bins[min((tokens - start) // width, len(bins) - 1)] += 1
        while not bins[-1]:
            bins.pop()
        ends = [start + width * (index + 1) for index in range(len(bins))]
        ends[-1] = max(ends[-1], ordered[-1] + 1)
        return [
            {"from": start + width * index, "to": end, "rows": rows}
            for index, (end, rows) in enumerate(zip(ends, bins, strict=True))
        ]

    def _padding(self) -> dict[str, float]:
        """Share of the computed tokens that is padding: in shuffled batches, and with `packing:
        true`.
        """
        kept = list(self._kept)
        random.Random(self._seed).shuffle(kept)
        padded, multiple = 0, truncation.PADDING_MULTIPLE
        for start in range(0, len(kept), self._batch_size):
            batch = kept[start : start + self._batch_size]
            padded += len(batch) * (-(-max(batch) // multiple) * multiple)
        fitting = [length for length in self._kept if length < self.cutoff_len]
        packed = truncation.packed_sequences(fitting, self.cutoff_len) * self.cutoff_len
        return {
            "share": 1 - sum(kept) / padded if padded else 0.0,
            "share_packed": 1 - sum(fitting) / packed if packed else 0.0,
        }


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """Nearest-rank percentiles, minimum and maximum."""
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {f"p{percent}": _rank(ordered, percent) for percent in _PERCENTILES}
    return {"min": ordered[0], **ranks, "max": ordered[-1]}


def _rank(ordered: Sequence[Any], percent: int) -> Any:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _nice(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ... above."""
    power = 10 ** int(math.log10(max(width, 1)))
    return int(next(step * power for step in (1, 2, 5, 10) if step * power >= width))
