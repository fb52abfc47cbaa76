"""The chat template and the Ollama Modelfile of an exported model: they write what was trained.

A model's own chat template stays where it does that, as it is or with a setting of the run fixed in
its first lines. Elsewhere one is written from LLaMA-Factory's template. Each is rendered and
compared with as_trained.written() before it is taken.

LLaMA-Factory's own Template._get_jinja_template() and get_ollama_modelfile() (0.9.5,
data/template.py) know neither thoughts nor special tokens by name, and its context of 4096 tokens
is nobody's.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from iisft.errors import InputError
from iisft.llamafactory import as_trained, chat_template
from iisft.llamafactory.chat_jinja import jinja, jinja_text
from iisft.llamafactory.templates import CONTENT, Slots, Template, end_token
from iisft.llamafactory.tools import Unrenderable
from iisft.llamafactory.turns import Options

_WITH_TOOLS = {"tools", "tools offered", "two calls"}


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat template; `how` says where it is from, for people.

    `tools`: what stands for conversations with tools in it: "trained", what the trainer writes;
    "own", what the model's own chat template writes; "refused".
    """

    text: str
    how: str
    tools: str


def chat(folder: Path, template: Template, options: Options, *, with_tools: bool) -> Chat:
    """The chat template of a model that was trained with this template and these options.

    Args:
        folder: the base model.
        template: under its options (turns.under()).
        options: LLaMA-Factory's arguments of the run.
        with_tools: whether rows of the run had tools.

    Raises:
        InputError: none that iisft can write would render the prompts of the training.
    """
    tokens = tokens_of(folder, template)
    measure = _Measure(template, options, tokens)
    own = chat_template.text_of(folder)
    best = (own, "own") if own and not with_tools else (_NO_TOOLS, "refused")
    for text, how in _from_own(own, template, options):
        plain, tools = measure.agrees(text)
        if plain and (tools or not with_tools):
            return Chat(text, how, "trained" if tools else "own")
        if tools and best[1] != "trained":
            best = (text, "trained")
    made = jinja(template, options, tokens)
    how = f"written from LLaMA-Factory's template {template.name}"
    plain, tools = measure.agrees(made)
    if plain and tools:
        return Chat(made, how, "trained")
    for tools_by, tools_are in (best, (_NO_TOOLS, "refused")):  # the model's own may be broken
        if plain and measure.agrees(text := _branched(tools_by, made))[0]:
            return Chat(text, how, tools_are)
    raise InputError(
        "export-prompt",
        f"no chat template can be written that renders the prompts of template {template.name}",
        where="model.template",
        fix="serve the adapter with iisft serve",
    )


def tokens_of(folder: Path, template: Template) -> dict[str, str]:
    """Names of the special tokens, as the training left them."""
    tokens = chat_template.token_names(folder)
    return tokens | {"eos_token": end_token(template, tokens.get("eos_token"))}


def conversations_of(template: Template) -> dict[str, as_trained.Conversation]:
    """The fixed conversations whose prompts are compared: the model's answer comes next in each."""
    found = {
        name: conversation
        for name, conversation in as_trained.CONVERSATIONS.items()
        if conversation["add_generation_prompt"]
    }
    if template.reasons:
        found["after a thought"] = as_trained.after_a_thought(template)
    return found


def prompts(template: Template, options: Options, tokens: Mapping[str, str]) -> list[str]:
    """Those without tools, as the trainer writes them."""
    return [
        as_trained.written(template, options, tokens, one)
        for one in conversations_of(template).values()
        if "tools" not in one
    ]


class _Measure:
    """What the trainer writes of each fixed conversation, to compare chat templates with."""

    def __init__(self, template: Template, options: Options, tokens: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._asked: dict[str, as_trained.Conversation] = {}
        self._wanted: dict[str, str] = {}
        for name, conversation in conversations_of(template).items():
            with contextlib.suppress(Unrenderable):
                self._wanted[name] = as_trained.written(template, options, tokens, conversation)
                self._asked[name] = conversation

    def agrees(self, text: str) -> tuple[bool, bool]:
        """Whether a chat template writes the same: without tools, with tools."""
        texts = chat_template.rendered_by(text, self._tokens, list(self._asked.values()))
        unlike = {
            name
            for name, one in zip(self._asked, texts or [None] * len(self._asked), strict=True)
            if one != self._wanted[name]
        }
        return (
            not unlike - _WITH_TOOLS,
            not unlike & _WITH_TOOLS and self._asked.keys() >= _WITH_TOOLS,
        )


_NO_TOOLS = (
    "{{ raise_exception('this model was trained with tools in a form that a chat template does "
    "not write: use iisft serve') }}"
)


def _from_own(own: str, template: Template, options: Options) -> Iterator[tuple[str, str]]:
    """The model's own chat template, with more and more of the run's settings fixed in it."""
    if not own:
        return
    yield own, "the model's own"
    thinking = ""
    if template.reasons and options.enable_thinking is False:
        thinking = "{%- set enable_thinking = false %}"
        yield thinking + own, "the model's own, with thinking switched off"
    default = template.default_system if options.default_system is None else options.default_system
    if default:
        system = (
            "{%- if messages[0]['role'] != 'system' %}{%- set messages = "
            f"[{{'role': 'system', 'content': {jinja_text(default)}}}] + messages %}}{{%- endif %}}"
        )
        yield system + own, "the model's own, with the run's system text"
        if thinking:
            yield (
                thinking + system + own,
                "the model's own, with the run's system text and thinking switched off",
            )


def _branched(with_tools: str, without: str) -> str:
    return (
        "{%- set with_tools = namespace(found=tools is defined and tools is not none and tools) %}"
        "{%- for message in messages %}{%- if message['role'] == 'tool' or message.tool_calls %}"
        "{%- set with_tools.found = true %}{%- endif %}{%- endfor %}"
        f"{{%- if with_tools.found %}}{with_tools}{{%- else %}}{without}{{%- endif %}}"
    )


def modelfile(
    template: Template,
    options: Options,
    tokens: Mapping[str, str],
    *,
    weights: str,
    context: int,
    adds_bos: bool,
) -> str:
    """An Ollama Modelfile; conversations with tools are not written.

    Args:
        template: under its options (turns.under()).
        options: LLaMA-Factory's arguments of the run.
        tokens: names of the exported tokenizer's special tokens.
        weights: what FROM names.
        context: tokens that a row of the training could have.
        adds_bos: whether the tokenizer itself begins every text with its bos token.
    """
    tokens = {**tokens, "bos_token": ""} if adds_bos else tokens
    default = template.default_system if options.default_system is None else options.default_system
    lines = [f"FROM {weights}", "", f'TEMPLATE """{_go(template, options, tokens)}"""', ""]
    if default:
        lines += [f'SYSTEM """{default}"""', ""]
    stops = dict.fromkeys([end_token(template, tokens.get("eos_token")), *template.stop_words])
    lines += [f"PARAMETER stop {jinja_text(stop)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {context}", "PARAMETER temperature 0", ""]
    return "\n".join(lines)


def _go(template: Template, options: Options, tokens: Mapping[str, str]) -> str:
    """The template in Go's language, over .System and .Messages.

    Source: Values and Template.Execute() in Ollama's template/template.go: .System holds all system
    texts, which stand in .Messages too; .Thinking is what Ollama took out of an earlier answer.
    """

    def filled(slots: Slots, name: str) -> str:
        pieces = [as_trained.text_of(slot, template, tokens) for slot in slots]
        return "".join(pieces).replace(CONTENT, f"{{{{ {name} }}}}", 1)

    system = filled(template.system, ".System")
    user, before = filled(template.user, ".Content").replace("{{idx}}", "0"), ""
    begin = "" if template.system_in_user else f"{{{{ if .System }}}}{system}{{{{ end }}}}"
    if template.system_in_user:
        inside = filled(template.system, "$.System")
        begin = "{{ $first := true }}"
        head = f"{{{{ if and $first $.System }}}}{inside}{{{{ end }}}}{{{{ $first = false }}}}"
        user = user.replace("{{ .Content }}", head + "{{ .Content }}")
    if template.reasons:
        opening, closing = template.thought_words
        discarding = options.discards_thoughts
        if not options.enable_thinking:
            user += template.empty_thought
        elif not discarding:
            before = (
                f"{{{{ if .Thinking }}}}{opening}{{{{ .Thinking }}}}{closing}"
                f"{{{{ else }}}}{template.empty_thought}{{{{ end }}}}"
            )
    return (
        f"{filled(template.prefix, '.System')}{begin}"
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}'
        f'{{{{ else if eq .Role "assistant" }}}}{before}{filled(template.assistant, ".Content")}'
        "{{ end }}{{ end }}"
    )
