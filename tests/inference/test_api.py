"""--backend api against a server that misbehaves as it is told."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from iisft.inference import api
from iisft.runs.record.folder import RunFolder

CLI = Callable[..., Any]
MakeRun = Callable[..., RunFolder]
Plan = Callable[[str, int], tuple[int, dict[str, str], Any]]


class Server(ThreadingHTTPServer):
    """Answers with what `plan` says for the n-th request for a row: (status, headers, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.plan: Plan = lambda question, number: (
            200,
            {},
            answer(question),
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a client hangs up on a lie; the traceback would go to the stderr that a test looks at
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self.server.lock:
            number = sum(
                before["messages"][-1]["content"] == question for before in self.server.asked
            )
            self.server.asked.append(body)
            self.server.headers.append(dict(self.headers))
        status, headers, value = self.server.plan(question, number)
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def answer(question: str, finish: str = "stop") -> dict[str, Any]:
    choice = {
        "message": {"role": "assistant", "content": f"to {question}"},
        "finish_reason": finish,
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(api, "_LONGEST_PAUSE_S", 0.0)
    # A proxy is never asked for this machine's own server.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def ask(iisft: CLI, make_run: MakeRun, staged: str, server: Server) -> Callable[..., Any]:
    make_run(state="lost", checkpoints=())

    def run(*more: str, url: str | None = None) -> Any:
        options = ("--backend", "api", "--url", url or server.url, "--api-model", "org/Model 7B")
        return iisft("predict", "run", "--data", staged, *options, *more)

    return run


def rows_of(ask: Any, workspace: Any) -> list[dict[str, Any]]:
    file = RunFolder(workspace / "runs" / "run").predictions_of("情报", "api-org-Model-7B")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_row_is_asked_once_with_the_key_from_the_environment(
    ask: Any, server: Server, workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    result = ask("--max-tokens", "9")
    assert result.code == 0, result.err
    rows = rows_of(ask, workspace)
    assert [row["row"] for row in rows] == list(range(1, 11))
    assert rows[1] == {
        "row": 2,
        "prompt": "问 2",
        "reference": "答 2",
        "prediction": "to 问 2",
        "prompt_tokens": 7,
        "tokens": 3,
        "stop": "eos",
        "error": None,
    }
    assert server.asked[0] == {
        "model": "org/Model 7B",
        "messages": [{"role": "user", "content": server.asked[0]["messages"][0]["content"]}],
        "temperature": 0,
        "max_tokens": 9,
    }
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}
    for path in (workspace / "runs" / "run").rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes()


def test_what_passes_is_tried_again_and_what_does_not_is_the_rows_error(
    ask: Any, server: Server, workspace: Any
) -> None:
    def plan(question: str, number: int) -> tuple[int, dict[str, str], Any]:
        if question == "问 3" and number < 2:
            return 429, {"Retry-After": "1"}, "slow down"
        if question == "问 4" and number == 0:
            return 500, {}, "oops"
        if question == "问 5":
            return 400, {}, "the prompt is too long"
        if question == "问 6":
            return 200, {}, "no JSON"
        if question == "问 7":
            return 200, {}, answer(question, "content_filter")
        if question == "问 8":
            return 200, {}, answer(question, "length")
        return 200, {}, answer(question)

    server.plan = plan
    result = ask("--parallel", "3")
    assert result.code == 0, result.err
    rows = {row["row"]: row for row in rows_of(ask, workspace)}
    assert {number: row["error"] for number, row in rows.items() if row["error"]} == {
        5: "HTTP 400: the prompt is too long",
        6: "the answer is not a JSON object: no JSON",
        7: "the server ended the answer by 'content_filter'",
    }
    assert (rows[3]["prediction"], rows[4]["prediction"], rows[8]["stop"]) == (
        "to 问 3",
        "to 问 4",
        "length",
    )
    assert len(server.asked) == 10 + 2 + 1
    server.plan = lambda question, number: (200, {}, answer(question))
    again = ask("--json")
    assert json.loads(again.out)[0] | {"file": ""} == {
        "checkpoint": "api-org-Model-7B",
        "file": "",
        "rows": 10,
        "generated": 3,
        "errors": 0,
        "cut_off": 1,
        "longer_than_cutoff": 0,
    }


@pytest.mark.parametrize(
    ("status", "headers"), [(401, {}), (404, {}), (307, {"Location": "http://example.org/"})]
)
def test_a_server_that_refuses_everything_is_asked_no_further(
    ask: Any, server: Server, workspace: Any, status: int, headers: dict[str, str]
) -> None:
    server.plan = lambda question, number: (status, headers, "no")
    result = ask("--parallel", "1", "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"], len(server.asked)) == (4, "api-refused", 1)
    assert error["message"] == f"the server refuses: HTTP {status}: no"
    assert rows_of(ask, workspace) == []


def test_a_server_that_is_not_there_leaves_the_rows_for_later(ask: Any, workspace: Any) -> None:
    result = ask(url="http://127.0.0.1:9/v1")
    assert (result.code, "the server can't be reached" in result.err) == (4, True)
    assert rows_of(ask, workspace) == []
    assert ask().code == 0


def test_no_more_requests_at_once_than_asked(ask: Any, server: Server) -> None:
    barrier = threading.Barrier(3, timeout=20)
    at_once, most = 0, 0
    lock = threading.Lock()

    def plan(question: str, number: int) -> tuple[int, dict[str, str], Any]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        if question in ("问 1", "问 2", "问 3"):
            barrier.wait()  # passes only when three come together
        with lock:
            at_once -= 1
        return 200, {}, answer(question)

    server.plan = plan
    assert ask("--parallel", "3").code == 0
    assert most == 3


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://x/v1", "--url is not an http address: ftp://x/v1"),
        ("x", "--url is not an http address: x"),
    ],
)
def test_wrong_addresses(ask: Any, url: str, sentence: str) -> None:
    result = ask(url=url)
    assert (result.code, sentence in result.err) == (2, True)


MALFORMED: list[Any] = [
    {"choices": None},
    {"choices": []},
    {"choices": {}},
    {"choices": "x"},
    {"choices": [None]},
    {"choices": ["x"]},
    {"choices": [[]]},
    {"choices": [{"finish_reason": []}]},
    [],
    "null",
    "3",
    {"choices": [{"finish_reason": {}, "message": None}]},
    "[" * 100_000,
    '{"a":' * 2000,
    "\ud83d",
    {"choices": [{"finish_reason": "stop", "message": {"content": 3}}]},
    {"choices": [{"finish_reason": "stop", "message": {"content": ["x"]}}]},
    {"choices": [{"finish_reason": 1e400, "message": {"content": "x"}}]},
    '{"choices": NaN}',
    "\x1b[2J",
    {"choices": [{"finish_reason": "\x1b[2J" * 9999, "message": {"content": "x"}}]},
    "x" * (17 * 2**20),
]


@pytest.mark.parametrize("value", MALFORMED)
def test_an_answer_of_another_form_is_the_error_of_its_row(
    value: Any, ask: Any, server: Server, workspace: Any
) -> None:
    text = value.encode("utf-8", "surrogatepass").decode("latin-1") if value == "\ud83d" else value
    server.plan = lambda question, _: (200, {}, text if "3" in question else answer(question))
    result = ask()
    assert "bug in iisft" not in result.err
    failed = [row for row in rows_of(ask, workspace) if row["error"]]
    assert [len(failed), len(rows_of(ask, workspace))] == [1, 10]
    assert len(failed[0]["error"]) < 600


def test_figures_of_a_server_that_are_none_are_left_out(
    ask: Any, server: Server, workspace: Any
) -> None:
    wrong = [float("nan"), -1, "7", None, [], {}, 1e300, True, 10**400, 2.5]
    server.plan = lambda question, _: (
        200,
        {},
        answer(question) | {"usage": {"prompt_tokens": wrong.pop(), "completion_tokens": "x"}},
    )
    assert ask("--parallel", "1").code == 0
    assert {(row["prompt_tokens"], row["tokens"]) for row in rows_of(ask, workspace)} == {
        (None, None)
    }


@pytest.mark.parametrize(
    "url",
    ["http://host:80000/v1", "http://[::1/v1", "http://", "file:///etc/passwd", "http://host:x"],
)
def test_addresses_that_are_none(url: str, ask: Any) -> None:
    assert ask(url=url).code == 2


def test_an_answer_that_can_not_be_unpacked_is_the_error_of_its_row(
    ask: Any, server: Server, workspace: Any
) -> None:
    server.plan = lambda question, _: (200, {"Content-Encoding": "gzip"}, "no gzip")
    assert ask().code in (0, 1)
    assert {"can't be decoded" in row["error"] for row in rows_of(ask, workspace)} == {True}
