"""How LLaMA-Factory shortens a row to cutoff_len, and how it packs rows.

Source: infer_seqlen(), greedy_knapsack() in LLaMA-Factory 0.9.5, data/processor/processor_utils.py,
and _encode_data_example(), PackedSupervisedDatasetProcessor in data/processor/supervised.py.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from iisft.llamafactory.templates import Template
from iisft.llamafactory.turns import Options

# SFTDataCollatorWith4DAttentionMask(pad_to_multiple_of=8), train/sft/workflow.py
PADDING_MULTIPLE: Final = 8
_DECIDING = (*Options.__dataclass_fields__, "packing", "neat_packing", "train_on_prompt")
# rows that are packed among themselves: DataArguments.preprocessing_batch_size
_PACKING_BATCH = 1000


def effective_cutoff(cutoff_len: int, extra: Mapping[str, Any]) -> int:
    """The limit that really holds: `packing` takes one token of it (DataArguments,
    hparams/data_args.py).

    `extra` is a preset's `llamafactory:` section.
    """
    return cutoff_len - 1 if extra.get("packing") or extra.get("neat_packing") else cutoff_len


def kept_lengths(
    pairs: Sequence[tuple[int, int]],
    cutoff_len: int,
    *,
    efficient_eos: bool,
    mask_history: bool = False,
) -> list[tuple[int, int]]:
    """How many tokens of each question and answer are left, both cut at their ends; (0, 0) for a
    turn that is left out.

    Args:
        pairs: tokens of question and answer, turn by turn.
        cutoff_len: the limit, in tokens.
        efficient_eos: the template's one end token comes on top, after the cut.
        mask_history: the last turns are served first.
    """
    used = 1 if efficient_eos else 0
    kept = [(0, 0)] * len(pairs)
    order = range(len(pairs) - 1, -1, -1) if mask_history else range(len(pairs))
    for index in order:
        if used >= cutoff_len:
            break
        kept[index] = _shortened(*pairs[index], cutoff_len - used)
        used += sum(kept[index])
    return kept


class Cutting:
    """How rows are shortened to cutoff_len, and labelled, under a template and the arguments of a
    preset's `llamafactory:` section.

    `room` is the limit that really holds; `end_tokens` come on top of a row's turns, after the cut;
    `arguments` are those that take part.
    """

    def __init__(self, template: Template, cutoff_len: int, extra: Mapping[str, Any]) -> None:
        self.room = effective_cutoff(cutoff_len, extra)
        self.end_tokens = int(template.efficient_eos)
        self.arguments = {name: value for name, value in extra.items() if name in _DECIDING}
        self.labels = Labels(
            efficient_eos=template.efficient_eos,
            mask_history=bool(extra.get("mask_history")),
            train_on_prompt=bool(extra.get("train_on_prompt")),
        )

    def kept(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """How many tokens of each question and answer are left."""
        return kept_lengths(
            pairs,
            self.room,
            efficient_eos=self.labels.efficient_eos,
            mask_history=self.labels.mask_history,
        )


@dataclass(frozen=True, slots=True)
class Labels:
    """Which tokens of a row get a label, that is, are trained on.

    `train_on_prompt`: those of questions too. `mask_history`: those of the last answer alone. With
    `efficient_eos` the end token of each answer is the label of the first token of the next
    question.
    """

    efficient_eos: bool = False
    mask_history: bool = False
    train_on_prompt: bool = False

    def of_question(self) -> bool:
        return self.train_on_prompt

    def of_answer(self, turn: int, turns: int) -> bool:
        return not self.mask_history or turn == turns - 1

    def count(self, kept: Sequence[tuple[int, int]]) -> int:
        """Labels of a row of which so many tokens of each question and answer are left."""
        answers = kept[-1][1] if self.mask_history else sum(answer for _, answer in kept)
        if self.train_on_prompt:
            answers += sum(question for question, _ in kept)
        if not self.efficient_eos:
            return answers
        # mask_history serves the last turn first, which is then the one without such a label
        later = kept[:-1] if self.mask_history else kept[1:]
        return answers + 1 + sum(question > 0 for question, _ in later)


def _shortened(question: int, answer: int, room: int) -> tuple[int, int]:
    """A short answer stays whole, else a short question does, else both shrink in proportion."""
    if 2 * answer < room:
        limit = room
    elif 2 * question < room:
        limit = room - question
    else:
        limit = int(room * (answer / (question + answer)))
    answer = min(limit, answer)
    return min(max(room - answer, 0), question), answer


def packed_sequences(lengths: Iterable[int], cutoff_len: int) -> int:
    """How many sequences of cutoff_len tokens `packing` makes of rows with these lengths, each
    below cutoff_len.
    """
    rows = list(lengths)
    return sum(
        _packed(sorted(rows[start : start + _PACKING_BATCH]), cutoff_len - 1)
        for start in range(0, len(rows), _PACKING_BATCH)
    )


def _packed(ascending: list[int], capacity: int) -> int:
    """Greedy: into each sequence the longest row that still fits, until none does."""
    sequences = 0
    while ascending:
        room = capacity
        while (index := bisect.bisect(ascending, room) - 1) >= 0:
            room -= ascending.pop(index)
        sequences += 1
    return sequences
