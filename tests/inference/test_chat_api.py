"""Answers and streams of the served API, from a model that says what a test wants."""

import asyncio
import importlib
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "src" / "iisft" / "child"))
chat_api, chat_request, guard, saying = (
    importlib.import_module(name) for name in ("chat_api", "chat_request", "guard_iisft", "saying")
)
END = 0
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


class Letters:
    """A tokenizer: a token is a byte, except the one that ends."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(token for token in ids if token != END).decode(errors="replace")


class Model:
    """Says `text` to everybody, token by token; `gate` holds it up before each."""

    def __init__(
        self, *texts: str, fail: str = "", gate: threading.Semaphore | None = None
    ) -> None:
        self.texts, self.fail, self.gate = texts, fail, gate
        self.steps = 0
        self.seeds: list[int | None] = []

    def prepared(self, asked: Any) -> tuple[dict[str, Any], int]:
        if "too long" in asked.messages[0]["content"]:
            raise chat_request.Refused(400, "too long", "context_length_exceeded", "messages")
        return {"limit": asked.most_tokens or 1000}, 5

    def saying(self, asked: Any, length: int, tell: Callable[[int, str], None]) -> Any:
        return saying.Saying(Letters(), length, asked.n, frozenset({END}), asked.stops, tell)

    def generate(self, kwargs: dict[str, Any], seed: int | None, said: Any) -> None:
        self.seeds.append(seed)
        whole = [[*self.texts[n % len(self.texts)].encode(), END] for n in range(said.count)]
        upto = 0
        for upto in range(1, min(kwargs["limit"], max(map(len, whole))) + 1):
            if self.gate is not None:
                self.gate.acquire()
            self.steps += 1
            if self.fail and upto == 3:
                raise chat_request.Refused(500, self.fail, "server_error")
            if all(said.read([ids[:upto] for ids in whole])):
                break
        said.end([ids[:upto] for ids in whole])

    def calls_in(self, text: str) -> list[tuple[str, str]]:
        return [("f", text[5:])] if text.startswith("CALL ") else []


def served(model: Model) -> Any:
    return guard.Guard(
        chat_api.Api(model, chat_request.Known("m", 99, ("<", ">"), "&")), None, None
    )


async def asks(app: Any, body: Any, *, method: str = "POST", path: str = "/v1/chat/completions",
               send: Any = None, gone: asyncio.Event | None = None) -> tuple[int, str]:  # fmt: skip
    """One request; status and everything that came back."""
    came: list[dict[str, Any]] = []
    given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def keep(message: dict[str, Any]) -> None:
        came.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"host", b"x")]}
    await app(scope, receive, send or keep)
    text = b"".join(message.get("body", b"") for message in came).decode()
    return (came[0]["status"] if came else 0), text


def ask(model: Model, **fields: Any) -> tuple[int, Any]:
    status, text = asyncio.run(asks(served(model), HELLO | fields))
    return status, json.loads(text)


def stream(model: Model, **fields: Any) -> list[Any]:
    """The events of a stream without what differs from request to request."""
    status, text = asyncio.run(asks(served(model), HELLO | {"stream": True} | fields))
    assert status == 200
    events = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    parsed = [json.loads(event) if event != "[DONE]" else event for event in events]
    for event in parsed:
        if isinstance(event, dict) and "id" in event:
            assert event.pop("id").startswith("chatcmpl-")
            assert event.pop("created") > 0
    return parsed


def piece(delta: dict[str, Any], reason: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def test_a_whole_answer() -> None:
    status, body = ask(Model("你好"))
    assert (status, body.pop("id")[:9], body.pop("created") > 0) == (200, "chatcmpl-", True)
    assert body == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "你好", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    }


def test_a_stream_shows_whole_characters_and_counts_at_its_end() -> None:
    first = piece({"role": "assistant", "content": ""})
    assert stream(Model("你a")) == [
        first,
        piece({"content": "你"}),
        piece({"content": "a"}),
        piece({}, "stop"),
        "[DONE]",
    ]
    *_, last, done = stream(Model("a"), stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]["total_tokens"], done) == ([], 7, "[DONE]")


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_texts_end_an_answer_and_are_not_shown(streamed: bool) -> None:
    model = Model("one END two")
    if streamed:
        events = stream(model, stop=["EN", "END", "nothing"])
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
        reason = events[-2]["choices"][0]["finish_reason"]
    else:
        choice = ask(model, stop=["EN", "END", "nothing"])[1]["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason, model.steps) == ("one ", "stop", len("one EN"))


def test_what_only_began_like_a_stop_text_is_shown_at_the_end() -> None:
    events = stream(Model("aEN"), stop="END")
    assert [event["choices"][0]["delta"].get("content") for event in events[1:-2]] == ["a", "EN"]


def test_a_limit_is_said() -> None:
    choice = ask(Model("abcdef"), max_completion_tokens=3)[1]["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("abc", "length")


def test_several_answers_also_as_a_stream() -> None:
    many = {"n": 2, "temperature": 1, "seed": 7}
    model = Model("ab", "c")
    body = ask(model, **many)[1]
    assert [one["message"]["content"] for one in body["choices"]] == ["ab", "c"]
    assert (body["usage"]["completion_tokens"], model.seeds) == (5, [7])
    pieces = [event["choices"][0] for event in stream(Model("ab", "c"), **many)[:-1]]
    assert [(one["index"], one["delta"].get("content")) for one in pieces] == [
        (0, ""), (1, ""), (0, "a"), (1, "c"), (0, "b"), (0, None), (1, None),
    ]  # fmt: skip


def test_calls_are_answered_whole_and_streamed() -> None:
    choice = ask(Model('CALL {"x": 1}'), **TOOLS)[1]["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call == {
        "id": call["id"],
        "type": "function",
        "function": {"name": "f", "arguments": '{"x": 1}'},
    }
    _, calls, last, _ = stream(Model("CALL {}"), **TOOLS)
    (call,) = calls["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["function"]) == (0, {"name": "f", "arguments": "{}"})
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert stream(Model("no call"), **TOOLS)[1:-1] == [
        piece({"content": "no call"}),
        piece({}, "stop"),
    ]


def test_a_refusal_comes_before_a_stream_and_a_failure_within_one() -> None:
    long = {"messages": [{"role": "user", "content": "too long"}], "stream": True}
    status, body = ask(Model("a"), **long)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert ask(Model("abcd", fail="out of luck"))[0] == 500
    *_, last = stream(Model("abcd", fail="out of luck"))
    assert last["error"] == {
        "message": "out of luck",
        "type": "server_error",
        "param": None,
        "code": "server_error",
    }


def test_a_slow_reader_holds_up_nobody() -> None:
    async def both() -> int:
        app, stuck, reading = served(Model("abc")), asyncio.Event(), asyncio.Event()

        async def never(message: dict[str, Any]) -> None:
            reading.set()
            await stuck.wait()

        slow = asyncio.create_task(asks(app, HELLO | {"stream": True}, send=never))
        await reading.wait()
        status, _ = await asks(app, HELLO)
        stuck.set()
        await slow
        return status

    assert asyncio.run(both()) == 200


def test_a_client_that_has_gone_ends_its_answer_and_its_place_in_the_queue() -> None:
    async def three() -> int:
        gate = threading.Semaphore(0)
        model = Model("a" * 500, gate=gate)
        app, gone = served(model), asyncio.Event()
        first = asyncio.create_task(asks(app, HELLO, gone=gone))
        waiting = asyncio.create_task(asks(app, HELLO, gone=gone))
        gate.release()
        while model.steps < 1:
            await asyncio.sleep(0)
        gone.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gate.release(500)
        await asyncio.gather(first, waiting)
        return model.steps

    assert asyncio.run(three()) == 2


def test_fifty_at_once_are_answered_in_the_order_they_came() -> None:
    async def many() -> list[tuple[int, str]]:
        app = served(Model("ab"))
        return await asyncio.gather(
            *(asks(app, HELLO | {"stream": number % 2 == 1}) for number in range(50))
        )

    answers = asyncio.run(many())
    assert [status for status, _ in answers] == [200] * 50
    assert all(text.endswith("data: [DONE]\n\n") for _, text in answers[1::2])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/v1/completions", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
    ],
)
def test_what_is_not_there(method: str, path: str, status: int, code: str) -> None:
    got, text = asyncio.run(asks(served(Model("a")), HELLO, method=method, path=path))
    assert (got, json.loads(text)["error"]["code"]) == (status, code)


def test_the_model_is_listed() -> None:
    for path in ("/v1/models", "/v1/models/m"):
        _, text = asyncio.run(asks(served(Model("a")), HELLO, method="GET", path=path))
        card = json.loads(text)
        (card,) = card["data"] if path == "/v1/models" else [card]
        assert (card["id"], card["object"], card["owned_by"]) == ("m", "model", "iisft")
