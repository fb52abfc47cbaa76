"""LLaMA-Factory's prompt templates as data: what stands around each turn, and which tokens end it.

Source: register_template() and Template._encode() in LLaMA-Factory 0.9.5, data/template.py. The
table has the templates of the shipped presets and of the architectures that iisft proves;
tests/data/test_tokens_equal.py compares every one of them with the real LLaMA-Factory, token by
token.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

CONTENT: Final = "{{content}}"


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
    its own. `replace_eos`: the first stop word becomes the tokenizer's end token. `efficient_eos`:
    one end token is put after the whole row, past the truncation, instead of after each answer.
    `system_in_user`: the system text is the beginning of the first user text. `thought`: an answer
    without a thought gets this empty one before it.
    """

    user: Slots
    assistant: Slots
    system: Slots = (CONTENT,)
    observation: Slots = ()
    prefix: Slots = ()
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    replace_eos: bool = False
    efficient_eos: bool = False
    system_in_user: bool = False
    thought: tuple[str, str] | None = None


_IM_USER = ("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n",)
_IM_ANSWER = ("{{content}}<|im_end|>\n",)
_IM_SYSTEM = ("<|im_start|>system\n{{content}}<|im_end|>\n",)
_PLAIN_ANSWER: Slots = (CONTENT, EOS)


def _qwen(default_system: str = "", thought: tuple[str, str] | None = None) -> Template:
    return Template(
        user=_IM_USER,
        assistant=_IM_ANSWER,
        system=_IM_SYSTEM,
        observation=(
            "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
        default_system=default_system,
        stop_words=("<|im_end|>",),
        replace_eos=True,
        thought=thought,
    )


def _gemma(**differing: Any) -> Template:
    return Template(
        user=("<start_of_turn>user\n{{content}}<end_of_turn>\n<start_of_turn>model\n",),
        assistant=("{{content}}<end_of_turn>\n",),
        system=("{{content}}\n\n",),
        observation=("<start_of_turn>tool\n{{content}}<end_of_turn>\n<start_of_turn>model\n",),
        prefix=(BOS,),
        system_in_user=True,
        **differing,
    )


_THOUGHT = ("<think>\n", "\n</think>\n\n")
_DEEPSEEK = ("<｜User｜>{{content}}<｜Assistant｜>",)

TEMPLATES: Final[Mapping[str, Template]] = {
    "default": Template(
        user=("Human: {{content}}", EOS, "\nAssistant:"),
        assistant=(CONTENT, EOS, "\n"),
        system=("System: {{content}}", EOS, "\n"),
    ),
    "empty": Template(user=(CONTENT,), assistant=(CONTENT,)),
    "chatml": Template(
        user=_IM_USER,
        assistant=_IM_ANSWER,
        system=_IM_SYSTEM,
        observation=("<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n",),
        stop_words=("<|im_end|>", "<|im_start|>"),
        replace_eos=True,
    ),
    "qwen": _qwen("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": _qwen(thought=_THOUGHT),
    "qwen3_nothink": _qwen(),
    "llama2": Template(
        user=(BOS, "[INST] {{content}} [/INST]"),
        assistant=_PLAIN_ANSWER,
        system=("<<SYS>>\n{{content}}\n<</SYS>>\n\n",),
        system_in_user=True,
    ),
    "llama3": Template(
        user=(
            "<|start_header_id|>user<|end_header_id|>\n\n{{content}}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        assistant=("{{content}}<|eot_id|>",),
        system=("<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>",),
        observation=(
            "<|start_header_id|>ipython<|end_header_id|>\n\n{{content}}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        prefix=(BOS,),
        stop_words=("<|eot_id|>", "<|eom_id|>"),
        replace_eos=True,
    ),
    "chatglm3": Template(
        user=(Special("token", "<|user|>"), "\n", CONTENT, Special("token", "<|assistant|>")),
        assistant=("\n", CONTENT),
        system=(Special("token", "<|system|>"), "\n", CONTENT),
        observation=(
            Special("token", "<|observation|>"),
            "\n",
            CONTENT,
            Special("token", "<|assistant|>"),
        ),
        prefix=(Special("token", "[gMASK]"), Special("token", "sop")),
        stop_words=("<|user|>", "<|observation|>"),
        efficient_eos=True,
    ),
    "glm4": Template(
        user=("<|user|>\n{{content}}<|assistant|>",),
        assistant=("\n{{content}}",),
        system=("<|system|>\n{{content}}",),
        observation=("<|observation|>\n{{content}}<|assistant|>",),
        prefix=("[gMASK]<sop>",),
        stop_words=("<|user|>", "<|observation|>"),
        efficient_eos=True,
    ),
    "mistral": Template(
        user=("[INST] {{content}}[/INST]",),
        assistant=(" {{content}}", EOS),
        system=("{{content}}\n\n",),
        observation=('[TOOL_RESULTS] {"content": {{content}}}[/TOOL_RESULTS]',),
        prefix=(BOS,),
        system_in_user=True,
    ),
    "gemma": _gemma(stop_words=("<end_of_turn>",), replace_eos=True),
    "gemma2": _gemma(stop_words=("<eos>", "<end_of_turn>"), efficient_eos=True),
    "phi": Template(
        user=("<|user|>\n{{content}}<|end|>\n<|assistant|>\n",),
        assistant=("{{content}}<|end|>\n",),
        system=("<|system|>\n{{content}}<|end|>\n",),
        stop_words=("<|end|>",),
        replace_eos=True,
    ),
    "phi4": Template(
        user=("<|im_start|>user<|im_sep|>{{content}}<|im_end|><|im_start|>assistant<|im_sep|>",),
        assistant=("{{content}}<|im_end|>",),
        system=("<|im_start|>system<|im_sep|>{{content}}<|im_end|>",),
        stop_words=("<|im_end|>",),
        replace_eos=True,
    ),
    "deepseek": Template(
        user=("User: {{content}}\n\nAssistant:",),
        assistant=_PLAIN_ANSWER,
        system=("{{content}}\n\n",),
        prefix=(BOS,),
    ),
    "deepseek3": Template(user=_DEEPSEEK, assistant=_PLAIN_ANSWER, prefix=(BOS,)),
    "deepseekr1": Template(
        user=_DEEPSEEK, assistant=_PLAIN_ANSWER, prefix=(BOS,), thought=_THOUGHT
    ),
    "yi": Template(
        user=_IM_USER, assistant=_IM_ANSWER, system=_IM_SYSTEM, stop_words=("<|im_end|>",)
    ),
}


@dataclass(frozen=True, slots=True)
class Options:
    """LLaMA-Factory's arguments that change what a row is rendered to.

    The names are its own, so are the defaults.
    """

    default_system: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False
    mask_history: bool = False

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> "Options":
        """From a preset's `llamafactory:` section."""
        return cls(**{name: extra[name] for name in cls.__dataclass_fields__ if name in extra})


# Arguments that change tokens in ways that the account does not follow.
_UNFOLLOWED = (
    "add_special_tokens",
    "add_tokens",
    "new_special_tokens_config",
    "split_special_tokens",
    "tool_format",
    "use_fast_tokenizer",
)


def unfollowed(extra: Mapping[str, Any]) -> list[str]:
    """Arguments of a preset's `llamafactory:` section under which token counts of this module would
    be wrong.
    """
    return [name for name in _UNFOLLOWED if name in extra]


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


def render(
    template: Template, options: Options, turns: Sequence[tuple[str, str]], system: str
) -> list[tuple[list[Piece], list[Piece]]]:
    """The pieces of each question and each answer; texts are tokenised one by one, never joined.

    Args:
        template: how turns are written.
        options: arguments that change it.
        turns: role and text, alternating, prompt side first; roles are user, assistant,
        observation.
        system: the row's own system text, empty for the template's.
    """
    answers = [_answer(template, options, turns, index) for index in range(1, len(turns), 2)]
    pairs = []
    for pair, (answer, thought_in_question, thought_in_answer) in enumerate(answers):
        role, text = turns[2 * pair]
        question = _question(template, options, role, text, pair, system)
        question += [thought_in_question] if thought_in_question else []
        spoken: list[Piece] = [thought_in_answer] if thought_in_answer else []
        pairs.append((question, spoken + _fill(template.assistant, answer)))
    return pairs


def _question(
    template: Template, options: Options, role: str, text: str, pair: int, system: str
) -> list[Piece]:
    pieces: list[Piece] = []
    slots = (template.observation or template.user) if role == "observation" else template.user
    default = template.default_system if options.default_system is None else options.default_system
    system = (system or default) if pair == 0 else ""
    if pair == 0:
        pieces += template.prefix
    if system and template.system_in_user and role == "user":
        first = _fill(template.system, system)[0]
        assert isinstance(first, str)
        text = first + text
    elif system and not template.system_in_user:
        pieces += _fill(template.system, system)
    filled = _fill(slots, text)
    # LLaMA-Factory fills {{idx}} even where a row's text has it
    if role == "user" and not template.system_in_user:
        filled = [p.replace("{{idx}}", str(pair), 1) if isinstance(p, str) else p for p in filled]
    return pieces + filled


def _answer(
    template: Template, options: Options, turns: Sequence[tuple[str, str]], index: int
) -> tuple[str, str, str]:
    """An answer's text, and the empty thought that goes after the question or before the answer."""
    text, last = turns[index][1], index == len(turns) - 1
    if template.thought is None:
        return text, "", ""
    opening, closing = template.thought
    discarding = options.mask_history and not options.preserve_thinking
    if options.enable_thinking is False or (discarding and not last):
        text = _without_thought(text, opening, closing)
    if opening.strip() in text or closing.strip() in text or (discarding and not last):
        return text, "", ""
    empty = opening + closing
    return (text, "", empty) if options.enable_thinking else (text, empty, "")


def _without_thought(text: str, opening: str, closing: str) -> str:
    return re.sub(
        f"{re.escape(opening)}(.*?){re.escape(closing)}", "", text, flags=re.DOTALL
    ).lstrip("\n")


def _fill(slots: Slots, content: str) -> list[Piece]:
    return [slot.replace(CONTENT, content, 1) if isinstance(slot, str) else slot for slot in slots]
