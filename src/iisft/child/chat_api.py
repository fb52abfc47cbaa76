"""OpenAI's chat completions, from a request that was let in to its answer or stream.

Runs in the training interpreter (see serve_model.py); it imports neither torch nor a web framework.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from chat_request import Asked, read
from chat_turns import Known, Refused
from guard_iisft import Receive, Scope, Send, answer, error_of
from saying import Saying

COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/models"


class Model(Protocol):
    """What answers; see serve_model.py."""

    def prepared(self, asked: Asked) -> tuple[dict[str, Any], int]: ...

    def saying(self, asked: Asked, length: int, tell: Callable[[int, str], None]) -> Saying: ...

    def generate(self, kwargs: dict[str, Any], seed: int | None, saying: Saying) -> None: ...

    def calls_in(self, text: str) -> list[tuple[str, str]]: ...


class Api:
    """The requests behind the guard."""

    def __init__(self, model: Model, known: Known) -> None:
        self._model, self._known = model, known
        # who asks first is answered first; a tokenizer is not made for several threads either
        self._preparing, self._turn = asyncio.Lock(), asyncio.Lock()
        self._since = int(time.time())

    async def __call__(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        card = {
            "id": self._known.model,
            "object": "model",
            "created": self._since,
            "owned_by": "iisft",
        }
        if path == COMPLETIONS:
            _require(method, "POST")
            await self._complete(read(body, self._known), receive, send)
        elif path == MODELS:
            _require(method, "GET")
            await answer(send, 200, {"object": "list", "data": [card]})
        elif path == f"{MODELS}/{self._known.model}":
            _require(method, "GET")
            await answer(send, 200, card)
        elif path.startswith(f"{MODELS}/"):
            raise Refused(404, f"the model here is {self._known.model!r}", "model_not_found")
        else:
            raise Refused(404, f"there are {COMPLETIONS} and {MODELS}, not {path}", "not_found")

    async def _complete(self, asked: Asked, receive: Receive, send: Send) -> None:
        async with self._preparing:
            kwargs, length = await asyncio.to_thread(self._model.prepared, asked)
        told: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(number: int, text: str) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (number, text))

        saying = self._model.saying(asked, length, tell)
        watching = asyncio.create_task(_watch(receive, saying))
        generating = asyncio.create_task(self._generate(kwargs, asked, saying))
        generating.add_done_callback(lambda _: told.put_nowait(None))
        try:
            if asked.stream:
                await self._stream(asked, saying, told, generating, send)
            else:
                await generating
                await answer(send, 200, self._whole(asked, saying))
        finally:
            saying.taken_back = True
            watching.cancel()

    async def _generate(self, kwargs: dict[str, Any], asked: Asked, saying: Saying) -> None:
        async with self._turn:
            if not saying.taken_back:
                await asyncio.to_thread(self._model.generate, kwargs, asked.seed, saying)

    def _whole(self, asked: Asked, saying: Saying) -> dict[str, Any]:
        choices = []
        for number, said in enumerate(saying.answers):
            message, reason = self._message(asked, said.text, said.reason)
            message = {"role": "assistant", "content": None, "refusal": None} | message
            choices.append(
                {"index": number, "message": message, "logprobs": None, "finish_reason": reason}
            )
        return self._head("chat.completion") | {"choices": choices, "usage": saying.usage()}

    def _message(self, asked: Asked, text: str, reason: str) -> tuple[dict[str, Any], str]:
        """An answer's content or calls, and why it ended."""
        calls = self._model.calls_in(text) if asked.tools else []
        if not calls:
            return {"content": text}, reason
        functions = [
            {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for name, arguments in calls
        ]
        return {"tool_calls": functions}, "tool_calls"

    async def _stream(
        self, asked: Asked, saying: Saying, told: Any, generating: Any, send: Send
    ) -> None:
        head = self._head("chat.completion.chunk")
        counted: dict[str, Any] = {"usage": None} if asked.count_in_stream else {}

        async def chunk(number: int, delta: dict[str, Any], reason: str | None = None) -> None:
            choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
            await _event(send, head | {"choices": [choice]} | counted)

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"),
                   (b"cache-control", b"no-store")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(asked.n):
            await chunk(number, {"role": "assistant", "content": ""})
        while (piece := await told.get()) is not None:
            if not asked.tools:  # whether it is a call shows at its end
                await chunk(piece[0], {"content": piece[1]})
        try:
            generating.result()
        except Refused as refused:  # clients know an error by its key, also within a stream
            await _event(send, error_of(refused))
        else:
            for number, said in enumerate(saying.answers):
                delta, reason = self._message(asked, said.text, said.reason)
                if asked.tools:
                    calls = enumerate(delta.get("tool_calls", ()))
                    numbered = [{"index": place} | call for place, call in calls]
                    await chunk(number, {"tool_calls": numbered} if numbered else delta)
                await chunk(number, {}, reason)
            if asked.count_in_stream:
                await _event(send, head | {"choices": [], "usage": saying.usage()})
            await send(
                {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True}
            )
        await send({"type": "http.response.body", "body": b""})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._known.model,
        }


def _require(method: str, wanted: str) -> None:
    if method != wanted:
        raise Refused(405, f"{wanted} is expected, not {method}", "method_not_allowed")


async def _event(send: Send, content: dict[str, Any] | str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    body = f"data: {text}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _watch(receive: Receive, saying: Saying) -> None:
    """A client that is gone needs no answer."""
    while (await receive())["type"] != "http.disconnect":
        pass
    saying.taken_back = True
