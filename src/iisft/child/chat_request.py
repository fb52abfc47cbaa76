"""What a chat completions request of OpenAI's API asks for: honoured, or refused by name.

Runs in the training interpreter (see serve_model.py) and imports nothing but the standard library.
Nothing is left out silently: a field that changes the answer is honoured or refused, also one that
OpenAI adds later.
"""

import json
from dataclasses import dataclass
from typing import Any

from chat_turns import Conversation, Known, Refused, no_number, unsupported, wrong

MOST_ANSWERS = 8
MOST_STOPS = 16
DEEPEST = 50
# less heat than this only overflows the logits
COLDEST = 0.001

_READ = frozenset({
    "model", "messages", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "seed",
    "stop", "stream", "stream_options", "tools", "tool_choice",
})  # fmt: skip
# They say who asks and what for, not what is to be answered.
_ABOUT_THE_ASKER = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
# Values that ask for nothing beyond what is done, of fields that are not honoured otherwise.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
}
_REFUSED = frozenset(
    {"audio", "prediction", "reasoning_effort", "web_search_options", "functions", "function_call"}
)
_INSTEAD = {
    "functions": "; use tools",
    "function_call": "; use tools and tool_choice",
    "response_format": "; ask for the form in the messages",
}


@dataclass(frozen=True)
class Asked:
    """A request as the engine understands it: LLaMA-Factory's roles, tools as JSON."""

    messages: list[dict[str, str]]
    system: str | None
    tools: str | None
    most_tokens: int | None
    n: int
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    count_in_stream: bool


def read(body: bytes, known: Known) -> Asked:
    """The request, or why it is not answered.

    Raises:
        Refused: it is broken, or asks for what is not done here.
    """
    asked = _parsed(body)
    _check_fields(asked)
    # Clients have names of their own built in; one model is here, and each answer names it.
    if not isinstance(asked.get("model"), str):
        raise wrong("model must be text", "model")
    conversation = Conversation(known)
    conversation.read(asked.get("messages"))
    n = _count(asked, "n", MOST_ANSWERS) or 1
    temperature = _number(asked, "temperature", 0, 2)
    top_p = _number(asked, "top_p", 0, 1)
    hot = temperature is not None and temperature >= COLDEST
    if n > 1 and not hot:
        raise wrong("n above 1 gives the same answer n times without a temperature above 0", "n")
    if top_p == 0:
        raise wrong("top_p must be above 0", "top_p")
    if top_p not in (None, 1) and temperature is None:
        raise wrong("top_p needs a temperature: the default here is 0", "top_p")
    stream = _flag(asked, "stream", "stream")
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict) or (options and not stream):
        raise wrong("stream_options must be an object, beside stream: true", "stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise unsupported(f"stream_options.{name}")
    if _flag(options, "include_obfuscation", "stream_options.include_obfuscation"):
        raise unsupported("stream_options.include_obfuscation")
    return Asked(
        messages=conversation.turns,
        system=conversation.system,
        tools=_tools(asked),
        most_tokens=_limit(asked, known.most_tokens),
        n=n,
        temperature=temperature or 0.0 if hot else 0.0,
        top_p=1.0 if top_p is None else top_p,
        seed=_seed(asked),
        stops=_stops(asked.get("stop")),
        stream=stream,
        count_in_stream=_flag(options, "include_usage", "stream_options.include_usage"),
    )


def _parsed(body: bytes) -> dict[str, Any]:
    """The body as JSON; null says the same as nothing."""
    try:
        asked = json.loads(body.decode("utf-8"), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise wrong(f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise wrong("the body is not a JSON object")
    _check_plain(asked)
    return {name: value for name, value in asked.items() if value is not None}


def _check_plain(asked: Any) -> None:
    level = [asked]
    for _ in range(DEEPEST):
        for value in level:
            texts = value if isinstance(value, dict) else [value] if isinstance(value, str) else ()
            if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
                raise wrong("half of a surrogate pair is no text")
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise wrong(f"the body nests deeper than {DEEPEST} levels")


def _check_fields(asked: dict[str, Any]) -> None:
    for name, value in asked.items():
        if name in _READ or name in _ABOUT_THE_ASKER:
            continue
        if name in _NEUTRAL:
            # 1 is not true here
            allowed = [json.dumps(one) for one in _NEUTRAL[name]]
            if json.dumps(value) not in allowed:
                raise unsupported(name, f", except {allowed[0]}{_INSTEAD.get(name, '')}")
        elif name in _REFUSED:
            raise unsupported(name, _INSTEAD.get(name, ""))
        else:
            raise Refused(400, f"{name[:80]!r} is not a known field", "unknown_parameter", name)


def _tools(asked: dict[str, Any]) -> str | None:
    """The tools as trained, None where the model is to have none."""
    choice = asked.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise unsupported("tool_choice", ", except auto and none: a call can't be enforced")
    tools = asked.get("tools", [])
    if not isinstance(tools, list):
        raise wrong("tools must be a list", "tools")
    functions = []
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise unsupported(where, ": tools are of type function")
        name, description = function.get("name"), function.get("description", "")
        parameters = function.get("parameters", {"type": "object", "properties": {}})
        if not isinstance(name, str) or not isinstance(description, str | None):
            raise wrong(f"{where}: name and description must be text", where)
        if not isinstance(parameters, dict):
            raise wrong(f"{where}.parameters must be a JSON Schema", where)
        if function.get("strict"):
            raise unsupported(f"{where}.strict", ": arguments can't be enforced")
        functions.append({"name": name, "description": description or "", "parameters": parameters})
    if not functions or choice == "none":
        return None
    return json.dumps(functions, ensure_ascii=False)


def _limit(asked: dict[str, Any], most: int) -> int | None:
    old = _count(asked, "max_tokens", most)
    new = _count(asked, "max_completion_tokens", most)
    if old is not None and new is not None and old != new:
        raise wrong("max_tokens and max_completion_tokens differ", "max_completion_tokens")
    return new if old is None else old


def _seed(asked: dict[str, Any]) -> int | None:
    seed = asked.get("seed")
    if seed is None or (type(seed) is int and -(2**63) <= seed < 2**63):
        return seed
    raise wrong("seed must be a whole number of 64 bits", "seed")


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(text, str) and text for text in stops)
    ):
        raise wrong(f"stop must be text, or at most {MOST_STOPS} texts, none empty", "stop")
    return tuple(stops)


def _count(asked: dict[str, Any], name: str, most: int) -> int | None:
    value = asked.get(name)
    if value is None or (type(value) is int and 1 <= value <= most):
        return value
    raise wrong(f"{name} must be a whole number from 1 to {most}", name)


def _number(asked: dict[str, Any], name: str, least: float, most: float) -> float | None:
    value = asked.get(name)
    if value is None:
        return None
    if type(value) in (int, float) and least <= value <= most:
        return float(value)  # transformers takes no 1 for 1.0
    raise wrong(f"{name} must be a number from {least:g} to {most:g}", name)


def _flag(asked: dict[str, Any], name: str, where: str) -> bool:
    value = asked.get(name)
    if not isinstance(value, bool | None):
        raise wrong(f"{where} must be true or false", where)
    return bool(value)
