"""A conversation with a run's model, or its API: one child that keeps the model loaded."""

import contextlib
import os
import secrets
import socket
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from iisft import sockets
from iisft.errors import IisftError, RunFailed
from iisft.inference.base_model import Source
from iisft.inference.worker import Worker, require_proof, started
from iisft.llamafactory import tools
from iisft.runs.record.selection import Chosen

KEY_VARIABLE = "IISFT_API_KEY"


@dataclass
class Conversation:
    """The turns so far, and the model that answers."""

    worker: Worker
    system: str | None
    temperature: float
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> Generator[str]:
        """The answer as it comes; closing the generator stops it. Failed questions are forgotten.

        Raises:
            RunFailed: the model could not answer; the conversation can continue.
        """
        asked = [*self.turns, {"role": "user", "content": text}]
        self.worker.send(messages=asked, system=self.system, temperature=self.temperature)
        answer, ended = "", False
        try:
            while (message := self.worker.receive())["kind"] == "text":
                answer += message["text"]
                yield message["text"]
            ended = True
        finally:
            if not ended:  # interrupted, here or where the text is shown
                self._take_back()
        if message["kind"] == "failed":
            raise RunFailed("no-answer", message["message"], fix="/clear starts over")
        self.turns = [*asked, {"role": "assistant", "content": answer}]

    def _take_back(self) -> None:
        self.worker.send(kind="enough")
        with contextlib.suppress(IisftError):  # it died: the next question says so
            while self.worker.receive()["kind"] == "text":
                pass


@contextlib.contextmanager
def conversation(
    source: Source, chosen: Chosen, *, system: str | None, temperature: float, max_new_tokens: int
) -> Iterator[Conversation]:
    """A loaded model to talk to, for the block.

    Raises:
        RunFailed: it does not compute as in training, or the child died.
        EnvironmentFault: too little memory, or the run folder can't be written.
    """
    with source.opened() as (view, env):
        spec = source.loading(view, chosen, max_new_tokens=max_new_tokens)
        with started(source, "chat_with_model.py", spec, command="chat", env=env) as worker:
            require_proof(source, worker)
            worker.receive()
            yield Conversation(worker, system, temperature)


@dataclass(frozen=True, slots=True)
class Address:
    """Where an API listens. `key`: None where only this machine can reach it."""

    host: str
    socket: socket.socket
    key: str | None

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[Address]:
    """Bind the address before a model is loaded. A key is made if other machines can reach it.

    Raises:
        UsageError: no such port.
        EnvironmentFault: the port is taken, or the host is not an address of this machine.
    """
    with sockets.bound(host, port) as listener:
        yield Address(host, listener, _key(host))


@contextlib.contextmanager
def served(
    source: Source, chosen: Chosen, address: Address, *, name: str, max_new_tokens: int
) -> Iterator[Worker]:
    """An API that answers at `address`, for the block.

    Raises:
        RunFailed: the model does not compute as in training, or the child died.
        EnvironmentFault: too little memory, or the run folder can't be written.
    """
    descriptor = address.socket.fileno()
    with source.opened() as (view, env):
        spec = source.loading(view, chosen, max_new_tokens=max_new_tokens) | {
            "socket": descriptor,
            "name": name,
            "key": address.key,
            "hosts": _names(address.host),
            "call_words": tools.CALL_WORDS,
            "between_results": tools.BETWEEN_RESULTS,
        }
        with started(
            source, "serve_model.py", spec, command="serve", env=env, inherits=[descriptor]
        ) as worker:
            require_proof(source, worker)
            worker.receive()
            yield worker


def _key(host: str) -> str | None:
    """A person's own key always counts; where other machines can ask, one is made."""
    own = os.environ.get(KEY_VARIABLE)
    return own or (None if sockets.is_loopback(host) else secrets.token_urlsafe(32))


def _names(host: str) -> list[str] | None:
    """What a request for this machine alone may call it: a page of the web can let any name point
    here.
    """
    return ["localhost", "127.0.0.1", "::1", host] if sockets.is_loopback(host) else None
