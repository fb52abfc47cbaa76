"""The overlong policy as a step of staging: every row is counted, then passed on, shortened or left
out.
"""

import json
import shutil
import statistics
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iisft import files
from iisft.data.read.conversation import from_row
from iisft.data.read.rows import Row
from iisft.data.read.source import Progress, open_source
from iisft.data.stage.fitting import Fitter, apply
from iisft.data.stage.staging import REPORT, Policy
from iisft.data.tokens import counting
from iisft.data.tokens.account import Account
from iisft.data.tokens.limit import Limit, RowTokens
from iisft.errors import Finding
from iisft.presets.sections import Overlong

_SHOWN_UNFIT = 20


class OverlongStep:
    """One staging under one policy. `account` is that of the rows as they came."""

    def __init__(
        self,
        limit: Limit,
        policy: Overlong,
        *,
        batch_size: int = 1,
        drop_unfit: bool = False,
        exact: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.account = Account(limit.cutoff_len, limit.room, batch_size=batch_size)
        self._limit, self._policy, self._drop_unfit = limit, policy, drop_unfit
        self._batch_size, self._exact, self._progress = batch_size, exact, progress
        self._fitter = Fitter(limit, from_row)
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the step
        self._taken = array("I")  # tokens taken out of each shortened row
        self._unfit: list[int] = []
        self.dropped = 0

    @property
    def as_policy(self) -> Policy:
        """What staging takes."""
        identity = {
            "overlong": self._policy,
            "limit": self._limit.identity,
            "drop_unfit": self._drop_unfit,
        }
        changes = self._policy in ("fit", "drop")
        return Policy(identity, self._apply, self._for_record, self._findings, changes_rows=changes)

    @property
    def shortened(self) -> int:
        return len(self._taken)

    @property
    def unfit(self) -> int:
        return len(self._unfit)

    def _apply(self, rows: Iterable[Row]) -> Iterator[Row]:
        if self._policy == "allow":
            yield from rows
            return
        for row, pairs in counting.counted(rows, self._limit):
            row_tokens = self._limit.cut(pairs) if pairs else None
            why = "" if pairs else counting.why_not(row, self._limit)
            counting.add(self.account, row, row_tokens, why=why)
            if row_tokens is not None and row_tokens.damaged:
                yield from self._treated(row, row_tokens)
            else:
                yield row

    def _treated(self, row: Row, row_tokens: RowTokens) -> Iterator[Row]:
        if self._policy == "fail":
            yield row
        elif self._policy == "drop":
            self.dropped += 1
            self._write_report(row, what="left out", tokens=row_tokens.total)
        elif (cut := self._fitter.fit(row.value)) is None:
            self._unfit.append(row.number)
            self._write_report(
                row, what="left out: can't be shortened enough", tokens=row_tokens.total
            )
        else:
            self._taken.append(cut.tokens_before - cut.tokens_after)
            self._write_report(row, what="shortened", **cut.as_json())
            yield row._replace(value=apply(row.value, cut), raw=None)

    def _write_report(self, row: Row, **about: Any) -> None:
        self._report.write(
            json.dumps({"row": row.number, **about}, ensure_ascii=False).encode() + b"\n"
        )

    def _findings(self) -> list[Finding]:
        if self.account.refused:
            return [counting.unrenderable_finding(self.account.uncounted, *self.account.refused)]
        if self._policy == "fail" and self.account.damaged:
            about = self.account.as_json()
            return [
                damage_finding("the file", about["sample"]["of"], about, self._limit.cutoff_len)
            ]
        if self._drop_unfit:
            return []
        return unfit_findings(self._unfit, self._limit)

    def _for_record(self, staged: Path) -> dict[str, Any]:
        """The account, and for fit and drop the report beside the staged file."""
        if self._policy == "allow":
            source = open_source(staged)
            with staged.open("rb") as stream:
                rows = sum(1 for _ in stream)
            self.account = counting.account_of(
                [source],
                rows,
                self._limit,
                exact=self._exact,
                batch_size=self._batch_size,
                progress=self._progress,
            )
        record: dict[str, Any] = {
            "tokens": self.account.as_json(),
            "counted_for": {
                "model": str(self._limit.tokens.model),
                "template": self._limit.identity["template"],
                "cutoff_len": self._limit.cutoff_len,
                "llamafactory": self._limit.extra,
            },
        }
        if self._policy in ("fit", "drop"):
            record["overlong"] = {
                "shortened": self.shortened,
                "left_out": self.dropped + self.unfit,
                "report": REPORT,
            }
            record["overlong"]["tokens_taken_median"] = (
                int(statistics.median(self._taken)) if self._taken else 0
            )
            self._report.seek(0)
            with files.atomic_writer(staged.parent / REPORT) as stream:
                shutil.copyfileobj(self._report, stream)
        return record


def damage_finding(name: str, rows: int, counts: Mapping[str, int], cutoff_len: int) -> Finding:
    """The one sentence about rows that LLaMA-Factory would cut, and what to do.

    `counts` has damaged, header_lost, answer_cut and lossless_cutoff_len.
    """
    parts = [f"{counts['header_lost']:,} lose the end of the prompt with the assistant header"]
    if counts["answer_cut"]:
        parts.append(f"{counts['answer_cut']:,} a part of the answer")
    return Finding(
        "overlong",
        f"{counts['damaged']:,} of {rows:,} rows of {name} are longer than cutoff_len "
        f"{cutoff_len} and would be "
        f"damaged: {', '.join(parts)}; LLaMA-Factory says nothing",
        where="train.cutoff_len, data.overlong",
        fix="--set data.overlong=fit shortens their text; "
        f"--set train.cutoff_len={counts['lossless_cutoff_len']} cuts nothing; "
        "--set data.overlong=allow if you mean it",
    )


def unfit_findings(numbers: Sequence[int], limit: Limit) -> list[Finding]:
    """The rows that can't be shortened enough."""
    found = [
        Finding(
            "overlong-unfit",
            f"row {number} can't be shortened enough for cutoff_len {limit.cutoff_len}: what must "
            "stay whole (answer, "
            "task, metadata lines) leaves no room for its text",
            fix="data stage ... --drop-unfit leaves such rows out; or raise train.cutoff_len"
            if index == 0
            else "",
        )
        for index, number in enumerate(numbers[:_SHOWN_UNFIT])
    ]
    if len(numbers) > _SHOWN_UNFIT:
        found.append(
            Finding(
                "data-more", f"and {len(numbers) - _SHOWN_UNFIT:,} more rows that can't be fitted"
            )
        )
    return found
