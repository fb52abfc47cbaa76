"""The server of the live page: one page and one stream of events, for this machine alone.

Who has the key may look, and nobody can change anything. The key is a part of the address, so it
stands in no header, cookie or variable; the page sends no referrer, and nothing is logged. A page
elsewhere can't read this one: its name would be another Host (DNS rebinding), and no header shares
anything with other origins.
"""

import contextlib
import hmac
import re
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs

from iisft import json_values
from iisft.report.live.look import Event, Machine, Page
from iisft.report.page import live_page
from iisft.secrets import hide
from iisft.workspace import Workspace

HOST = "127.0.0.1"
LOOK_S = 1.0
MOST_PAGES = 8
_MOST_CONNECTIONS = 64
_GPUS_EVERY_S = 4.0
_ALIVE_EVERY_S = 15.0  # something is sent, so that a tunnel that is gone is noticed
_PATIENCE_S = 30.0  # for a request, and for a reader to take the next piece
_PIECE = 64 * 1024
_OWN_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.ASCII | re.IGNORECASE)
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


class LivePage(ThreadingMixIn, HTTPServer):
    """Answers at a bound socket until `close`.

    Each page has a thread, and looks by itself at its own pace: a slow one keeps nobody waiting and
    nothing is kept for it.
    """

    daemon_threads = False  # close() waits for them
    block_on_close = True
    request_queue_size = 64  # what finds no room in it tries again a second later (listen(2))

    def __init__(self, listener: socket.socket, workspace: Workspace) -> None:
        # not bound by HTTPServer, which would ask the name service who this machine is
        super().__init__((HOST, 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_activate()
        self.key = secrets.token_urlsafe(24)
        self.url = f"http://{HOST}:{listener.getsockname()[1]}/{self.key}/"
        self.machine = Machine(workspace, LOOK_S / 2)
        self.closing = threading.Event()
        self._looking = 0
        self._counting = threading.Lock()
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._sensing = threading.Thread(target=self._ask_gpus, name="sensors")
        self._sensing.start()

    def close(self) -> None:
        """End every page; no thread is left."""
        self.closing.set()
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._sensing.join()

    @contextlib.contextmanager
    def seat(self) -> Iterator[bool]:
        """For one open page. Whether there was one left."""
        with self._counting:
            free = self._looking < MOST_PAGES
            self._looking += free
        try:
            yield free
        finally:
            with self._counting:
                self._looking -= free

    def _ask_gpus(self) -> None:
        """While somebody looks."""
        asked = -_GPUS_EVERY_S
        while not self.closing.wait(LOOK_S / 4):
            if self._looking and time.monotonic() - asked >= _GPUS_EVERY_S:
                self.machine.ask_gpus()
                asked = time.monotonic()

    # From here on what socketserver calls.

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            super().shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        self._room.release()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A traceback for a bug; none for a reader that went away or was too slow."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE_S
    server: LivePage
    server_version, sys_version = "iisft", ""

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _OWN_HOST.fullmatch(hosts[0]):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this is not the machine that was asked")
            return
        path, _, query = self.path.partition("?")
        key, slash, place = path.removeprefix("/").partition("/")
        given, right = (text.encode("utf-8", "replace") for text in (key, self.server.key))
        if not hmac.compare_digest(given, right):
            self._refuse(
                HTTPStatus.FORBIDDEN, "use the whole address that iisft watch --web printed"
            )
        elif not slash:  # the page's own addresses are relative to its folder
            self._answer(HTTPStatus.PERMANENT_REDIRECT, b"", {"Location": f"/{self.server.key}/"})
        elif place == "":
            page, policy = live_page()
            headers = {"Content-Type": "text/html; charset=utf-8"}
            self._answer(HTTPStatus.OK, page, headers | {"Content-Security-Policy": policy})
        elif place == "events":
            self._events(parse_qs(query).get("run", [None])[0])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is the page, and nothing else")

    def _events(self, run: str | None) -> None:
        with self.server.seat() as free:
            if not free:
                text = f"{MOST_PAGES} pages are open: close one of them"
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, text)
                return
            self._answer(HTTPStatus.OK, None, {"Content-Type": "text/event-stream; charset=utf-8"})
            self._stream(Page(self.server.machine, run))

    def _stream(self, page: Page) -> None:
        here = select.poll()
        here.register(self.connection, select.POLLIN)
        said = -_ALIVE_EVERY_S
        while not self.server.closing.is_set():
            for event in page.look():
                self._send(_line(event))
                said = time.monotonic()
            if time.monotonic() - said >= _ALIVE_EVERY_S:
                self._send(b":\n\n")
                said = time.monotonic()
            if here.poll(LOOK_S * 1000):  # it has hung up: a page says nothing after its request
                return

    def _send(self, content: bytes) -> None:
        """In pieces: the time limit is for each, so that a slow line is slow and not cut off."""
        for start in range(0, len(content), _PIECE):
            self.wfile.write(content[start : start + _PIECE])

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Security-Policy": _NOTHING}
        self._answer(status, f"{text}\n".encode(), headers)

    def _answer(self, status: HTTPStatus, body: bytes | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | headers).items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None:
            self._send(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, without repeating what was asked."""
        self._refuse(HTTPStatus(code), HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address has the key in it."""


def _line(event: Event) -> bytes:
    name, content = event
    return f"event: {name}\ndata: {hide(json_values.json_text(content))}\n\n".encode()
