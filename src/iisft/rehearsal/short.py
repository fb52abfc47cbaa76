"""The short run that stands for a long one: its plan, and the rows that it takes.

Everything that decides what a step computes stays as the long run has it: the view, the arguments,
the ranks. Other are how many steps there are, when they are saved and evaluated, and the rows: the
longest first, because memory is largest there, then some of all lengths, because time is taken
there.
"""

import hashlib
import math
import random
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import orjson

from iisft import files, notices
from iisft.child.constants_iisft import REHEARSED_KEY
from iisft.data.stage.fitting import apply
from iisft.data.tokens import lengths
from iisft.data.tokens.target import limit_of
from iisft.errors import InputError
from iisft.llamafactory.arguments import REHEARSED, compile_arguments, is_packed
from iisft.models.view.build import with_step
from iisft.presets.schema import Preset
from iisft.runs.plan.datasets import RunDataset
from iisft.runs.plan.plan import Plan
from iisft.runs.record.folder import RunFolder

# AdamW's state is made in the first step, so that the second needs the most.
LONGEST_STEPS = 2
CHECKPOINT = 4
KILLED_AFTER = 6  # the second step after the checkpoint shows the optimizer's state as well
STEPS = 7  # fewer than two checkpoints' or evaluations' distance
_LONGEST_S = 600.0  # as planned for all steps; longer ones accumulate less
_FEWEST_ACCUMULATED = 2  # with one there are no accumulated gradients in memory
_EVALUATED_BATCHES = 4
_RESTARTS = 3


def short_of(plan: Plan, rehearsals: Path, rows: Path) -> Plan:
    """The plan of the rehearsal. Its rows are written into the folder `rows`.

    Raises:
        OSError: the rows can't be read or written.
    """
    preset, ranks = _preset(plan), plan.placement.world_size
    folder = RunFolder(rehearsals / plan.folder.id)
    arguments = compile_arguments(
        preset,
        model=folder.model,
        dataset_dir=folder.dataset,
        output_dir=folder.output,
        on_cpu=plan.placement.on_cpu,
    )
    batch = preset.global_batch(ranks)
    trained, *evaluated = plan.datasets
    chosen = [
        _choose(plan, trained, STEPS * batch * _rows_in_one(plan), LONGEST_STEPS * batch, rows)
    ]
    for dataset in evaluated:
        each = preset.train.batch_size * ranks
        count = min(dataset.rows, _EVALUATED_BATCHES * each)
        chosen.append(_choose(plan, dataset, count, min(count, each), rows))
    assert plan.view is not None
    return replace(
        plan,
        loaded=replace(plan.loaded, preset=preset),
        folder=folder,
        datasets=tuple(chosen),
        train_yaml=arguments | REHEARSED,
        view=with_step(plan.view, {REHEARSED_KEY: KILLED_AFTER}),
        tokens=None,
    )


def evaluates(preset: Preset) -> bool:
    """Whether the long run evaluates on its way."""
    return preset.data.eval is not None and preset.save.eval_every_steps is not None


def _preset(plan: Plan) -> Preset:
    preset = plan.preset
    train, save, watch = preset.train, preset.save, preset.watch
    return preset.model_copy(
        update={
            "train": train.model_copy(
                update={"epochs": 1.0, "max_steps": STEPS, "accumulation": _accumulation(plan)}
            ),
            "save": save.model_copy(
                update={
                    "every_steps": CHECKPOINT,
                    "eval_every_steps": CHECKPOINT if evaluates(preset) else None,
                }
            ),
            "watch": watch.model_copy(update={"restarts": max(watch.restarts, _RESTARTS)}),
            # nobody is told that the trainer was killed: that is what is rehearsed
            "notify": [],
            "env": preset.env | {notices.VARIABLE: ""},
        }
    )


def _accumulation(plan: Plan) -> int:
    """The preset's, or less where the steps would take long: a micro-batch more changes neither the
    memory nor what is computed, and time is in proportion.
    """
    own, planned = plan.preset.train.accumulation, plan.forecast and plan.forecast.step_s
    if not planned:
        return own
    again = KILLED_AFTER - CHECKPOINT
    fitting = int(own * _LONGEST_S / (planned.typical * (STEPS + again)))
    return min(own, max(_FEWEST_ACCUMULATED, fitting))


def _rows_in_one(plan: Plan) -> int:
    """How many rows packing makes one of."""
    result = plan.forecast
    packs = result.workload.packs if result and is_packed(plan.preset) else None
    return math.ceil(plan.datasets[0].rows / packs) if packs else 1


def _choose(plan: Plan, dataset: RunDataset, count: int, longest: int, place: Path) -> RunDataset:
    """So many rows of a dataset, the longest of all first; a row may come twice."""
    tokens = _tokens(plan, dataset)
    by_length = sorted(tokens, key=lambda number: -tokens[number])
    others = count - longest
    first = [by_length[i % len(by_length)] for i in range(longest)]
    rest = [by_length[(2 * i + 1) * len(by_length) // (2 * others)] for i in range(others)]
    random.Random(plan.preset.train.seed).shuffle(rest)
    lines = _lines(dataset, {*first, *rest})
    content = b"".join(lines[number] for number in (*first, *rest))
    file = place / f"{dataset.name}.jsonl"
    files.write_bytes_atomically(file, content)
    digest = hashlib.sha256(content).hexdigest()
    return replace(dataset, file=file, rows=count, sha256=digest, changes=None, parts=())


def _tokens(plan: Plan, dataset: RunDataset) -> Mapping[int, int]:
    """Tokens of every row that the run trains on, by its number; bytes where they can't be
    counted.
    """
    left_out = dataset.changes.left_out if dataset.changes else frozenset()
    try:
        limit = limit_of(plan.preset, plan.model_folder)
    except InputError:  # a template that iisft can't count, which the plan has said
        with files.open_regular(dataset.file) as stream:
            sizes = {number: len(line) for number, line in enumerate(stream, 1)}
    else:
        found = lengths.of_file(dataset.file, files.sha256_of(dataset.file), limit.tokens)
        sizes = {
            number: min(limit.total(pairs), limit.room) for number, pairs in enumerate(found, 1)
        }
    return {number: size for number, size in sizes.items() if number not in left_out}


def _lines(dataset: RunDataset, wanted: Collection[int]) -> dict[int, bytes]:
    cuts = dataset.changes.cuts if dataset.changes else {}
    found = {}
    with files.open_regular(dataset.file) as stream:
        for number, line in enumerate(stream, 1):
            if number in wanted:
                cut = cuts.get(number)
                whole = line if cut is None else orjson.dumps(apply(orjson.loads(line), cut))
                found[number] = whole.rstrip(b"\n") + b"\n"
    return found
