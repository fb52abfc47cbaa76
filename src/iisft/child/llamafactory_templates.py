"""Print every prompt template of the installed LLaMA-Factory as data, with what it really renders.

Runs in the training interpreter: python llamafactory_templates.py [OUT.json]

`templates` has the slots and settings of each, `tool_prompts` the texts around descriptions of
tools, `probes` a few conversations, and `rendered` for each template the digests of what
LLaMA-Factory's own code made of them: a reader that renders the slots itself finds out whether it
does so as this version does.
"""

import contextlib
import copy
import datetime
import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

TOOLS = json.dumps(
    [
        {
            "name": "lookup",
            "description": "look up 城市",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where", "enum": ["Graz", "北京"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
        {
            "type": "function",
            "function": {
                "name": "now",
                "description": "the time",
                "parameters": {"type": "object", "properties": {}},
            },
        },
    ],
    ensure_ascii=False,
)
CALL = (
    '{"name": "lookup", "arguments": {"city": "北京", "days": [1, 2], "x": null, "y": {"b": 1.5}}}'
)
TWO_CALLS = f'[{CALL}, {{"name": "now", "arguments": {{}}}}]'
# {0} and {1} stand for the template's own thought words, {2} and {3} for its tool call words
TALK = [
    ("user", "Q'1 {{content}}"),
    ("assistant", "{0}T{1}A1"),
    ("user", "Q2 {{idx}}"),
    ("assistant", "A2"),
]
CALLING = [("user", "Q"), ("function", CALL), ("observation", "O"), ("assistant", "A")]
PROBES: list[dict[str, Any]] = [
    {"messages": [("user", "Q"), ("assistant", "A")]},
    *({"messages": TALK, "options": options} for options in (
        {}, {"enable_thinking": False}, {"enable_thinking": None}, {"mask_history": True},
        {"mask_history": True, "enable_thinking": None},
        {"mask_history": True, "preserve_thinking": True},
    )),
    {"messages": TALK, "system": "S", "options": {"default_system": "D"}},
    {"messages": TALK, "options": {"default_system": "D"}},
    {"messages": [("observation", "O"), ("assistant", "A\n")], "system": "S"},
    {"messages": CALLING, "tools": TOOLS},
    {"messages": CALLING, "tools": TOOLS, "system": "S", "options": {"enable_thinking": False}},
    {"messages": [("user", "Q"), ("function", TWO_CALLS)], "tools": "[]"},
    {"messages": [("user", "Q"), ("function", "{0}T{1}" + CALL)]},
    {"messages": [("user", "Q"), ("function", "text\n{2}" + TWO_CALLS + "{3}")]},
]  # fmt: skip


class Pieces:
    """A tokenizer whose tokens are the texts and special tokens that it is given."""

    bos_token_id = "bos_token"
    eos_token_id = "eos_token"

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return [text]

    def convert_tokens_to_ids(self, token: str) -> dict[str, str]:
        return {"token": token}


def spelled(probe: dict[str, Any], words: list[str]) -> list[tuple[str, str]]:
    """The messages of a probe with a template's own words in them."""
    messages = []
    for role, text in probe["messages"]:
        for number, word in enumerate(words):
            text = text.replace(f"{{{number}}}", word)
        messages.append((role, text))
    return messages


def digest(pairs: Any) -> str:
    """What was rendered, in short. The day's date, which one tool format writes, is left out."""
    text = json.dumps(pairs, ensure_ascii=False)
    today = datetime.datetime.now().strftime("%d %b %Y")
    return hashlib.sha256(text.replace(today, "DATE").encode()).hexdigest()[:16]


def rendered(template: Any, probe: dict[str, Any]) -> str:
    """The digest of what LLaMA-Factory makes of a probe, "" where it can't."""
    one, options = copy.deepcopy(template), probe.get("options", {})
    if "default_system" in options:
        one.default_system = options["default_system"]
    if "Reasoning" in type(one).__name__:
        one.enable_thinking = options.get("enable_thinking", True)
        one.preserve_thinking = options.get("preserve_thinking", False)
    messages = [
        {"role": role, "content": text}
        for role, text in spelled(probe, [*one.thought_words, *one.tool_call_words])
    ]
    discarding = options.get("mask_history", False) and not one.preserve_thinking
    try:
        pairs = one.encode_multiturn(
            Pieces(), messages, probe.get("system", ""), probe.get("tools", ""), discarding
        )
    except Exception:  # whatever it is, a training would end with it
        return ""
    return digest(pairs)


def described(template: Any) -> dict[str, Any]:
    plugin, tools = template.mm_plugin, template.format_tools
    return {
        "class": type(template).__name__,
        "user": slots(template.format_user),
        "assistant": slots(template.format_assistant),
        "system": slots(template.format_system),
        "function": slots(template.format_function),
        "observation": slots(template.format_observation),
        "prefix": slots(template.format_prefix),
        "tools": slots(tools),
        "tool_format": tools.tool_format,
        "call_format": template.format_function.tool_format,
        "default_system": template.default_system,
        "stop_words": list(template.stop_words),
        "thought_words": list(template.thought_words),
        "tool_call_words": list(template.tool_call_words),
        "efficient_eos": template.efficient_eos,
        "replace_eos": template.replace_eos,
        # mm_plugin.py, MMPluginMixin._validate_input: with any of these it asks for a processor
        "needs_processor": any(
            getattr(plugin, f"{kind}_token", None) is not None
            for kind in ("image", "video", "audio")
        ),
    }


def slots(formatter: Any) -> list[Any]:
    """Texts, {"token": name}, and ["bos_token"] or ["eos_token"] for its sets."""
    return [sorted(slot) if isinstance(slot, set) else slot for slot in formatter.slots]


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from llamafactory.data import tool_utils
        from llamafactory.data.template import TEMPLATES

    answer = {
        "version": importlib.metadata.version("llamafactory"),
        "tool_prompts": {
            name: text for name, text in vars(tool_utils).items() if name.endswith("_TOOL_PROMPT")
        },
        "templates": {name: described(template) for name, template in TEMPLATES.items()},
        "probes": PROBES,
        "rendered": {
            name: [rendered(template, probe) for probe in PROBES]
            for name, template in TEMPLATES.items()
        },
    }
    text = json.dumps(answer, ensure_ascii=False, indent=1) + "\n"
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.buffer.write(text.encode())


if __name__ == "__main__":
    main()
