"""A conversation as LLaMA-Factory renders it: the texts and special tokens of each question and
answer.

Source: Template._encode() and its three subclasses in LLaMA-Factory 0.9.5, data/template.py.
tests/data/test_tokens_equal.py compares every template with the real one, token by token; the
probes of another version tell whether it still renders like this.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from iisft.child import llamafactory_templates as child
from iisft.errors import InputError
from iisft.llamafactory import tools as tool_forms
from iisft.llamafactory.templates import CONTENT, EOS, Piece, Slots, Special, Template
from iisft.llamafactory.tools import Unrenderable

Pairs = list[tuple[list[Piece], list[Piece]]]


@dataclass(frozen=True, slots=True)
class Options:
    """LLaMA-Factory's arguments that change what a row is rendered to.

    The names are its own, so are the defaults.
    """

    default_system: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False
    mask_history: bool = False
    tool_format: str | None = None

    @property
    def discards_thoughts(self) -> bool:
        """Whether earlier answers lose their thoughts (data/processor/supervised.py)."""
        return self.mask_history and not self.preserve_thinking

    @property
    def thinks(self) -> bool:
        return self.enable_thinking is not False

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> "Options":
        """From a preset's `llamafactory:` section."""
        return cls(**{one.name: extra[one.name] for one in fields(cls) if one.name in extra})


# Arguments that change tokens in ways that the account does not follow.
_UNFOLLOWED = (
    "add_special_tokens",
    "add_tokens",
    "new_special_tokens_config",
    "split_special_tokens",
    "use_fast_tokenizer",
)


def unfollowed(extra: Mapping[str, Any]) -> list[str]:
    """Arguments of a preset's `llamafactory:` section under which token counts of this module would
    be wrong.
    """
    return [name for name in _UNFOLLOWED if name in extra]


def refuse(template: Template, extra: Mapping[str, Any]) -> None:
    """Say what LLaMA-Factory itself would say of these arguments, after it was started.

    Raises:
        InputError: DataArguments.__post_init__ or get_template_and_fix_tokenizer() refuses them.
    """
    if not extra.get("train_on_prompt"):
        return
    other = "mask_history" if extra.get("mask_history") else ""
    other = other or (f"template {template.name}" if template.efficient_eos else "")
    if other:
        raise InputError(
            "train-on-prompt",
            f"LLaMA-Factory does not take train_on_prompt with {other}",
            where="llamafactory.train_on_prompt",
            fix="--set llamafactory.train_on_prompt=false",
        )


def under(template: Template, options: Options) -> Template:
    """The template as `tool_format` changes it (get_template_and_fix_tokenizer()).

    Raises:
        InputError: there is no such form.
    """
    if (form := options.tool_format) is None:
        return template
    if not tool_forms.known(form):
        raise InputError(
            "tool-format-unknown",
            f"there is no tool format {form!r}",
            where="llamafactory.tool_format",
        )
    slots: Slots = (CONTENT,) if template.efficient_eos else (CONTENT, EOS)
    return replace(template, function=slots, tool_format=form, call_format=form)


def render(
    template: Template,
    options: Options,
    turns: Sequence[tuple[str, str]],
    system: str,
    tools: str = "",
) -> Pairs:
    """The pieces of each question and each answer; texts are tokenised one by one, never joined.

    Args:
        template: how turns are written.
        options: arguments that change it.
        turns: role and text, alternating, prompt side first; roles are user, assistant,
        observation, function_call.
        system: the row's own system text, empty for the template's.
        tools: the row's tools, as JSON.

    Raises:
        Unrenderable: LLaMA-Factory would end the training at this row.
    """
    pairs = []
    for pair in range(len(turns) // 2):
        role, text = turns[2 * pair]
        head = _head(template, options, system, tools, role) if pair == 0 else ([], "")
        question = head[0] + _question(template, role, head[1] + text, pair)
        said, before, after = _answer(template, options, turns, 2 * pair + 1)
        answer = _spoken(template, turns[2 * pair + 1][0], said)
        if before:
            question.append(before)
        if after:
            answer.insert(0, after)
        pairs.append((question, answer))
    return pairs


def _head(
    template: Template, options: Options, system: str, tools: str, role: str
) -> tuple[list[Piece], str]:
    """What stands before the first turn, and what at the beginning of its text."""
    default = template.default_system if options.default_system is None else options.default_system
    pieces: list[Piece] = list(template.prefix)
    text = system or default
    if not text and not tools:
        return pieces, ""
    if tools:
        text += _described(template, tools)
    filled = _fill(template.system, text)
    if not template.system_in_user:
        return pieces + filled, ""
    # Llama2Template drops the system text of a row that begins with the answer of a tool
    return pieces, str(filled[0]) if role == "user" else ""


def _question(template: Template, role: str, text: str, pair: int) -> list[Piece]:
    if role == "observation":
        return _fill(template.observation, text)
    filled = _fill(template.user, text)
    if template.system_in_user:
        return filled
    # LLaMA-Factory fills {{idx}} even where a row's text has it
    return [p.replace("{{idx}}", str(pair), 1) if isinstance(p, str) else p for p in filled]


def _answer(
    template: Template, options: Options, turns: Sequence[tuple[str, str]], index: int
) -> tuple[str, str, str]:
    """An answer's text, and the empty thought that goes after the question or before the answer."""
    text, last = turns[index][1], index == len(turns) - 1
    if not template.reasons:
        return text, "", ""
    opening, closing = template.thought_words
    discarding = options.discards_thoughts
    if options.enable_thinking is False or (discarding and not last):
        text = _without_thought(text, opening, closing)
    if opening.strip() in text or closing.strip() in text or (discarding and not last):
        return text, "", ""
    empty = template.empty_thought
    return (text, "", empty) if options.enable_thinking else (text, empty, "")


def _without_thought(text: str, opening: str, closing: str) -> str:
    pattern = f"{re.escape(opening)}(.*?){re.escape(closing)}"
    return re.sub(pattern, "", text, flags=re.DOTALL).lstrip("\n")


def _spoken(template: Template, role: str, text: str) -> list[Piece]:
    if role != "function_call":
        return _fill(template.assistant, text)
    # Llama2Template passes no words: a thought or text beside the call ends the training
    words = ((), ()) if template.system_in_user else (
        template.thought_words, template.tool_call_words,
    )  # fmt: skip
    return _fill(template.function, tool_forms.call(template.call_format, text, *words))


def _described(template: Template, tools: str) -> str:
    if template.tool_format is None:  # slots of its own instead of a form
        return str(_fill(template.tools, tools)[0])
    return _described_once(_Prompts(template.tool_prompts), template.tool_format, tools)


class _Prompts(dict[str, str]):
    """All templates of one LLaMA-Factory have the same prompts, hence the hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(len(self))


def tools_as_text(tools: Any) -> str:
    """The column `tools` as LLaMA-Factory reads it: JSON."""
    return json.dumps(tools, ensure_ascii=False)


@functools.lru_cache(maxsize=256)
def _described_once(prompts: _Prompts, form: str, tools: str) -> str:
    """Rows of one data set often have the same tools."""
    return tool_forms.describe(form, tools, prompts)


def _fill(slots: Slots, content: str) -> list[Piece]:
    return [slot.replace(CONTENT, content, 1) if isinstance(slot, str) else slot for slot in slots]


def unlike(
    template: Template, probes: Iterable[Mapping[str, Any]], rendered: Iterable[str]
) -> list[int]:
    """Numbers of the probes of which LLaMA-Factory made something else than this module does."""
    return [
        number
        for number, (probe, wanted) in enumerate(zip(probes, rendered, strict=True))
        if _probed(template, probe) != wanted
    ]


def _probed(template: Template, probe: Mapping[str, Any]) -> str:
    words = [*template.thought_words, *template.tool_call_words]
    turns = [
        ("function_call" if role == "function" else role, text)
        for role, text in child.spelled(dict(probe), words)
    ]
    options = Options.of(probe.get("options", {}))
    try:
        pairs = render(template, options, turns, probe.get("system", ""), probe.get("tools", ""))
    except Unrenderable:
        return ""
    return child.digest([[_spell(question), _spell(answer)] for question, answer in pairs])


def _spell(pieces: list[Piece]) -> list[Any]:
    """Pieces as the child writes them: empty texts are no tokens."""
    return [
        ({"token": piece.name} if piece.kind == "token" else f"{piece.kind}_token")
        if isinstance(piece, Special)
        else piece
        for piece in pieces
        if piece != ""
    ]
