"""LLaMA-Factory's OpenAI-style API for a run's model, on a socket bound beforehand.

Runs in the training interpreter (see run_model.py). The specification also has: {"socket":
descriptor, "key": text or null, "hosts": the names it may be asked under, null for any}.
"""

import socket
import types
from typing import Any, NoReturn

import uvicorn
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from guard_iisft import Guard
from run_model import Link, agreed, load
from talking import Generate, TooLong

LONGEST_ANSWER = 131_072  # tokens, of a model that names no context


class Server(uvicorn.Server):
    """Reports when it answers."""

    def __init__(self, config: uvicorn.Config, link: Link) -> None:
        super().__init__(config)
        self._link = link

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._link.send(kind="ready")


def said(message: str, status: int, code: str) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)


def no_fetching(*args: Any, **kwargs: Any) -> NoReturn:
    """LLaMA-Factory fetches image URLs of a request (api/chat.py): nobody may use that."""
    raise HTTPException(status_code=400, detail="this model reads only text")


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
    # LLaMA-Factory lets every page of the web ask
    app.user_middleware = [one for one in app.user_middleware if one.cls is not CORSMiddleware]

    @app.exception_handler(TooLong)
    async def too_long(request: Any, error: TooLong) -> JSONResponse:
        return said(str(error), 400, "context_length_exceeded")

    @app.exception_handler(HTTPException)
    async def refused(request: Any, error: HTTPException) -> JSONResponse:
        return said(str(error.detail), error.status_code, "refused")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Any, error: RequestValidationError) -> JSONResponse:
        return said(str(error.errors()[0].get("msg")), 400, "invalid_value")

    @app.exception_handler(Exception)
    async def failed(request: Any, error: Exception) -> JSONResponse:
        return said(f"{type(error).__name__}: {error}", 500, "server_error")

    context = getattr(chat.engine.model.config, "max_position_embeddings", None)
    guard = Guard(app, spec["key"], spec["hosts"], context or LONGEST_ANSWER)
    Server(uvicorn.Config(guard), link).run(sockets=[socket.socket(fileno=spec["socket"])])
    link.send(kind="end")


if __name__ == "__main__":
    main()
