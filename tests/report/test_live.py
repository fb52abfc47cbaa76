"""The live page's server: who may look, what is told, and what a hostile or broken file, a slow
reader and many runs do to it.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from helpers import until
from iisft import files
from iisft.machine.facts import sensors
from iisft.machine.facts.sensors import GpuSample
from iisft.report.live import listing, server
from iisft.report.live.look import Machine, Page
from iisft.report.live.server import LivePage
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace

from .conftest import EVIL, make_run

Told = dict[str, Any]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[LivePage]:
    """A server whose looks follow each other at once; it leaves no thread."""
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    before = threading.enumerate()
    listener = socket.create_server(("127.0.0.1", 0))
    page = LivePage(listener, Workspace.current())
    thread = threading.Thread(target=page.serve_forever, args=(0.05,))
    thread.start()
    yield page
    page.shutdown()
    thread.join()
    page.close()
    assert threading.enumerate() == before


def ask(live: LivePage, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    address = urlsplit(live.url)
    with closing(http.client.HTTPConnection(address.hostname or "", address.port)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        return response


class Stream:
    """An open stream of events, as a browser has it."""

    def __init__(self, live: LivePage, run: str | None = None) -> None:
        address = urlsplit(live.url)
        self._connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=30
        )
        query = "" if run is None else f"?run={quote(run)}"
        self._connection.request("GET", f"{address.path}events{query}")
        self.response = self._connection.getresponse()

    def next(self, wanted: str, fits: Callable[[Told], bool] = lambda _: True) -> Told:
        """The next event of that name that fits."""
        name = ""
        while line := self.response.readline():
            text = line.decode().rstrip("\n")
            if text.startswith("event: "):
                name = text[7:]
            elif text.startswith("data: ") and name == wanted:
                told: Told = json.loads(text[6:])
                if fits(told):
                    return told
        raise AssertionError(f"the stream ended without {wanted}")

    def close(self) -> None:
        self.response.close()
        self._connection.close()


def append(folder: RunFolder, *added: dict[str, Any]) -> None:
    for event in added:
        files.append_line(folder.events, json.dumps(event))


def metrics(step: int, kind: str = "metrics", **values: Any) -> dict[str, Any]:
    return {"time": 2000.0 + step, "kind": kind, "step": step, "total_steps": 60} | values


def queued(name: str, place: int) -> RunFolder:
    """A run that waits in the workspace's queue."""
    folder = make_run(name, {})
    folder.exit.unlink()
    folder.events.unlink()
    record = json.loads(folder.record.read_text())
    record |= {"queue": {"cards": 0}, "forecast": {"total_h": 2}, "created": time.time()}
    folder.record.write_text(json.dumps(record))
    folder.queue_entry.parent.mkdir(exist_ok=True)
    folder.queue_entry.write_text(json.dumps({"place": place}))
    return folder


def page(asked: str | None = None) -> Page:
    workspace = Workspace.current()
    return Page(Machine(workspace, 0), asked)


def look(page: Page) -> dict[str, Told]:
    return {name: dict(told) for name, told in page.look()}


# Who may look.


def test_without_the_right_key_and_the_own_name_nothing_is_told(live: LivePage) -> None:
    key = f"/{live.key}/"
    wrong = [
        "/",
        "/events",
        f"/{live.key}x/",
        f"/{live.key[:-1]}/events",
        "//",
        "/%2e/",
        "/é/",
    ]
    assert [ask(live, quote(path, safe="/%")).status for path in wrong] == [403] * len(wrong)
    assert ask(live, f"/{live.key}").headers["Location"] == key
    assert ask(live, f"{key}../runs").status == 404
    assert ask(live, key, "POST").status == 501
    own = ("localhost:9", "127.0.0.1", "[::1]:65535", "LOCALHOST:80")
    assert [ask(live, key, Host=host).status for host in own] == [200] * len(own)
    foreign = ("evil.example:8577", "127.0.0.1.evil.example", "localhost@evil.example", "10.0.0.1")
    assert [ask(live, key, Host=host).status for host in foreign] == [421] * len(foreign)
    with socket.create_connection(live.socket.getsockname()) as raw:  # no Host at all
        raw.sendall(f"GET {key} HTTP/1.0\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.0 421")


def test_what_the_page_may_do_and_what_it_keeps_to_itself(
    live: LivePage, capfd: pytest.CaptureFixture[str]
) -> None:
    found = ask(live, f"/{live.key}/")
    headers = dict(found.headers)
    policy = dict(
        part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy.pop("script-src").startswith("'sha256-")
    assert policy.pop("style-src").startswith("'sha256-")
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in headers and "Access-Control-Allow-Origin" not in headers
    body = found.body.decode()  # type: ignore[attr-defined]
    assert live.key not in body and "127.0.0.1:" not in body and "localhost" not in body
    for path in (f"/{live.key}/nowhere", "/wrong/", f"/{live.key}/"):
        ask(live, path, "BREW")
    assert capfd.readouterr() == ("", ""), "no address is logged: the key is in it"


# What is told.


def test_everything_first_and_then_what_changes(live: LivePage, run: RunFolder) -> None:
    folder = make_run("second", {})
    folder.exit.unlink()
    folder.record.write_text(json.dumps({"preset_name": "mi50", "created": 900.0}))
    with closing(Stream(live, folder.id)) as stream:
        assert stream.response.headers["Content-Type"].startswith("text/event-stream")
        assert stream.next("hello")["workspace"] == os.environ["IISFT_HOME"]
        rows = {row["id"]: row for row in stream.next("runs")["changed"]}
        assert rows.keys() == {run.id, folder.id}
        assert (rows[run.id]["state"], rows[run.id]["step"]) == ("finished", 40)
        facts = stream.next("run")["facts"]
        assert (facts["id"], facts["state"], facts["restarts"]) == (folder.id, "lost", 1)
        assert [each["message"] for each in facts["findings"]] == [f"GPU 1 throttles {EVIL}"]
        now = stream.next("now")
        assert (now["step"], now["total_steps"], now["eval_loss"]) == (40, 40, 0.61)
        assert now["figures"]["learning_rate"] == 0.0004
        curves = stream.next("curves")
        assert curves["whole"] is True and curves["step"] == list(range(1, 41))
        assert curves["curves"]["loss"][29] is None and curves["eval"]["loss"] == [0.61]
        assert stream.next("log") == {"lines": []}
        folder.logs.mkdir()
        folder.train_log.write_text("a\r 10%\r 20%\n\x1b[31mred\x1b[0m\u202e\n")
        assert stream.next("log")["lines"] == [" 20%", "red"]
        append(folder, metrics(41, loss=0.25, tokens_per_s=800.0))
        more = stream.next("curves")
        assert (more["whole"], more["step"]) == (False, [41])
        assert (more["curves"]["loss"], more["curves"]["tokens_per_s"]) == ([0.25], [800.0])
        shutil.rmtree(run.path)
        assert stream.next("runs", lambda told: bool(told["gone"]))["gone"] == [run.id]


def test_a_restarted_run_goes_on_in_the_same_curves(run: RunFolder) -> None:
    shown = page(run.id)
    look(shown)
    append(
        run,
        {"time": 2041.0, "kind": "state", "state": "restarting", "message": "SIGKILL"},
        {"time": 2042.0, "kind": "state", "state": "running", "from_step": 38},
        metrics(39, "redone", loss=9.0),
        metrics(40, "redone", loss=9.0),
        metrics(41, loss=0.2),
    )
    told = look(shown)
    assert told["run"]["facts"]["restarts"] == 2
    assert told["curves"]["step"] == [41] and told["curves"]["curves"]["loss"] == [0.2]
    marks = [(mark["kind"], mark["step"]) for mark in told["curves"]["marks"]]
    assert marks[-2:] == [("restarting", 40), ("resumed", 38)]


def test_torn_foreign_and_remade_events(run: RunFolder) -> None:
    shown = page()
    assert look(shown)["curves"]["step"] == list(range(1, 41))
    with run.events.open("a") as file:
        file.write('gs": \xff{"step": 1e999}\n[[[[\n{"time": "x", "kind": {}}\n')
        huge = {"step": 10**400, "time": 10**400, "loss": 10**400}
        for kind in ("metrics", "checkpoint", "state"):
            file.write(json.dumps({"kind": kind} | huge) + "\n")
            file.write(json.dumps({"kind": kind} | huge | {"time": 5, "state": "lost"}) + "\n")
        file.write('{"time": 1, "k')
    told = look(shown)
    assert told["curves"]["step"] == [] and "now" not in told
    assert [mark["kind"] for mark in told["curves"]["marks"]][:2] == ["checkpoint", "lost"]
    with run.events.open("a") as file:
        file.write('ind": "metrics", "step": 41, "loss": 1.5}\n')
    append(run, metrics(42, loss="nan"))
    told = look(shown)["curves"]
    assert (told["step"], told["curves"]["loss"]) == ([41, 42], [1.5, None])
    run.events.write_text(json.dumps(metrics(1, loss=3.0)) + "\n")  # shorter: made again
    told = look(shown)["curves"]
    assert (told["whole"], told["step"], told["marks"]) == (True, [1], [])
    run.events.unlink()
    assert look(shown)["curves"]["step"] == []
    run.events.mkdir()
    assert look(shown)["curves"]["step"] == []
    assert look(shown) == {}


def test_no_run_then_a_run_that_is_removed_and_comes_back() -> None:
    shown = page()
    told = look(shown)
    assert (told["runs"], told["run"]) == ({"changed": [], "gone": []}, {"id": None, "facts": None})
    assert look(shown) == {}
    folder = make_run("first", {})
    told = look(shown)
    assert told["run"]["facts"]["id"] == "first" and told["curves"]["whole"] is True
    shutil.rmtree(folder.path)
    assert look(shown)["run"] == {"id": None, "facts": None}
    asked = page("../first")
    assert look(asked)["run"] == {"id": "../first", "facts": None}, "no way out of the workspace"
    gone = page("first")
    assert look(gone)["run"] == {"id": "first", "facts": None}
    make_run("first", {})
    assert look(gone)["run"]["facts"]["id"] == "first"


def test_who_names_no_run_sees_the_newest_one() -> None:
    make_run("old", {})
    shown = page()
    assert look(shown)["run"]["id"] == "old"
    newer = make_run("newer", {})
    newer.record.write_text(json.dumps({"preset_name": "mi50", "created": 5000.0}))
    assert look(shown)["run"]["id"] == "newer"


def test_the_queue_is_shown_and_what_waits_there_is_not_taken_for_the_newest_run(
    workspace: Path,
) -> None:
    make_run("over", {})
    queued("later", 2)
    queued("等 first", 1)
    shown = page()
    told = look(shown)
    assert told["run"]["id"] == "over"
    queue = told["queue"]
    lines = [(line["position"], line["id"], line["state"]) for line in queue["runs"]]
    assert lines == [(1, "等 first", "queued"), (2, "later", "queued")]
    assert queue["runs"][0]["ends"] - queue["runs"][0]["starts"] == 2 * 3600
    assert queue["runs"][0]["ends"] == queue["runs"][1]["starts"]
    assert queue["paused"] is False
    (workspace / "queue" / "paused").touch()
    told = look(shown)["queue"]
    assert told["paused"] is True and told["runs"][0]["starts"] is None


def test_a_long_curve_is_thinned_and_ends_with_its_last_point(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iisft.report.live.look._MOST_POINTS", 15)
    told = look(page())["curves"]
    assert told["step"] == list(range(1, 41, 3)) and len(told["curves"]["loss"]) == 14


def test_gpus_are_asked_while_somebody_looks(
    live: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sample() -> list[GpuSample]:
        asked.append(1)
        return [GpuSample("amd", "MI50", 97.0, 24.0, 32.0, 83.0, 223.5, False)]

    monkeypatch.setattr(sensors, "sample", sample)
    assert ask(live, f"/{live.key}/").status == 200 and not asked
    with closing(Stream(live)) as stream:
        [gpu] = stream.next("gpus", lambda told: told["gpus"])["gpus"]
    assert (gpu["name"], gpu["busy_percent"], gpu["throttled"]) == ("MI50", 97.0, False)


def test_secrets_that_a_file_holds_are_hidden(
    run: RunFolder, live: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    run.logs.mkdir()
    run.train_log.write_text("token hf_secretsecret, https://me:pass@host/\n")
    with closing(Stream(live)) as stream:
        assert stream.next("log")["lines"] == ["token ***, https://***@host/"]


# How much it takes.


def test_so_many_pages_and_not_one_more(live: LivePage, run: RunFolder) -> None:
    with ExitStack() as stack:
        open_ones = [stack.enter_context(closing(Stream(live))) for _ in range(server.MOST_PAGES)]
        for stream in open_ones:
            stream.next("log")
        refused = ask(live, f"/{live.key}/events")
        assert refused.status == 503
        assert refused.body.decode() == "8 pages are open: close one of them\n"  # type: ignore[attr-defined]
        open_ones[0].close()
        until(lambda: looks(live), 30)  # a page that was closed frees its place
    idle = [socket.create_connection(live.socket.getsockname()) for _ in range(70)]
    for connection in idle:
        connection.close()
    until(lambda: looks(live), 30)


def looks(live: LivePage) -> bool:
    """Whether one more page is let in."""
    try:
        with closing(Stream(live)) as stream:
            return stream.response.status == 200 and bool(stream.next("hello"))
    except (ConnectionError, http.client.RemoteDisconnected):  # no room at all
        return False


def test_a_reader_that_does_not_read_holds_nobody_up(live: LivePage, run: RunFolder) -> None:
    run.logs.mkdir()
    run.train_log.write_text("".join("x" * 300 + "\n" for _ in range(100)))
    with run.events.open("a") as file:
        lines = (json.dumps(metrics(step, loss=0.5)) + "\n" for step in range(41, 60_000))
        file.writelines(["\n", *lines])
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with closing(slow), closing(Stream(live)) as stream:
        slow.connect(live.socket.getsockname())
        slow.sendall(f"GET /{live.key}/events HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        stream.next("log")
        for step in range(60_000, 60_020):
            append(run, metrics(step, loss=0.5))
            assert stream.next("curves")["step"] == [step]
        # the fixture closes the server while this one still has not read


def test_many_runs_that_are_over_are_read_once(
    monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    runs = workspace / "runs"
    runs.mkdir()
    said = {"state": "finished", "reason": "", "preset": "mi50", "loss": 1.0, "step": 4}
    long_ago = time.time() - 60
    for number in range(1000):
        folder = runs / f"run-{number}"
        folder.mkdir()
        (folder / "exit.json").write_text(json.dumps(said | {"started": number}))
        os.utime(folder, (long_ago, long_ago))
    read = []
    real = listing.brief_of
    monkeypatch.setattr(listing, "brief_of", lambda folder: read.append(folder.id) or real(folder))
    shown = page("run-7")
    assert len(look(shown)["runs"]["changed"]) == 1000 == len(read)
    read.clear()
    assert look(shown) == {} and read == []
    (runs / "run-5" / "exit.json").unlink()  # resumed
    told = look(shown)
    assert [row["id"] for row in told["runs"]["changed"]] == read == ["run-5"]


# The command.


def test_the_command_prints_the_address_and_the_tunnel_and_ends_with_ctrl_c(
    run: RunFolder, workspace: Path
) -> None:
    env = os.environ | {"SSH_CONNECTION": "192.0.2.7 5000 192.0.2.1 2222"}
    argv = [sys.executable, "-m", "iisft", "watch", "--web", run.id, "--port", "0"]
    with subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None and command.stderr is not None
        url = command.stdout.readline().strip()
        address = urlsplit(url)
        assert address.query == "run=%E8%B7%91+%3Cb%3E1"
        assert len(address.path) == len("//") + 32
        said = [command.stderr.readline() for _ in range(2)]
        port = address.port
        assert f"ssh -N -L {port}:127.0.0.1:{port} -p 2222 " in said[0]
        assert "@192.0.2.1   then the same address there" in said[0]
        with closing(http.client.HTTPConnection("127.0.0.1", port or 0, timeout=30)) as connection:
            connection.request("GET", f"{address.path}events?{address.query}")
            response = connection.getresponse()
            while response.readline() != b"event: log\n":
                pass
            command.send_signal(signal.SIGINT)
            assert command.wait(timeout=60) == 0
            assert response.read().endswith(b"\n\n")
        assert (command.stdout.read(), command.stderr.read()) == ("", "")


def test_what_can_not_be_asked_together(iisft: Callable[..., Any], run: RunFolder) -> None:
    assert iisft("watch", "--web", "--once").code == 2
    assert iisft("watch", "--port", "80").code == 2
    assert iisft("watch", "--web", "nowhere").code == 6
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = iisft("watch", "--web", "--port", str(port))
        assert refused.code == 4 and f"--port {port + 1}" in refused.err
