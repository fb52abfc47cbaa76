"""LLaMA-Factory's prompt templates as data: what stands around each turn, and which tokens end it.

Nothing of it is restated here: catalogue.py reads them from LLaMA-Factory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

CONTENT: Final = "{{content}}"
DEFAULT_EOS: Final = "<|endoftext|>"  # for tokenizers without an end token


@dataclass(frozen=True, slots=True)
class Special:
    """One token of its own: the tokenizer's `bos` or `eos` (left out where it has none), or a
    `token` by name.
    """

    kind: Literal["bos", "eos", "token"]
    name: str = ""


BOS: Final = Special("bos")
EOS: Final = Special("eos")
Slots = tuple[str | Special, ...]
Piece = str | Special


@dataclass(frozen=True, slots=True)
class Template:
    """One template.

    `user` and the others: texts with CONTENT in them and special tokens; each text is tokenised on
    its own. `family` is the class that renders it. `tool_format` writes descriptions of tools
    (None: the slots `tools` do), `call_format` the calls. `replace_eos`: the first stop word
    becomes the tokenizer's end token. `efficient_eos`: one end token is put after the whole row,
    past the truncation, instead of after each answer. `needs_processor`: rows can't even be
    tokenised for a model that has no image or audio processor.
    """

    name: str
    family: str
    user: Slots
    assistant: Slots
    system: Slots
    function: Slots
    observation: Slots
    prefix: Slots
    tools: Slots
    tool_format: str | None
    call_format: str
    default_system: str
    stop_words: tuple[str, ...]
    thought_words: tuple[str, str]
    tool_call_words: tuple[str, str]
    efficient_eos: bool
    replace_eos: bool
    needs_processor: bool
    tool_prompts: Mapping[str, str] = field(repr=False, compare=False)

    @property
    def system_in_user(self) -> bool:
        """The system text is the beginning of the first user text."""
        return self.family == "Llama2Template"

    @property
    def reasons(self) -> bool:
        """An answer without a thought gets an empty one before it."""
        return self.family in ("ReasoningTemplate", "Glm47ReasoningTemplate")

    @property
    def thought_marks(self) -> tuple[str, str] | None:
        """What stands around a thought, where thoughts are known at all."""
        return self.thought_words if self.reasons else None

    @property
    def empty_thought(self) -> str:
        """Glm47ReasoningTemplate.add_thought: the closing word alone."""
        begin = "" if self.family == "Glm47ReasoningTemplate" else self.thought_words[0]
        return begin + self.thought_words[1]


def after_end(template: Template) -> str:
    """What stands in an answer after its end token: when only this is cut, the answer
    still ends.
    """
    last = template.assistant[-1]
    if isinstance(last, Special) or last.endswith(CONTENT):
        return ""
    return last[len(last.rstrip("\n")) :]


def ends_answers(template: Template) -> bool:
    """Whether each answer has an end token of its own, which a cut can take."""
    last = template.assistant[-1]
    return isinstance(last, Special) or not last.endswith(CONTENT)


def end_token(template: Template, own: str | None) -> str:
    """The tokenizer's end token after Template.fix_special_tokens(); `own` is what it had."""
    return (template.stop_words[0] if template.replace_eos else own) or DEFAULT_EOS


def special_tokens(template: Template, own: str | None) -> tuple[str, ...]:
    """What Template.fix_special_tokens() makes special beside the tokenizer's own: the end token,
    and all stop words.
    """
    return (end_token(template, own), *template.stop_words)
