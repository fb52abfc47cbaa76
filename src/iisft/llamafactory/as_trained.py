"""A conversation as one text, as the trainer writes it: what chat templates are measured by."""

import json
from collections.abc import Mapping
from typing import Any

from iisft.llamafactory import turns
from iisft.llamafactory.templates import Piece, Special, Template, end_token
from iisft.llamafactory.tools import BETWEEN_RESULTS
from iisft.llamafactory.turns import Options

# as apply_chat_template() takes it: messages, tools, add_generation_prompt
Conversation = Mapping[str, Any]

SYSTEM, QUESTION, ANSWER = "IISFTSYSTEM", "IISFTFIRST", "IISFTANSWER"
SECOND, RESULT, THOUGHT = "IISFTSECOND", "IISFTRESULT", "IISFTTHOUGHT"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "d",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}],
}


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


_ASKED = [_said("user", QUESTION)]
_TALK = [*_ASKED, _said("assistant", ANSWER), _said("user", SECOND)]
_CALLED = [*_ASKED, _CALL, _said("tool", RESULT)]

CONVERSATIONS: Mapping[str, Conversation] = {
    "plain": {"messages": _ASKED, "add_generation_prompt": True},
    "system": {"messages": [_said("system", SYSTEM), *_ASKED], "add_generation_prompt": True},
    "two turns": {"messages": _TALK, "add_generation_prompt": True},
    "answered": {"messages": _TALK[:2], "add_generation_prompt": False},
    "tools": {"messages": _CALLED, "tools": TOOLS, "add_generation_prompt": True},
    "two calls": {
        "messages": [
            *_ASKED,
            {**_CALL, "tool_calls": _CALL["tool_calls"] * 2},
            *[_said("tool", RESULT)] * 2,
        ],
        "tools": TOOLS * 2,
        "add_generation_prompt": True,
    },
    "tools offered": {"messages": _ASKED, "tools": TOOLS, "add_generation_prompt": True},
}


def after_a_thought(template: Template) -> Conversation:
    """A second question, after an answer with a thought in the template's words."""
    opening, closing = template.thought_words
    thought = _said("assistant", f"{opening}{THOUGHT}{closing}{ANSWER}")
    return {"messages": [_TALK[0], thought, _TALK[2]], "add_generation_prompt": True}


def pairs_of(template: Template, options: Options, conversation: Conversation) -> turns.Pairs:
    """Questions and answers of it; after a question at the end stands an empty answer.

    Raises:
        Unrenderable: LLaMA-Factory would end the training at this row.
    """
    said: list[tuple[str, str]] = []
    for role, text in map(_turn, conversation["messages"]):
        if said and role == "observation" == said[-1][0]:
            said[-1] = (role, said[-1][1] + BETWEEN_RESULTS + text)
        else:
            said.append((role, text))
    system = said.pop(0)[1] if said[0][0] == "system" else ""
    if said[-1][0] in ("user", "observation"):
        said.append(("assistant", ""))
    tools = turns.tools_as_text(conversation["tools"]) if "tools" in conversation else ""
    return turns.render(template, options, said, system, tools)


def written(
    template: Template, options: Options, tokens: Mapping[str, str], conversation: Conversation
) -> str:
    """The whole text: the prompt if a question stands last, else with the end of the row.

    `tokens`: the names of the model's special tokens (chat_template.token_names()).

    Raises:
        Unrenderable: LLaMA-Factory would end the training at this row.
    """
    pairs = pairs_of(template, options, conversation)
    pieces = [piece for pair in pairs[:-1] for side in pair for piece in side]
    pieces += pairs[-1][0]
    if not conversation["add_generation_prompt"]:
        pieces += pairs[-1][1]
        pieces += [Special("eos")] if template.efficient_eos else []
    return "".join(text_of(piece, template, tokens) for piece in pieces)


def _turn(message: Mapping[str, Any]) -> tuple[str, str]:
    if calls := message.get("tool_calls"):
        functions = [
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            for call in calls
        ]
        return "function_call", json.dumps(functions, ensure_ascii=False)
    role = message["role"]
    return "observation" if role == "tool" else role, message["content"]


def text_of(piece: Piece, template: Template, tokens: Mapping[str, str]) -> str:
    """A piece of a turn as text."""
    if not isinstance(piece, Special):
        return piece
    if piece.kind == "token":
        return piece.name
    if piece.kind == "eos":
        return end_token(template, tokens.get("eos_token"))
    return tokens.get("bos_token", "")
