"""Greedy answers of a run's model to staged rows, in batches, one message per finished batch.

Runs in the training interpreter (see run_model.py for the protocol). The specification also
has: {"data": {"folder", "name", "file"}, "count": rows asked for, "batch_size",
"max_new_tokens", "jobs": [{"which", "adapter", "done": [row numbers]}]}; every job after the first
swaps in another adapter.

Rows with answers of about the same length share a batch, so that few wait for one, and the longest
come first, so that memory runs out at once or never. The batches depend on the rows alone: after a
kill the same ones follow.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from run_model import Link, agreed, is_out_of_memory, load, stop_ids, swap_adapter
from transformers import GenerationConfig

# reading this much of a prompt takes about as long as one step of an answer
PROMPT_TOKENS_PER_STEP = 64


@dataclass
class Row:
    """One row of the data: prompt and reference, as text and as tokens.

    `asked` are the messages of the prompt as a chat template takes them, None for a row with tools.
    """

    number: int
    ids: list[int]
    text: str
    reference: str | None
    reference_ids: list[int]
    asked: list[dict[str, str]] | None = None

    @property
    def reference_tokens(self) -> int:
        return len(self.reference_ids)


def read_rows(engine: Any, data: dict[str, str], count: int) -> list[Row]:
    """The first `count` rows, with LLaMA-Factory's own prompts, never cut."""
    import json

    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments

    (attributes,) = get_dataset_list([data["name"]], data["folder"])
    convert = get_dataset_converter(attributes.formatting, attributes, DataArguments())
    tokenizer, template = engine.tokenizer, engine.template
    rows = []
    with Path(data["file"]).open(encoding="utf-8") as stream:
        for number, line in zip(range(1, count + 1), stream, strict=False):
            example = convert(json.loads(line))
            # ranking data has two responses (data/converter.py): the chosen one is first
            answer = example["_response"][:1] or [{"role": "assistant", "content": ""}]
            messages = example["_prompt"] + answer
            ids, reference_ids = template.encode_oneturn(
                tokenizer, messages, example["_system"], example["_tools"]
            )
            reference = answer[0]["content"] if example["_response"] else None
            text = tokenizer.decode(ids, skip_special_tokens=False)
            rows.append(Row(number, ids, text, reference, reference_ids, as_asked(example)))
    return rows


def as_asked(example: dict[str, Any]) -> list[dict[str, str]] | None:
    """A converted row's prompt as messages for a chat template."""
    turns = [{"role": one["role"], "content": one["content"]} for one in example["_prompt"]]
    if example["_tools"] or any(one["role"] not in ("user", "assistant") for one in turns):
        return None
    system = example["_system"]
    return [{"role": "system", "content": system}, *turns] if system else turns


def in_batches(rows: list[Row], size: int) -> list[list[Row]]:
    """Batches of rows of similar length, the longest first."""

    def length(row: Row) -> tuple[int, int, int]:
        answer = round(4 * math.log2(row.reference_tokens + 1)) if row.reference is not None else 0
        return -answer, -len(row.ids), row.number

    ordered = sorted(rows, key=length)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def work(batch: list[Row]) -> float:
    """How long a batch takes, in decoding steps, estimated from its references."""
    prompts = sum(len(row.ids) for row in batch) / PROMPT_TOKENS_PER_STEP
    return max((row.reference_tokens for row in batch), default=0) + prompts


@torch.inference_mode()
def generate(engine: Any, batch: list[Row], limit: int) -> list[list[int]]:
    """New tokens of each row, one list per row."""
    pad, width = engine.tokenizer.pad_token_id, max(len(row.ids) for row in batch)
    # padding on the left: the new tokens follow directly after the prompt
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in batch])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in batch])
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=stop_ids(engine),
        pad_token_id=pad,
        use_cache=True,
    )
    device = engine.model.device
    out = engine.model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
    )
    return out[:, width:].tolist()


def answers(engine: Any, batch: list[Row], max_new_tokens: int) -> Iterator[dict[str, Any]]:
    """Finished rows of a batch.

    A batch that doesn't fit into memory is halved; a single row that doesn't is an error.
    """
    context = getattr(engine.model.config, "max_position_embeddings", None) or sys.maxsize
    fitting = [row for row in batch if len(row.ids) < context]
    for row in batch:
        if len(row.ids) >= context:
            yield failed(
                row, f"the prompt has {len(row.ids)} tokens, the model's context ends at {context}"
            )
    if not fitting:
        return
    limit = min(max_new_tokens, context - max(len(row.ids) for row in fitting))
    try:
        generated = generate(engine, fitting, limit)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        generated = None
    if generated is not None:
        for row, ids in zip(fitting, generated, strict=True):
            yield finished(engine, row, ids)
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(fitting) == 1:
        yield failed(fitting[0], f"out of memory with a prompt of {len(fitting[0].ids)} tokens")
        return
    print(
        f"out of memory with {len(fitting)} rows at once: half of them at a time",
        file=sys.stderr,
        flush=True,
    )
    half = len(fitting) // 2
    yield from answers(engine, fitting[:half], max_new_tokens)
    yield from answers(engine, fitting[half:], max_new_tokens)


def finished(engine: Any, row: Row, ids: list[int]) -> dict[str, Any]:
    stops = set(stop_ids(engine))
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[: end + 1]
    return line(
        row,
        prediction=engine.tokenizer.decode(kept, skip_special_tokens=True),
        tokens=len(kept),
        stop="length" if end is None else "eos",
    )


def failed(row: Row, error: str) -> dict[str, Any]:
    return line(row, prediction="", tokens=0, stop=None, error=error)


def line(
    row: Row, *, prediction: str, tokens: int, stop: str | None, error: str | None = None
) -> dict[str, Any]:
    return {
        "row": row.number,
        "prompt": row.text,
        "reference": row.reference,
        "prediction": prediction,
        "prompt_tokens": len(row.ids),
        "tokens": tokens,
        "stop": stop,
        "error": error,
    }


def do_job(
    link: Link, engine: Any, spec: dict[str, Any], job: dict[str, Any], rows: list[Row]
) -> None:
    done = set(job["done"])
    batches = [
        [row for row in batch if row.number not in done]
        for batch in in_batches(rows, spec["batch_size"])
    ]
    batches = [batch for batch in batches if batch]
    total, finished_work = sum(map(work, batches)), 0.0
    link.send(kind="job", which=job["which"])
    for batch in batches:
        lines = list(answers(engine, batch, spec["max_new_tokens"]))
        finished_work += work(batch)
        link.send(kind="rows", rows=lines, share=finished_work / total)


def main() -> None:
    link = Link()
    spec = link.receive()
    engine = load(spec).engine
    agreed(link, engine)
    rows = read_rows(engine, spec["data"], spec["count"])
    for number, job in enumerate(spec["jobs"]):
        if number:
            swap_adapter(engine.model, job["adapter"])
        do_job(link, engine, spec, job, rows)
    link.send(kind="end")


if __name__ == "__main__":
    main()
