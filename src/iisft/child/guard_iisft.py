"""What stands before the API: who may ask, and how much.

Runs in the training interpreter (see serve_model.py). It imports no web framework: an ASGI
application. Whatever is refused, here or behind, is answered in OpenAI's form of an error.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from chat_turns import Refused

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# what answers: an ASGI application whose request was read already
Answering = Callable[[Scope, bytes, Receive, Send], Awaitable[None]]

LARGEST_BODY = 4 * 2**20
# a client that is still sending never reads the answer: so much is taken and thrown away
LARGEST_DRAINED = 64 * 2**20


class Guard:
    """Around an API that answers whoever asks.

    Args:
        app: the API; it may raise Refused until it has begun to answer.
        key: what everybody has to send, None when nobody has to.
        hosts: names under which it is asked; None for any. A page of the web that lets its own name
            point to this machine is not among them.
    """

    def __init__(self, app: Answering, key: str | None, hosts: Iterable[str] | None) -> None:
        self._app, self._key = app, key
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            try:
                self._admit(headers)
                body = await _body(headers, receive)
            except Refused:
                await _drain(headers, receive)
                raise
            await self._app(scope, body, receive, send)
        except Refused as refused:
            await answer(send, refused.status, error_of(refused), close=True)

    def _admit(self, headers: dict[bytes, str]) -> None:
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


def error_of(refused: Refused) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    about = {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}
    return {"error": about}


async def answer(send: Send, status: int, content: Any, *, close: bool = False) -> None:
    """A whole answer, as JSON."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if close else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(headers: dict[bytes, str], receive: Receive) -> bytes:
    """The whole body; one that says that it is too large is not read at all."""
    if not _within(headers, LARGEST_BODY):
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


async def _drain(headers: dict[bytes, str], receive: Receive) -> None:
    """Take the rest of a body that is refused, unless the client waits for a go-ahead."""
    if b"expect" in headers or not _within(headers, LARGEST_DRAINED):
        return
    taken = 0
    while taken <= LARGEST_DRAINED:
        message = await receive()
        taken += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _within(headers: dict[bytes, str], most: int) -> bool:
    said = headers.get(b"content-length", "0")
    return said.isascii() and said.isdigit() and int(said[:20]) <= most


def _name(host: str) -> str:
    """The host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _too_large() -> Refused:
    return Refused(413, f"the body is larger than {LARGEST_BODY // 2**20} MiB", "too_large")
