"""How LLaMA-Factory writes tools: their description in the system text, and the calls of an answer.

Source: ToolUtils and its classes in LLaMA-Factory 0.9.5, data/tool_utils.py, FunctionFormatter and
ToolFormatter in data/formatter.py. The texts around them are read from the installed version
(Template.tool_prompts); that the rest is the same is checked by its probes.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

# What OpenAIDatasetConverter (data/converter.py) puts between the results of several calls, which
# the row then holds as one turn.
BETWEEN_RESULTS = "\n</tool_response>\n<tool_response>\n"
# The words of nearly all templates (register_template() in data/template.py)
THOUGHT_WORDS = ("<think>\n", "\n</think>\n\n")
CALL_WORDS = ("<tool_call>", "</tool_call>")

Tool = dict[str, Any]


class Unrenderable(ValueError):
    """LLaMA-Factory would end a training at this row, under this template."""


class Call(NamedTuple):
    """One call; `arguments` is what the row's JSON has."""

    name: Any
    arguments: Any


def describe(form: str, tools: str, prompts: Mapping[str, str]) -> str:
    """The text that tells the model its tools.

    Raises:
        Unrenderable: LLaMA-Factory can't write these tools in this form.
    """
    try:
        parsed = json.loads(tools)
        return _DESCRIPTIONS[form](parsed, prompts) if len(parsed) else ""
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Unrenderable(f"tools that its form {form!r} can't write ({_why(error)})") from error


def call(
    form: str, content: str, thought_words: Sequence[str] = (), call_words: Sequence[str] = ()
) -> str:
    """An answer that calls tools. A thought or text beside the call stays where it is.

    Templates that render by Llama2Template know no words (both empty): all must be JSON.

    Raises:
        Unrenderable: the call is not JSON, or this form can't write it.
    """
    beside, text = "", content
    if call_words and (found := _between(call_words, content)):
        beside, text = content.replace(found.group(0), ""), found.group(1)
    elif thought_words and (found := _between(thought_words, content)):
        beside, text = found.group(0), content.replace(found.group(0), "")
    try:
        parsed = json.loads(text)
        listed = parsed if isinstance(parsed, list) else [parsed]
        calls = [Call(one["name"], one["arguments"]) for one in listed]
        return beside + _CALLS[form](calls)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Unrenderable(f"a call that its form {form!r} can't write ({_why(error)})") from error


def known(form: str) -> bool:
    return form in _DESCRIPTIONS


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no {error}"
    return "not JSON" if isinstance(error, json.JSONDecodeError) else str(error)


def _between(words: Sequence[str], content: str) -> re.Match[str] | None:
    return re.search(f"{re.escape(words[0])}(.*?){re.escape(words[1])}", content, re.DOTALL)


def _dump(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _wrapped(tool: Tool) -> Tool:
    return tool if tool.get("type") == "function" else {"type": "function", "function": tool}


def _bare(tool: Tool) -> Any:
    return tool.get("function", "") if tool.get("type") == "function" else tool


def _listing(
    prompt: str, one: Callable[[Tool], str], after: str = ""
) -> Callable[[list[Tool], Mapping[str, str]], str]:
    """Each tool written by `one`, all of them inside the prompt of this name."""
    return lambda tools, prompts: prompts[prompt].format(tool_text="".join(map(one, tools))) + after


def _default(tools: list[Tool], prompts: Mapping[str, str]) -> str:
    texts, names = [], []
    for tool in map(_bare, tools):
        lines = []
        for name, about in tool["parameters"]["properties"].items():
            required = ", required" if name in tool["parameters"].get("required", []) else ""
            choices = about.get("enum", None)
            enum = f", should be one of [{', '.join(choices)}]" if choices else ""
            each = about.get("items", None)
            items = f", where each item should be {each.get('type', '')}" if each else ""
            kind, text = about.get("type", ""), about.get("description", "")
            lines.append(f"  - {name} ({kind}{required}): {text}{enum}{items}\n")
        texts.append(
            f"> Tool Name: {tool['name']}\nTool Description: {tool.get('description', '')}\n"
            f"Tool Args:\n{''.join(lines)}\n"
        )
        names.append(tool["name"])
    return prompts["DEFAULT_TOOL_PROMPT"].format(
        tool_text="".join(texts), tool_names=", ".join(names)
    )


def _glm4(tool: Tool) -> str:
    tool = _bare(tool)
    body = _dump(tool, indent=4)
    return f"\n\n## {tool['name']}\n\n{body}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


def _llama3(tools: list[Tool], prompts: Mapping[str, str]) -> str:
    """The one form with a date in it: that of the day of tokenising, as long on any day."""
    text = "".join(_dump(_wrapped(tool), indent=4) + "\n\n" for tool in tools)
    today = datetime.now().strftime("%d %b %Y")
    return prompts["LLAMA3_TOOL_PROMPT"].format(date=today, tool_text=text)


def _mistral(tools: list[Tool], _: Mapping[str, str]) -> str:
    return f"[AVAILABLE_TOOLS] {_dump([_wrapped(tool) for tool in tools])}[/AVAILABLE_TOOLS]"


def _lfm2(tools: list[Tool], prompts: Mapping[str, str]) -> str:
    return prompts["LFM2_TOOL_PROMPT"].format(tool_text=_dump(list(map(_inner, tools))))


def _seed(tools: list[Tool], prompts: Mapping[str, str]) -> str:
    return prompts["SEED_TOOL_PROMPT"].format(tool_text=f"\n{_dump(tools)}")


def _inner(tool: Tool) -> Any:
    return tool.get("function", tool) if tool.get("type") == "function" else tool


def _gemma_quoted(text: Any) -> str:
    return f'<|"|>{text}<|"|>'


def _gemma4(tools: list[Tool], _: Mapping[str, str]) -> str:
    return "\n".join(_gemma_declaration(_inner(tool)) for tool in tools)


def _gemma_declaration(tool: Tool) -> str:
    about = f"description:{_gemma_quoted(tool.get('description', ''))}"
    if params := tool.get("parameters"):
        parts = []
        if params.get("properties"):
            parts.append(f"properties:{{{_gemma_properties(params['properties'])}}}")
        if params.get("required"):
            parts.append(f"required:[{','.join(map(_gemma_quoted, params['required']))}]")
        if params.get("type"):
            parts.append(f"type:{_gemma_quoted(str(params['type']).upper())}")
        about += f",parameters:{{{','.join(parts)}}}"
    if response := tool.get("response"):
        parts = []
        if response.get("description"):
            parts.append(f"description:{_gemma_quoted(response['description'])}")
        if str(response.get("type", "")).upper() == "OBJECT":
            parts.append(f"type:{_gemma_quoted('OBJECT')}")
        about += f",response:{{{','.join(parts)}}}"
    return f"declaration:{tool['name']}{{{about}}}"


def _gemma_properties(properties: Mapping[str, Any]) -> str:
    written = []
    for name, schema in properties.items():
        parts = []
        if schema.get("description"):
            parts.append(f"description:{_gemma_quoted(schema['description'])}")
        if schema.get("type"):
            parts.append(f"type:{_gemma_quoted(str(schema['type']).upper())}")
        written.append(f"{name}:{{{','.join(parts)}}}")
    return ",".join(written)


def _gemma_value(value: Any) -> str:
    if isinstance(value, str):
        return _gemma_quoted(value)
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_gemma_value(value[key])}' for key in sorted(value))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_gemma_value, value))}]"
    return _dump(value) if value is None or isinstance(value, bool) else str(value)


def _gemma_call(one: Call) -> str:
    arguments = one.arguments
    if isinstance(arguments, dict):
        written = _gemma_value(arguments)[1:-1]
    else:
        written = arguments if isinstance(arguments, str) else _gemma_value(arguments)
    return f"<|tool_call>call:{one.name}{{{written}}}<tool_call|>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _dump(value)


def _xml(begin: str, key: str, end: str) -> Callable[[list[Call]], str]:
    """One block for each call; `key` is written around the name and value of each argument."""

    def write(calls: list[Call]) -> str:
        blocks = []
        for name, arguments in calls:
            pairs = "".join(key.format(k, _text(v)) for k, v in arguments.items())
            blocks.append(begin.format(name) + pairs + end)
        return "\n".join(blocks)

    return write


def _glm4_call(calls: list[Call]) -> str:
    if len(calls) > 1:
        raise ValueError("it has no parallel calls")
    return f"{calls[0].name}\n{_dump(calls[0].arguments)}"


def _llama3_call(calls: list[Call]) -> str:
    listed = [{"name": name, "parameters": arguments} for name, arguments in calls]
    return _dump(listed[0] if len(listed) == 1 else listed)


def _lfm2_call(calls: list[Call]) -> str:
    written = []
    for name, arguments in calls:
        pairs = [
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={_dump(value)}"
            for key, value in arguments.items()
        ]
        written.append(f"{name}({', '.join(pairs)})")
    return f"<|tool_call_start|>[{', '.join(written)}]<|tool_call_end|>"


def _qwen_call(calls: list[Call]) -> str:
    return "\n".join(f"<tool_call>\n{_dump(one._asdict())}\n</tool_call>" for one in calls)


def _wrapped_line(tool: Tool) -> str:
    return f"\n{_dump(_wrapped(tool))}"


_DESCRIPTIONS: dict[str, Callable[[list[Tool], Mapping[str, str]], str]] = {
    "default": _default,
    "gemma4": _gemma4,
    "glm4": _listing("GLM4_TOOL_PROMPT", _glm4),
    "glm4_moe": _listing("GLM4_MOE_TOOL_PROMPT", _wrapped_line),
    "lfm2": _lfm2,
    "ling": _listing("LING_TOOL_PROMPT", _wrapped_line, "\ndetailed thinking off"),
    "llama3": _llama3,
    "minimax1": _listing("MINIMAX_M1_TOOL_PROMPT", lambda tool: f"{_dump(_bare(tool))}\n"),
    "minimax2": _listing(
        "MINIMAX_M2_TOOL_PROMPT", lambda tool: f"<tool>{_dump(_bare(tool))}</tool>\n"
    ),
    "mistral": _mistral,
    "qwen": _listing("QWEN_TOOL_PROMPT", _wrapped_line),
    "qwen3_5": _listing("QWEN35_TOOL_PROMPT", lambda tool: f"\n{_dump(_inner(tool))}"),
    "seed_oss": _seed,
}
_CALLS: dict[str, Callable[[list[Call]], str]] = {
    "default": lambda calls: "\n".join(
        f"Action: {name}\nAction Input: {_dump(arguments)}" for name, arguments in calls
    ),
    "gemma4": lambda calls: "".join(map(_gemma_call, calls)),
    "glm4": _glm4_call,
    "glm4_moe": _xml("\n<tool_call>{}", "\n<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>", ""),
    "lfm2": _lfm2_call,
    "ling": _qwen_call,
    "llama3": _llama3_call,
    "minimax1": lambda calls: "\n".join(
        ["<tool_calls>", *(_dump(one._asdict()) for one in calls), "</tool_calls>"]
    ),
    "minimax2": _xml('<invoke name="{}">', '\n<parameter name="{}">{}</parameter>', "\n</invoke>"),
    "mistral": lambda calls: _dump([one._asdict() for one in calls]),
    "qwen": _qwen_call,
    "qwen3_5": _xml(
        "<tool_call>\n<function={}>",
        "\n<parameter={}>\n{}\n</parameter>",
        "\n</function>\n</tool_call>",
    ),
    "seed_oss": _xml(
        "\n<seed:tool_call>\n<function={}",  # 0.9.5 leaves the bracket open
        "\n<parameter={}>{}</parameter>",
        "\n</function>\n</seed:tool_call>",
    ),
}
