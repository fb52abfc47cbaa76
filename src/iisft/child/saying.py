"""What a model says to one request, looked at after each token: text to show, and where it ends.

Runs in the training interpreter (see serve_model.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # a character whose bytes have not all come


@dataclass
class Said:
    """One answer so far; `reason` is OpenAI's finish_reason, empty while it goes on."""

    text: str = ""
    tokens: int = 0
    shown: int = 0
    reason: str = ""


@dataclass
class Saying:
    """The answers to one request.

    Args:
        tokenizer: the run's.
        prompt: its length in tokens.
        count: how many answers.
        stop_ids: tokens that end an answer.
        stops: texts that end one, and are not part of it.
        tell: is given an answer's number and more of its text.
    """

    tokenizer: Any
    prompt: int
    count: int
    stop_ids: frozenset[int]
    stops: tuple[str, ...]
    tell: Callable[[int, str], None]
    taken_back: bool = False
    answers: list[Said] = field(init=False)

    def __post_init__(self) -> None:
        self.answers = [Said() for _ in range(self.count)]

    def end(self, rows: list[list[int]]) -> None:
        """Nothing follows: what was held back is shown."""
        self.read(rows)
        for number, said in enumerate(self.answers):
            if not said.reason:
                said.reason = "length"
                self._show(number, said, len(said.text))

    def usage(self) -> dict[str, int]:
        said = sum(one.tokens for one in self.answers)
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": said,
            "total_tokens": self.prompt + said,
        }

    def read(self, rows: list[list[int]]) -> list[bool]:
        """Take each answer's tokens so far; which answers end here."""
        for number, (said, new) in enumerate(zip(self.answers, rows, strict=True)):
            if said.reason:
                continue
            end = next((place for place, token in enumerate(new) if token in self.stop_ids), None)
            kept = new if end is None else new[: end + 1]
            said.tokens = len(kept)
            said.text = self.tokenizer.decode(kept, skip_special_tokens=True)
            places = [place for stop in self.stops if (place := said.text.find(stop)) >= 0]
            if places:
                said.text = said.text[: min(places)]
            if places or end is not None:
                said.reason = "stop"
            self._show(number, said, len(said.text) if said.reason else self._sure(said.text))
        return [self.taken_back or bool(said.reason) for said in self.answers]

    def _sure(self, text: str) -> int:
        """How much of an unfinished answer will stay as it is."""
        text = text.rstrip(INCOMPLETE)
        beginnings = (
            length
            for stop in self.stops
            for length in range(1, len(stop))
            if text.endswith(stop[:length])
        )
        return len(text) - max(beginnings, default=0)

    def _show(self, number: int, said: Said, upto: int) -> None:
        if upto > said.shown:
            self.tell(number, said.text[said.shown : upto])
            said.shown = upto
