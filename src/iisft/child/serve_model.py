"""LLaMA-Factory's OpenAI-style API over a run's model, on a socket that was bound before the model
was loaded.

Runs in the training interpreter (see run_model.py). The specification has besides: {"socket":
descriptor}.
"""

import socket
import types
from typing import Any, NoReturn

import uvicorn
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from run_model import Link, agreed, load
from talking import Generate, TooLong


class Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, link: Link) -> None:
        super().__init__(config)
        self._link = link

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._link.send(kind="ready")


def no_fetching(*args: Any, **kwargs: Any) -> NoReturn:
    """LLaMA-Factory would fetch the address of an image for whoever asks."""
    raise HTTPException(status_code=400, detail="this model reads text alone")


def main() -> None:
    link = Link()
    spec = link.receive()
    chat = load(spec)
    agreed(link, chat.engine)
    Generate(chat.engine)
    from llamafactory.api import app as api_app
    from llamafactory.api import chat as api_chat

    api_chat.requests = types.SimpleNamespace(get=no_fetching)
    api_chat.check_ssrf_url = api_chat.check_lfi_path = no_fetching
    app = api_app.create_app(chat)

    @app.exception_handler(TooLong)
    async def too_long(request: Any, error: TooLong) -> JSONResponse:
        return JSONResponse(
            {"error": {"message": str(error), "code": "context_length_exceeded"}}, status_code=400
        )

    Server(uvicorn.Config(app), link).run(sockets=[socket.socket(fileno=spec["socket"])])
    link.send(kind="end")


if __name__ == "__main__":
    main()
