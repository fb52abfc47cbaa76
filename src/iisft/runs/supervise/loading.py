"""What is looked at once, between a trainer's start and its first step: the adapter and the tokens
of its first batch, the rows that come twice, and what the libraries warned of.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from iisft import files
from iisft.errors import Finding
from iisft.llamafactory.library_warnings import LIBRARY_WARNING, telling
from iisft.models.folder import adapter
from iisft.models.folder.known import ends_of
from iisft.runs.record import given_cards
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.proof import Expected
from iisft.runs.record.run_record import RunRecord

_LONGEST_WARNING = 300
_EQUAL = "those of the account"
_NEW_END = re.compile(r"new PAD/BOS/EOS tokens.*'eos_token_id': (\d{1,9})\b")


def first_tokens(
    folder: RunFolder, record: RunRecord, proofs: Mapping[int, Mapping[str, Any]]
) -> tuple[list[str], str]:
    """Differences between the tokens of each rank's first batch and the account's own, as
    sentences; and in words what was compared.
    """
    from iisft.data.tokens.first_batch import NotCompared, strangers  # loads a tokenizer

    found = []
    try:
        if not record.data:
            raise NotCompared("the run has no rows of its own")
        data = record.data[0]
        file = folder.dataset / f"{data.name}.jsonl"
        for rank, proof in sorted(proofs.items()):
            said = (proof.get("first_batch") or {}).get("rows")
            if not said:
                raise NotCompared("rows can't be told from their padding")
            strange = strangers(record.preset, record.model.folder, file, data.sha256, said)
            if strange:
                found.append(
                    f"rank {rank}: {len(strange)} of {len(said)} rows of the first batch are other "
                    "tokens than tokenizer.json makes of the data"
                )
    except NotCompared as why:
        return [], f"not compared: {why}"
    return found, "" if found else _EQUAL


def expected_of(folder: RunFolder, record: RunRecord, from_step: int) -> Expected:
    """What a trainer has to report that begins at this step: the GPUs that it was given, and from a
    checkpoint on, that it has loaded that one's adapter, and not the one that the run once started
    from.
    """
    proof = given_cards.expected(folder, record.proof)
    known = "adapter" in record.expected and record.setting("sharding") == "none"
    if not from_step or not known:  # an earlier iisft's view doesn't report it
        return proof
    weights = folder.output / f"checkpoint-{from_step}" / adapter.WEIGHTS
    try:
        digest = adapter.digest_of(weights)
    except (OSError, ValueError):  # the trainer deletes old ones
        return replace(proof, adapter=None)
    return replace(proof, adapter=digest)


def repeated_rows(record: RunRecord, rows: int | None) -> int:
    """Rows that every epoch trains twice, so that all ranks have as many full batches.

    (accelerate/data_loader.py, BatchSamplerShard with even_batches)
    """
    world, batch = record.world_size or 1, record.setting("train.batch_size")
    if rows is None or world < 2 or type(batch) is not int or batch < 1:
        return 0
    return 0 if record.setting("llamafactory.dataloader_drop_last") else -rows % (world * batch)


def warned(folder: RunFolder, record: RunRecord, said: Sequence[str]) -> Iterator[Finding]:
    """Warnings of the libraries that mean something, each once in the life of a run."""
    printed = "\n".join(_printed(folder, record))
    known = {event.get("message") for event in folder.read_events() if event["kind"] == "finding"}
    for text in telling(("", line) for line in said):
        message = text[:_LONGEST_WARNING]
        new_end = _NEW_END.search(text)
        if new_end and int(new_end[1]) in ends_of(record.model.folder):
            continue  # transformers compares one number with a list of them
        if message not in known and text not in printed:
            yield Finding(LIBRARY_WARNING, message, where=str(folder.train_log), severity="warn")


def _printed(folder: RunFolder, record: RunRecord) -> Iterator[str]:
    """Texts of the rows that LLaMA-Factory prints as examples: what they quote, nobody said."""
    for data in record.data:
        try:
            with files.open_regular(folder.dataset / f"{data.name}.jsonl") as stream:
                yield from _texts(orjson.loads(next(files.lines_of(stream), b"null")))
        except (OSError, ValueError):
            continue


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield " ".join(value.split())
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
