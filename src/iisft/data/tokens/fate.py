"""What becomes of one row under a limit: the tokens it has, and those that LLaMA-Factory would
leave of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iisft.data.tokens.tokenization import Pairs, Tokenization
from iisft.llamafactory import templates, truncation
from iisft.llamafactory.turns import Options


@dataclass(frozen=True, slots=True)
class Fate:
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


_LIMITING = (*Options.__dataclass_fields__, "packing", "neat_packing", "train_on_prompt")


class Limit:
    """cutoff_len under one tokenization: `cutoff_len` as the preset has it, `room` what packing
    leaves of it.

    `extra`: the arguments of the `llamafactory:` section that take part.
    """

    def __init__(self, tokens: Tokenization, cutoff_len: int, extra: Mapping[str, Any]) -> None:
        self.tokens = tokens
        self.cutoff_len = cutoff_len
        self.room = truncation.effective_cutoff(cutoff_len, extra)
        self.extra = {name: value for name, value in extra.items() if name in _LIMITING}
        self._extra = int(tokens.template.efficient_eos)
        self._ends = templates.ends_answers(tokens.template)
        self._labels = truncation.Labels(
            efficient_eos=tokens.template.efficient_eos,
            mask_history=tokens.options.mask_history,
            train_on_prompt=bool(extra.get("train_on_prompt")),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what is cut of a row."""
        return self.tokens.identity | {"cutoff_len": self.room}

    @property
    def labels(self) -> truncation.Labels:
        """Which tokens of a row are trained on."""
        return self._labels

    def total(self, pairs: Pairs) -> int:
        """Tokens of a whole row. A row of at most `room` tokens loses nothing."""
        return sum(question + answer for question, answer in pairs) + self._extra

    def fate(self, pairs: Pairs) -> Fate:
        """What is left of a row with these tokens."""
        prompt, answer = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        if prompt + answer + self._extra <= self.room:
            trained = self._labels.count(pairs)
            return Fate(prompt, answer, prompt, answer, self._extra, False, trained)
        kept = truncation.kept_lengths(
            pairs,
            self.room,
            efficient_eos=self.tokens.template.efficient_eos,
            mask_history=self.tokens.options.mask_history,
        )
        eos_lost = self._ends and any(
            left < said - self.tokens.tokens_after_end
            for (_, said), (_, left) in zip(pairs, kept, strict=True)
        )
        kept_prompt, kept_answer = sum(pair[0] for pair in kept), sum(pair[1] for pair in kept)
        trained = self._labels.count(kept)
        return Fate(prompt, answer, kept_prompt, kept_answer, self._extra, eos_lost, trained)
