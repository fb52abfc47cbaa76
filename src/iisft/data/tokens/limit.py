"""What becomes of one row under a limit: the tokens it has, and those that LLaMA-Factory would
leave of it, also as text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from iisft.data.read.conversation import Conversation
from iisft.data.tokens.tokenization import Pairs, Tokenization
from iisft.llamafactory import templates, truncation

Kind = Literal["read", "trained", "cut"]


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Tokens of a row: `prompt` and `answer` uncut (all turns together), and what is kept of both.

    The answer includes its end of turn. `extra` is the end token that some templates put after the
    row. `trained` is how many tokens have a label.
    """

    prompt: int
    answer: int
    kept_prompt: int
    kept_answer: int
    extra: int
    eos_lost: bool
    trained: int

    @property
    def total(self) -> int:
        return self.prompt + self.answer + self.extra

    @property
    def kept(self) -> int:
        return self.kept_prompt + self.kept_answer + self.extra

    @property
    def header_lost(self) -> bool:
        """LLaMA-Factory cuts a prompt at its end, so any lost token of it takes the assistant
        header along.
        """
        return self.kept_prompt < self.prompt

    @property
    def answer_cut(self) -> bool:
        return self.kept_answer < self.answer

    @property
    def damaged(self) -> bool:
        return self.header_lost or self.answer_cut


class Limit:
    """cutoff_len under one tokenization: `cutoff_len` as the preset has it, `room` what packing
    leaves of it.

    `extra`: the arguments of the `llamafactory:` section that take part. `cutting` shortens rows.
    """

    def __init__(self, tokens: Tokenization, cutoff_len: int, extra: Mapping[str, Any]) -> None:
        self.tokens = tokens
        self.cutoff_len = cutoff_len
        self.cutting = truncation.Cutting(tokens.template, cutoff_len, extra)
        self.room = self.cutting.room
        self.extra = self.cutting.arguments
        self._ends = templates.ends_answers(tokens.template)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what is cut of a row."""
        return self.tokens.identity | {"cutoff_len": self.room}

    def total(self, pairs: Pairs) -> int:
        """Tokens of a whole row. A row of at most `room` tokens loses nothing."""
        return sum(question + answer for question, answer in pairs) + self.cutting.end_tokens

    def cut(self, pairs: Pairs) -> RowTokens:
        """What is left of a row with these tokens."""
        cutting, end = self.cutting, self.cutting.end_tokens
        prompt, answer = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        if prompt + answer + end <= self.room:
            return RowTokens(
                prompt, answer, prompt, answer, end, False, cutting.labels.count(pairs)
            )
        kept = cutting.kept(pairs)
        eos_lost = self._ends and any(
            left < said - self.tokens.tokens_after_end
            for (_, said), (_, left) in zip(pairs, kept, strict=True)
        )
        kept_prompt, kept_answer = sum(pair[0] for pair in kept), sum(pair[1] for pair in kept)
        trained = cutting.labels.count(kept)
        return RowTokens(prompt, answer, kept_prompt, kept_answer, end, eos_lost, trained)


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring tokens of one kind, as text."""

    kind: Kind
    text: str
    tokens: int


def render(conversation: Conversation, limit: Limit) -> list[Segment]:
    """The whole row in order; what LLaMA-Factory would cut at this limit stands where it was."""
    tokens = limit.tokens
    pairs = tokens.ids(conversation)
    kept = limit.cutting.kept([(len(question), len(answer)) for question, answer in pairs])
    labels = limit.cutting.labels
    parts: list[tuple[Kind, list[int]]] = []
    for index, ((question, answer), (of_question, of_answer)) in enumerate(
        zip(pairs, kept, strict=True)
    ):
        learnt = labels.of_answer(index, len(pairs))
        parts += [
            ("trained" if labels.of_question() else "read", question[:of_question]),
            ("cut", question[of_question:]),
            ("trained" if learnt else "read", answer[:of_answer]),
            ("cut", answer[of_answer:]),
        ]
    if limit.cutting.end_tokens and (end := tokens.end_id) is not None:
        parts.append(("trained", [end]))
    return [Segment(kind, tokens.decode(ids), len(ids)) for kind, ids in _joined(parts)]


def _joined(parts: list[tuple[Kind, list[int]]]) -> Iterator[tuple[Kind, list[int]]]:
    """Without empty parts, neighbours of one kind as one."""
    waiting: tuple[Kind, list[int]] | None = None
    for kind, ids in parts:
        known = [number for number in ids if number >= 0]
        if not known:
            continue
        if waiting and waiting[0] == kind:
            waiting[1].extend(known)
            continue
        if waiting:
            yield waiting
        waiting = (kind, known)
    if waiting:
        yield waiting
