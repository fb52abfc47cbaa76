"""A model hub on 127.0.0.1 that speaks Hugging Face's and ModelScope's protocols, with faults on
demand.

Enough of both for the official clients, `hf download` and modelscope-hub's. Large files are
LFS files: on the Hugging Face side they are redirected to another host name, as the real hub does.
"""

import fnmatch
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_FROM = 1000  # bytes


@dataclass
class Fault:
    """What goes wrong with the files whose path matches `glob` (the metadata is `@api`).

    `times` counts down with each request that it hits; None = always.
    """

    glob: str = "*"
    times: int | None = None
    status: int | None = None  # answer this instead
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # close the connection after so many bytes of the body
    # send nothing more, but keep the connection, until the server closes
    stall_after: int | None = None
    corrupt: bool = False  # one bit is wrong, the length is right
    short: int = 0  # the body is so many bytes shorter, and says so
    ignore_range: bool = False
    slow_s: float = 0.0  # before the first byte
    redirect: str | None = None  # to this URL
    source: str | None = None  # only this hub's side: "huggingface" or "modelscope"

    def hits(self, path: str, source: str) -> bool:
        return (
            self.times != 0
            and self.source in (None, source)
            and fnmatch.fnmatchcase(path, self.glob)
        )


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    host: str
    headers: dict[str, str]
    when: float  # of time.monotonic()
    sent: int = 0


@dataclass
class Repo:
    """Files by path, at one commit. `gated`: 403 without the right token.

    `extra` goes into the listings as it is.
    """

    files: dict[str, bytes]
    commit: str = "c" * 40
    gated: bool = False
    extra: list[dict[str, Any]] = field(default_factory=list)


class HubServer:
    """The server, its repositories, its faults and what it was asked."""

    def __init__(self, bytes_per_s: float | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.lie: Callable[[Any], Any] | None = None  # what a true answer of the API becomes
        self.seen: list[Seen] = []
        self.token: str | None = None  # what a gated repository wants
        self.bytes_per_s = bytes_per_s  # per connection
        self._changed = threading.Condition()
        self.closing = threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self._scheme = "https" if tls else "http"
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def elsewhere(self) -> str:
        """The same server by another name: another host for every client."""
        return f"{self._scheme}://localhost:{self.port}"

    def start(self) -> "HubServer":
        self._thread.start()
        return self

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def bodies(self, path: str = "") -> list[Seen]:
        """The requests that asked for the bytes of files."""
        marks = ("/resolve/", "FilePath=", "/cdn/")
        bodies = [
            one
            for one in self.seen
            if one.method == "GET" and any(mark in one.path for mark in marks)
        ]
        return [one for one in bodies if quote(path, safe="") in one.path.replace("/", "%2F")]

    @property
    def sent(self) -> int:
        """Bytes of bodies that left the server."""
        return sum(one.sent for one in self.seen)

    def wait_until_sent(self, count: int, timeout_s: float = 60.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.sent >= count, timeout_s), (
                f"{self.sent} of {count} bytes"
            )

    def wait_until_asked(self, mark: str, timeout_s: float = 60.0) -> None:
        """Until a request came whose path has `mark`."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(mark in one.path for one in self.seen), timeout_s
            ), mark

    def asked(self, one: Seen) -> None:
        with self._changed:
            self.seen.append(one)
            self._changed.notify_all()

    def took(self, one: Seen, count: int) -> None:
        with self._changed:
            one.sent += count
            self._changed.notify_all()

    def fault(self, path: str, source: str) -> Fault | None:
        with self._changed:
            for fault in self.faults:
                if fault.hits(path, source):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that were killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        # Small buffers, so that what left the server has nearly arrived.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        hub = self.server.hub
        self.one = Seen(
            self.command,
            self.path,
            self.headers.get("Host", ""),
            dict(self.headers.items()),
            time.monotonic(),
        )
        hub.asked(self.one)
        url = urlsplit(self.path)
        path, query = (
            unquote(url.path),
            {name: values[0] for name, values in parse_qs(url.query).items()},
        )
        routes = (
            (r"/api/models/(?P<repo>.+?)/revision/(?P<rev>[^/]+)", self._hf_revision),
            (r"/api/models/(?P<repo>.+?)/tree/(?P<rev>[^/]+)", self._hf_tree),
            (r"/api/v1/models/(?P<repo>[^/]+/[^/]+)/repo/files", self._ms_files),
            (r"/api/v1/models/(?P<repo>[^/]+/[^/]+)/repo", self._ms_file),
            (r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<rev>[^/]+)/(?P<file>.+)", self._cdn),
            (r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)", self._hf_file),
        )
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, path):
                answer(query=query, **match.groupdict())
                return
        self._json({"error": "not found", "Message": "not found"}, 404)

    # Hugging Face

    def _hf_repo(self, repo: str, rev: str) -> Repo | None:
        found = self.server.hub.repos.get(repo)
        if found is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif found.gated and self.headers.get("Authorization") != f"Bearer {self.server.hub.token}":
            status = 403 if self.headers.get("Authorization") else 401
            self._json({"error": "gated"}, status, {"X-Error-Code": "GatedRepo"})
        elif rev not in ("main", found.commit):
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return found
        return None

    def _hf_revision(self, repo: str, rev: str, query: dict[str, str]) -> None:
        if self._api_fault("huggingface") or (found := self._hf_repo(repo, rev)) is None:
            return
        self._json(
            {
                "id": repo,
                "modelId": repo,
                "sha": found.commit,
                "siblings": [],
                "tags": [],
                "private": False,
            }
        )

    def _hf_tree(self, repo: str, rev: str, query: dict[str, str]) -> None:
        if self._api_fault("huggingface") or (found := self._hf_repo(repo, rev)) is None:
            return
        entries: list[dict[str, Any]] = []
        for path, content in found.files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if len(content) >= LFS_FROM:
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._json(entries + found.extra)

    def _hf_file(self, repo: str, rev: str, file: str, query: dict[str, str]) -> None:
        found = self._hf_repo(repo, rev)
        if found is None:
            return
        content = found.files.get(file)
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": found.commit, "ETag": f'"{git_sha1(content)}"'}
        if len(content) < LFS_FROM:
            self._body(content, file, "huggingface", headers)
            return
        place = (
            f"{self.server.hub.elsewhere}/cdn/{repo}/{rev}/{quote(file)}?Signature=secret-signature"
        )
        headers |= {
            "X-Linked-ETag": f'"{sha256(content)}"',
            "X-Linked-Size": str(len(content)),
            "Location": place,
        }
        self._plain(302, headers)

    def _cdn(self, repo: str, rev: str, file: str, query: dict[str, str]) -> None:
        content = self.server.hub.repos[repo].files[file]
        self._body(content, file, "huggingface", {"ETag": f'"{sha256(content)}"'})

    # ModelScope

    def _ms_repo(self, repo: str, rev: str) -> Repo | None:
        found = self.server.hub.repos.get(repo)
        if found is None:
            self._json(
                {"Code": 10010205001, "Message": f"{repo} not exists", "Success": False}, 404
            )
        elif found.gated and f"Bearer {self.server.hub.token}" != self.headers.get("Authorization"):
            self._json({"Code": 403, "Message": "no access", "Success": False}, 403)
        elif rev not in ("master", found.commit):
            self._json(
                {"Code": 10010205001, "Message": f"revision {rev} not found", "Success": False}, 404
            )
        else:
            return found
        return None

    def _ms_files(self, repo: str, query: dict[str, str]) -> None:
        if (
            self._api_fault("modelscope")
            or (found := self._ms_repo(repo, query.get("Revision", "master"))) is None
        ):
            return
        entries = [
            {
                "Path": path,
                "Name": path.rpartition("/")[2],
                "Type": "blob",
                "Size": len(content),
                "Sha256": sha256(content),
                "Revision": found.commit,
                "CommittedDate": 1763900000,
            }
            for path, content in found.files.items()
        ]
        self._json({"Code": 200, "Success": True, "Data": {"Files": entries + found.extra}})

    def _ms_file(self, repo: str, query: dict[str, str]) -> None:
        found = self._ms_repo(repo, query.get("Revision", "master"))
        if found is None:
            return
        path = query.get("FilePath", "")
        if path not in found.files:
            self._json({"Code": 404, "Message": f"{path} not found", "Success": False}, 404)
            return
        self._body(found.files[path], path, "modelscope", {})

    # answers

    def _api_fault(self, source: str) -> bool:
        fault = self.server.hub.fault("@api", source)
        if fault is None:
            return False
        self.server.hub.closing.wait(fault.slow_s)
        if fault.status is None:
            return False
        self._json({"error": "fault", "Message": "fault"}, fault.status, fault.headers)
        return True

    def _body(self, content: bytes, path: str, source: str, headers: dict[str, str]) -> None:
        fault = (self.command == "GET" and self.server.hub.fault(path, source)) or Fault()
        self.server.hub.closing.wait(fault.slow_s)
        if fault.status is not None:
            self._json({"error": "fault"}, fault.status, fault.headers)
            return
        if fault.redirect is not None:
            self._plain(302, {"Location": fault.redirect})
            return
        if fault.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        content = content[: len(content) - fault.short]
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        end = len(content)
        if wanted and not fault.ignore_range:
            start = int(wanted[1])
            end = min(int(wanted[2]) + 1, end) if wanted[2] else end
            if start >= len(content):
                self._plain(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            status, headers = (
                206,
                {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"},
            )
        self.send_response(status)
        for name, value in {
            **headers,
            "Accept-Ranges": "bytes",
            "Content-Length": str(end - start),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(memoryview(content)[start:end], fault)

    def _send(self, body: memoryview, fault: Fault) -> None:
        limit = min(
            len(body),
            *(cut for cut in (fault.drop_after, fault.stall_after) if cut is not None),
            len(body),
        )
        for piece in _paced(body[:limit], self.server.hub.bytes_per_s):
            self.wfile.write(piece)
            self.server.hub.took(self.one, len(piece))
        if fault.stall_after is not None and limit < len(body):
            self.server.hub.closing.wait()
        if limit < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.server.hub.lie is not None and status == 200:
            value = self.server.hub.lie(value)
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        body = b"" if self.command == "HEAD" else content
        self._plain(status, {"Content-Type": "application/json", **(headers or {})}, body)

    def _plain(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _paced(body: memoryview, bytes_per_s: float | None) -> Iterator[memoryview]:
    piece = 256 * 1024 if bytes_per_s is None else max(4096, min(64 * 1024, int(bytes_per_s / 640)))
    due = time.monotonic()
    for start in range(0, len(body), piece):
        yield body[start : start + piece]
        if bytes_per_s is not None:
            due += piece / bytes_per_s
            time.sleep(max(0.0, due - time.monotonic()))


@lru_cache(maxsize=256)
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=256)
def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def running(**settings: Any) -> Iterator[HubServer]:
    """A started server for the block."""
    hub = HubServer(**settings).start()
    try:
        yield hub
    finally:
        hub.close()
