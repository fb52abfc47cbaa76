"""One row as the model will see it: the template applied, and which tokens are read, trained on, or
cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from iisft.data.read.conversation import Conversation
from iisft.data.tokens.limit import Limit

Kind = Literal["read", "trained", "cut"]


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
