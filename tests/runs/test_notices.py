"""Notices of a run, sent for real to a server on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI, until
from iisft.notices import addresses
from iisft.runs.record.folder import RunFolder

TOKEN = "very-secret-word-of-mine"


class Arrived(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.notices: list[tuple[str, str]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"json://127.0.0.1:{self.server_address[1]}/of-mine"

    @property
    def titles(self) -> list[str]:
        """Without the machine's name."""
        return [title.partition(" (")[0] for title, _ in self.notices]


class Handler(BaseHTTPRequestHandler):
    server: Arrived

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.notices.append((body["title"], body["message"]))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def phone() -> Iterator[Arrived]:
    with Arrived() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def findings(folder: RunFolder) -> list[dict[str, Any]]:
    return [
        event
        for event in folder.read_events()
        if event["kind"] == "finding" and event["id"] == "notify"
    ]


def test_a_finished_run_is_told_once(
    train: CLI, folder: RunFolder, phone: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IISFT_NOTIFY", phone.address)
    assert train().code == 0
    until(lambda: phone.notices)
    assert phone.titles == ["iisft: run finished"]
    assert phone.notices[0][1] == (
        "all 4 steps in 0.0 h, loss 0.5000. Look at it: iisft report run"
    )
    assert findings(folder) == []


def test_a_failed_run_is_told_without_what_the_trainer_quoted(
    train: CLI, phone: Arrived, fake_trainer: Callable[..., None], tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    log.write_text("Traceback (most recent call last):\nValueError: a row of mine\n")
    fake_trainer(f"log:{log}")
    once = ("--set", "watch.restarts=0")
    assert train(*once, "--set", f'notify=["{phone.address}"]').code == 1
    until(lambda: phone.notices)
    assert phone.titles == ["iisft: run failed"]
    assert phone.notices[0][1] == (
        "At step 2 of 4: ValueError. More, and the fix: iisft status run"
    )


def test_a_watchdogs_end_and_a_restart_are_told(
    train: CLI, phone: Arrived, fake_trainer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IISFT_NOTIFY", phone.address)
    fake_trainer("crash-once-at-2")
    assert train().code == 0
    until(lambda: len(phone.notices) == 2)
    assert sorted(phone.titles) == ["iisft: run finished", "iisft: run restarts"]
    phone.notices.clear()
    fake_trainer("nan")
    assert train("--name", "second").code == 1
    until(lambda: phone.notices)
    assert phone.notices[0][1].startswith(
        "At step 3 of 4: loss nan, grad_norm 2.102 at step 3 (nan)"
    )


def test_a_place_that_takes_nothing_is_a_finding_and_ends_no_run(
    train: CLI, folder: RunFolder, phone: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone.status = 500
    monkeypatch.setenv("PHONE_TOKEN", TOKEN)
    address = phone.address.replace("json://", "json://me:$PHONE_TOKEN@")
    assert train("--set", f'notify=["{address}"]').code == 0
    until(lambda: findings(folder))
    [finding] = findings(folder)
    assert finding["severity"] == "warn" and finding["fix"] == "iisft notify test"
    assert finding["message"].startswith("no notice reaches json me:****@127.0.0.1:")
    for file in folder.path.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


def test_a_stop_on_request_is_no_news(
    iisft: CLI,
    detached: Callable[..., None],
    folder: RunFolder,
    phone: Arrived,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IISFT_NOTIFY", phone.address)
    detached("ignore-stop", 1)
    assert iisft("stop", "run", "--now").code == 0
    until(folder.exit.exists)
    assert phone.notices == []


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("json://me:pass@127.0.0.1/x", "json me:****@127.0.0.1 holds a secret"),
        ("nonsense://me:pass@127.0.0.1/x", "no notice reaches nonsense: not an address"),
        ("ntfy://$NOT_SET_HERE", "notify names $NOT_SET_HERE, which isn't set"),
    ],
)
def test_addresses_are_looked_at_before_the_start(
    train: CLI, folder: RunFolder, address: str, sentence: str
) -> None:
    result = train("--dry-run", "--set", f'notify=["{address}"]')
    assert sentence in result.err
    assert "pass@" not in result.err + result.out
    assert (result.code == 3) == ("secret" in sentence)


def test_a_variable_is_taken_whole_and_others_follow() -> None:
    env = {"A": "one", "IISFT_NOTIFY": "ntfy://b\n ntfy://c"}
    assert addresses(["ntfy://${A}x/$A"], env) == (["ntfy://onex/one", "ntfy://b", "ntfy://c"], [])


def test_the_test_says_what_each_place_answered(
    iisft: CLI, phone: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert iisft("notify", "test").code == 2
    monkeypatch.setenv("IISFT_NOTIFY", f"{phone.address} nonsense://x")
    result = iisft("notify", "test", "--json")
    assert result.code == 4
    answers = json.loads(result.out)
    assert [answer["why"] for answer in answers] == [
        "",
        "not an address that apprise knows (scheme://...)",
    ]
    assert phone.titles == ["iisft: a test"]


def test_a_queue_tells_what_it_could_not_start_and_that_it_is_empty(
    iisft: CLI, train: CLI, workspace: Path, phone: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IISFT_NOTIFY", phone.address)
    iisft("queue", "pause")
    assert train("--queue").code == 0
    assert train("--queue", "--name", "good").code == 0
    RunFolder(workspace / "runs" / "run").train_yaml.write_text("output_dir: /elsewhere\n")
    iisft("queue", "run")
    until(lambda: len(phone.notices) == 3)
    assert sorted(phone.titles) == [
        "iisft: good finished",
        "iisft: run failed",
        "iisft: the queue is empty",
    ]
    assert [text for title, text in phone.notices if "good" not in title] == [
        "the queue could not start it. More, and the fix: iisft status run",
        "Of 2 runs 1 failed, 1 finished (run). Look at them: iisft runs",
    ]
