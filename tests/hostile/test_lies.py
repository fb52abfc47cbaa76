"""Servers that lie: a hub whose listings are broken in one place, and a model's server that answers
anything. Each command ends by itself, with an exit code of the contract and every row's error told.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hub_server import HubServer
from models_on_disk import REPO
from test_api import Server, answer, ask, server
from test_fuzz import BAD_TEXTS, SEEDS, _limit, attack, broken

from iisft import process

__all__ = ["_limit", "ask", "attack", "server"]  # fixtures
SOME = SEEDS if len(SEEDS) > 12 else SEEDS[::3]
RAW = (b"", b"null", b"[" * 100_000, b"<html>login</html>", b"\xff\xfe", b'{"a": NaN}', b"\0" * 99)


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """The limit only ends what would never end; the machine may be busy."""
    with process.time_limit(120):
        yield


def lie(value: Any, draw: random.Random) -> Any:
    """A true answer with one part or all of it changed."""
    try:
        told = draw.choice(RAW) if draw.random() < 0.1 else broken(value, draw)
        return told if isinstance(told, bytes) else json.dumps(told).encode()
    except RecursionError:
        return b"[" * 5000


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("seed", SOME)
def test_hubs(seed: int, source: str, attack: Any, hub: HubServer) -> None:
    draw = random.Random(f"{seed} {source}")
    told: list[bytes] = []

    def tell(value: Any) -> Any:
        told.append(lie(value, draw) if draw.random() < 0.7 else json.dumps(value).encode())
        return told[-1]

    hub.lie = tell
    attack("download", REPO, "--source", source, "--transfer", "iisft", note=told)
    attack("model", "show", REPO, note=told)
    attack("models", "--json", note=told)


@pytest.mark.parametrize("seed", SOME)
def test_servers_of_models(seed: int, attack: Any, ask: Any, server: Server) -> None:
    draw = random.Random(seed)
    told: list[Any] = []

    def plan(question: str, number: int) -> tuple[int, dict[str, str], Any]:
        status = draw.choice((200,) * 6 + (204, 301, 400, 401, 404, 429, 500, 503))
        headers = {}
        if draw.random() < 0.3:
            name = draw.choice(("Retry-After", "Content-Type", "Location", "Content-Encoding"))
            headers[name] = draw.choice([text for text in BAD_TEXTS if text.isascii()])[:200]
            headers[name] = headers[name].replace("\n", " ").replace("\x1b", "")
        text = lie(answer(question), draw).decode("latin-1")
        told.append((status, headers, text[:200]))
        return status, headers, text

    server.plan = plan
    for more in ((), ("--parallel", "1")):
        result = ask(*more)
        assert "bug in iisft" not in result.err and "Traceback" not in result.err, told
        assert result.code in (0, 1, 2, 3, 4, 5, 6), told
        assert not [c for c in result.err + result.out if ord(c) < 0x20 and c not in "\n\t"], told
    attack("evaluate", "run", note=told)
