"""What stands before the API: who may ask, how much, and whether it can be answered at all.

Runs in the training interpreter (see serve_model.py). It imports no web framework: an ASGI
application around another one. Whatever it refuses is answered in OpenAI's form of an error.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_BODY = 4 * 2**20
MOST_ANSWERS = 8
MOST_MESSAGES = 1000
DEEPEST = 50
_ROLES = ("system", "user", "assistant", "function", "tool")


class Refused(Exception):
    """A request that is not passed on."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Guard:
    """Around an API that answers whatever it is asked.

    Args:
        app: the API.
        key: what everybody has to send, None when nobody has to.
        hosts: names under which it is asked; None for any. A page of the web that lets its own name
            point to this machine is not among them.
        most_tokens: the longest answer that may be asked for.
    """

    def __init__(self, app: Any, key: str | None, hosts: Iterable[str] | None, most_tokens: int):
        self._app, self._key, self._most_tokens = app, key, most_tokens
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._admit(scope)
            body = await _body(scope, receive)
            if scope["method"] == "POST":
                body = self._checked(body)
        except Refused as refused:
            await answer_error(send, refused.status, refused.message, refused.code)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._app({**scope, "headers": headers}, _whole(body, receive), send)

    def _admit(self, scope: Scope) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise Refused(421, f"this server is not {host!r}", "unknown_host")
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "pages of other origins may not ask", "origin_not_allowed")
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode(), (self._key or "").encode()
        )
        if self._key is not None and not right:
            raise Refused(401, "the key is missing or wrong", "invalid_api_key")

    def _checked(self, body: bytes) -> bytes:
        """A request that can be answered, as JSON."""
        try:
            asked = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise _wrong(f"the body is not JSON: {error}") from None
        if not isinstance(asked, dict):
            raise _wrong("the body is not a JSON object")
        _check_plain(asked)
        _check_messages(asked.get("messages"))
        self._check_settings(asked)
        return json.dumps(
            {name: value for name, value in asked.items() if value is not None}
        ).encode()

    def _check_settings(self, asked: dict[str, Any]) -> None:
        if not isinstance(asked.get("model"), str):
            raise _wrong("model must be text")
        _check_count(asked, "n", MOST_ANSWERS)
        _check_count(asked, "max_tokens", self._most_tokens)
        _check_number(asked, "temperature", 0, 2)
        _check_number(asked, "top_p", 0, 1)
        _check_number(asked, "presence_penalty", 0, 2)
        # LLaMA-Factory takes it for a factor, which must not be 0; OpenAI's 0 means none
        if not asked.get("presence_penalty"):
            asked.pop("presence_penalty", None)
        if asked.get("top_p") == 0:
            raise _wrong("top_p must be above 0")
        for name in ("stream", "do_sample"):
            if not isinstance(asked.get(name), bool | None):
                raise _wrong(f"{name} must be true or false")
        stop = asked.get("stop")
        stops = [stop] if isinstance(stop, str) else stop
        if stops is not None and not (
            isinstance(stops, list) and len(stops) <= 16 and all(isinstance(s, str) for s in stops)
        ):
            raise _wrong("stop must be text, or at most 16 texts")
        tools = asked.get("tools")
        if tools is not None and not (
            isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
        ):
            raise _wrong("tools must be a list of objects")
        if asked.get("stream") and (tools or (asked.get("n") or 1) > 1):
            raise _wrong("a stream has one answer and no tools")


async def answer_error(send: Send, status: int, message: str, code: str) -> None:
    """One error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body; one that says that it is too large is not read at all."""
    for name, value in scope["headers"]:
        if name == b"content-length" and not (value.isdigit() and int(value[:20]) <= LARGEST_BODY):
            raise _too_large()
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the request broke off", "disconnected")
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            raise _too_large()
        if not message.get("more_body"):
            return bytes(body)


def _whole(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what comes, such as the end of the connection."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _name(host: str) -> str:
    """The host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _check_plain(asked: Any) -> None:
    level = [asked]
    for _ in range(DEEPEST):
        for value in level:
            texts = (
                [value]
                if isinstance(value, str)
                else list(value)
                if isinstance(value, dict)
                else []
            )
            if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
                raise _wrong("half of a surrogate pair is no text")
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise _wrong(f"the body nests deeper than {DEEPEST} levels")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages must be a list with at least one message")
    if len(messages) > MOST_MESSAGES:
        raise _wrong(f"more than {MOST_MESSAGES} messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _wrong(f"messages[{number}] needs a role: {', '.join(_ROLES)}")
        content = message.get("content")
        calls = message["role"] == "assistant" and bool(message.get("tool_calls"))
        if isinstance(content, list):
            if not all(
                isinstance(part, dict)
                and part.get("type") == "text"
                and isinstance(part.get("text"), str)
                for part in content
            ):
                raise _wrong(f"messages[{number}]: this model reads text alone")
        elif not isinstance(content, str) and not (content is None and calls):
            raise _wrong(f"messages[{number}].content must be text")


def _check_count(asked: dict[str, Any], name: str, most: int) -> None:
    value = asked.get(name)
    if value is not None and not (type(value) is int and 1 <= value <= most):
        raise _wrong(f"{name} must be a whole number from 1 to {most}")


def _check_number(asked: dict[str, Any], name: str, least: float, most: float) -> None:
    value = asked.get(name)
    if value is None:
        return
    if type(value) not in (int, float) or not least <= value <= most:
        raise _wrong(f"{name} must be a number from {least:g} to {most:g}")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _wrong(message: str) -> Refused:
    return Refused(400, message, "invalid_value")


def _too_large() -> Refused:
    return Refused(413, f"the body is larger than {LARGEST_BODY // 2**20} MiB", "too_large")
