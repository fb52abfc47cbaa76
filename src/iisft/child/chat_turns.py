"""The messages of a request, as the turns that were trained; and how a request is refused.

Runs in the training interpreter (see serve_model.py) and imports nothing but the standard library.
A conversation becomes what LLaMA-Factory's OpenAIDatasetConverter makes of a row
(data/converter.py).
"""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

MOST_MESSAGES = 1000

_KEYS = {
    "system": {"role", "content"},
    "developer": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls"},
    "tool": {"role", "content", "tool_call_id", "name"},
}


class Refused(Exception):
    """A request that is not answered, in OpenAI's terms."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


@dataclass(frozen=True)
class Known:
    """What a request is read against.

    `call_words` and `between_results` are LLaMA-Factory's: what surrounds calls beside a text, and
    what stands between the results of several calls.
    """

    model: str
    most_tokens: int
    call_words: tuple[str, str]
    between_results: str


class Conversation:
    """Reads messages into turns that alternate: what the model reads, what it said."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self.system: str | None = None
        self.turns: list[dict[str, str]] = []
        self._open: list[str] = []  # calls without a result

    def read(self, messages: Any) -> None:
        if not isinstance(messages, list) or not messages:
            raise wrong("messages must be a list with at least one message", "messages")
        if len(messages) > MOST_MESSAGES:
            raise wrong(f"more than {MOST_MESSAGES} messages", "messages")
        for number, message in enumerate(messages):
            self._read_message(f"messages[{number}]", number, message)
        if self._open:
            raise wrong(f"the call {self._open[0]!r} has no result", "messages")
        if len(self.turns) % 2 == 0:
            raise wrong("the last message must be one to answer: user or tool", "messages")

    def _read_message(self, where: str, number: int, message: Any) -> None:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _KEYS:
            raise wrong(f"{where} needs a role: {', '.join(_KEYS)}", f"{where}.role")
        for key, value in message.items():
            # clients send back what they got, with its empty fields
            if key not in _KEYS[role] and value not in (None, "", [], {}):
                raise unsupported(f"{where}.{key}", f" in a message of {role}")
        calls = message.get("tool_calls")
        content = _text(f"{where}.content", message.get("content"), missing=bool(calls))
        if self._open and role != "tool":
            raise wrong(f"the call {self._open[0]!r} has no result before {where}", where)
        if role in ("system", "developer"):
            if number:
                raise wrong(f"{where}: one system or developer message, and as the first", where)
            self.system = content
        elif role == "user":
            self._turn(where, 0, "user", content)
        elif role == "tool":
            self._result(where, message.get("tool_call_id"), content)
        elif calls:
            self._turn(where, 1, "function", self._calls(f"{where}.tool_calls", calls, content))
        else:
            self._turn(where, 1, "assistant", content)

    def _turn(self, where: str, side: int, role: str, content: str) -> None:
        if len(self.turns) % 2 != side:
            expected = ("user or tool", "assistant")[1 - side]
            raise wrong(f"{where} comes where {expected} is expected: turns alternate", where)
        self.turns.append({"role": role, "content": content})

    def _result(self, where: str, call: Any, content: str) -> None:
        if call not in self._open:
            raise wrong(f"{where}.tool_call_id names no open call", f"{where}.tool_call_id")
        self._open.remove(call)
        if self.turns[-1]["role"] == "observation":
            self.turns[-1]["content"] += self._known.between_results + content
        else:
            self._turn(where, 0, "observation", content)

    def _calls(self, where: str, calls: Any, beside: str) -> str:
        """Calls as trained: names and arguments, these as objects."""
        if not isinstance(calls, list):
            raise wrong(f"{where} must be a list", where)
        plain = []
        for number, call in enumerate(calls):
            given = call.get("function") if isinstance(call, dict) else None
            function = given if isinstance(given, dict) else {}
            name = function.get("name")
            if not isinstance(name, str) or call.get("type", "function") != "function":
                raise wrong(f"{where}[{number}] is not a call of a function", where)
            try:
                arguments = json.loads(function["arguments"], parse_constant=no_number)
            except (KeyError, TypeError, ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                raise wrong(f"{where}[{number}]: arguments must be an object, as JSON text", where)
            if not isinstance(call.get("id"), str) or call["id"] in self._open:
                raise wrong(f"{where}[{number}] needs an id of its own", where)
            self._open.append(call["id"])
            plain.append({"name": name, "arguments": arguments})
        text = json.dumps(plain, ensure_ascii=False)
        return f"{beside}\n{text.join(self._known.call_words)}" if beside else text


def _text(where: str, content: Any, *, missing: bool) -> str:
    """The text of a message, also of one in parts."""
    if isinstance(content, str):
        return content
    if content is None and missing:
        return ""
    if not isinstance(content, list):
        raise wrong(f"{where} must be text", where)
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise unsupported(
                f"{where}[{number}]", f": this model reads text, not {str(kind)[:80]}"
            )
        if not isinstance(part.get("text"), str):
            raise wrong(f"{where}[{number}].text must be text", where)
    return "".join(part["text"] for part in content)


def no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def unsupported(name: str, more: str = "") -> Refused:
    return Refused(400, f"{name} is not supported{more}", "unsupported_parameter", name)


def wrong(message: str, param: str | None = None) -> Refused:
    return Refused(400, message, "invalid_value", param)
