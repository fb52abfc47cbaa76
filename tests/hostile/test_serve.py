"""Requests that no client of good will sends, to what stands before the API."""

import asyncio
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI

sys.path.append(str(Path(__file__).parents[2] / "src" / "iisft" / "child"))
guard = importlib.import_module("guard_iisft")
chat_request = importlib.import_module("chat_request")

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
KNOWN = chat_request.Known("m", 4096, ("<call>", "</call>"), "<and>")
Ask = Callable[..., tuple[int, dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture
def ask() -> Ask:
    """Send one request through a guard and the reader; status, answer, and what would be done."""

    def send_one(
        body: bytes | Any = b"",
        *,
        method: str = "POST",
        key: str | None = None,
        hosts: list[str] | None = None,
        chunks: int = 1,
        taken: list[int] | None = None,
        **headers: str,
    ) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        reached: list[dict[str, Any]] = []
        sent: list[dict[str, Any]] = []
        size = -(-len(content) // chunks) or 1
        parts = [content[i : i + size] for i in range(0, len(content), size)] or [b""]
        taken = [] if taken is None else taken

        async def api(scope: Any, body: bytes, receive: Any, send: Any) -> None:
            if method == "POST":
                reached.append(dataclasses.asdict(chat_request.read(body, KNOWN)))
            await guard.answer(send, 200, {})

        async def receive() -> dict[str, Any]:
            taken.append(1)
            part = parts[len(taken) - 1]
            return {"type": "http.request", "body": part, "more_body": len(taken) < len(parts)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        given = {"host": "127.0.0.1:8000"} | headers
        scope = {
            "type": "http",
            "method": method,
            "path": "/v1/chat/completions",
            "headers": [(n.replace("_", "-").encode(), v.encode()) for n, v in given.items()],
        }
        asyncio.run(guard.Guard(api, key, hosts)(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"]), reached

    return send_one


def test_a_request_of_good_will_is_passed_on(ask: Ask) -> None:
    assert ask(HELLO)[::2] == (
        200,
        [
            {
                "messages": [{"role": "user", "content": "hello"}],
                "system": None,
                "tools": None,
                "most_tokens": None,
                "n": 1,
                "temperature": 0.0,
                "top_p": 1.0,
                "seed": None,
                "stops": (),
                "stream": False,
                "count_in_stream": False,
            }
        ],
    )
    assert ask(method="GET")[0] == 200


def changed(**values: Any) -> dict[str, Any]:
    return HELLO | values


def message(**values: Any) -> dict[str, Any]:
    return changed(messages=[{"role": "user", "content": "x"} | values])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"null",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 60 + b"1" + b"}" * 60,
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "top_p": 1e999}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "\\udfff": 1}',
        {},
        {"model": "m"},
        changed(n=2),
        changed(n=2, temperature=0),
        changed(top_p=0.5),
        changed(stop=""),
        changed(stop=["x", ""]),
        changed(seed=2**63),
        changed(seed=1.5),
        changed(seed=True),
        changed(max_tokens=3, max_completion_tokens=4),
        changed(stream_options={"include_usage": True}),
        changed(stream=True, stream_options={"include_usage": 1}),
        changed(stream=True, stream_options={"other": 1}),
        changed(model=None),
        changed(model=3),
        changed(messages=[]),
        changed(messages="x"),
        changed(messages=[1]),
        changed(messages=[HELLO["messages"][0]] * 1001),  # type: ignore[index]
        message(content=None),
        message(content=3),
        message(content={}),
        message(role="root"),
        message(role=None),
        message(content=[{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]),
        message(content=["x"]),
        message(content=[{"type": "text", "text": None}]),
        message(role="assistant", content=None),
        *(
            changed(**{name: value})
            for name in ("n", "max_tokens", "max_completion_tokens")
            for value in (0, -1, 100_000, 1.5, "1", True, [1], 10**400)
        ),
        *(
            changed(**{name: value})
            for name in ("temperature", "top_p", "presence_penalty")
            for value in (-1, 3, "1", True, [], 10**400)
        ),
        changed(top_p=0),
        changed(stream="yes"),
        changed(stop=1),
        changed(stop=["x"] * 17),
        changed(stop=[None]),
        changed(tools={}),
        changed(tools=[1]),
        changed(stream=True, tools=[{}]),
        changed(tools=[{"type": "custom", "custom": {"name": "f"}}]),
        changed(tools=[{"type": "function", "function": {}}]),
        changed(tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]),
        changed(tools=[{"type": "function", "function": {"name": "f", "strict": True}}]),
    ],
)
def test_what_can_not_be_answered_is_400_in_openais_form(body: Any, ask: Ask) -> None:
    status, answer, reached = ask(body)
    assert (status, reached) == (400, [])
    assert answer["error"]["type"] == "invalid_request_error"
    assert isinstance(answer["error"]["message"], str)


def test_a_clients_own_name_for_the_model_is_answered(ask: Ask) -> None:
    assert ask(HELLO | {"model": "gpt-4"})[0] == 200
    assert ask(HELLO | {"model": 4})[0] == 400


def test_a_body_that_is_too_large_is_not_read(ask: Ask) -> None:
    assert ask(b"", content_length="157286400")[0] == 413
    assert ask(b"", content_length="9" * 5000)[0] == 413
    assert ask(b"", content_length="-1")[0] == 413
    assert ask(b" " * (5 * 2**20), chunks=50)[0] == 413


def test_a_client_that_still_sends_is_heard_out_before_it_is_refused(ask: Ask) -> None:
    """One that writes while nobody reads is cut off, and never sees why."""
    taken: list[int] = []
    ten = b" " * (10 * 2**20)
    assert ask(ten, chunks=10, taken=taken, content_length=str(len(ten)))[0] == 413
    assert len(taken) == 10
    taken.clear()
    assert ask(ten, chunks=10, taken=taken, key="secret")[0] == 401
    assert len(taken) == 10
    taken.clear()
    waiting = {"content_length": str(len(ten)), "expect": "100-continue"}
    assert ask(ten, chunks=10, taken=taken, **waiting)[0] == 413
    assert taken == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "bearer secret"}, 200),
    ],
)
def test_the_key_counts_for_everything(headers: dict[str, str], status: int, ask: Ask) -> None:
    assert ask(HELLO, key="secret", **headers)[0] == status
    assert ask(method="GET", key="secret", **headers)[0] == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8000", 421),
        ("", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("localhost.", 200),
    ],
)
def test_a_name_that_points_here_is_not_ours(host: str, status: int, ask: Ask) -> None:
    assert ask(HELLO, hosts=["localhost", "127.0.0.1", "::1"], host=host)[0] == status


def test_pages_of_other_origins_may_not_ask(ask: Ask) -> None:
    assert ask(HELLO, origin="http://evil.example")[0] == 403
    assert ask(method="OPTIONS", origin="null")[0] == 403
    assert ask(HELLO, origin="http://127.0.0.1:8000")[0] == 200


@pytest.mark.parametrize("port", ["80000", "-1", "65536", "99999999999999999999"])
def test_ports_that_do_not_exist(port: str, iisft: CLI) -> None:
    result = iisft("serve", "--port", port)
    assert (result.code, "65535" in result.err) == (2, True)


def test_hosts_that_are_none(iisft: CLI) -> None:
    for host in ("\udcff", "a" * 300, "no such host", "..", "x\0y"):
        assert iisft("serve", "--host", host).code in (2, 4)
