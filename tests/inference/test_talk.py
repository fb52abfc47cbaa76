"""chat and serve through the command line, with a child that loads no model."""

import json
import os
import pty
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from iisft.inference import talk
from iisft.runs.record.folder import RunFolder

CLI = Callable[..., Any]
MakeRun = Callable[..., RunFolder]


def chat(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "iisft", "chat", "run", *options]
    return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_questions_from_a_pipe_are_answered_line_by_line(make_run: MakeRun) -> None:
    make_run()
    done = chat('你好\nsecond\n/clear\n"""one\ntwo"""\n\n/exit\nnever asked\n')
    assert (done.returncode, done.stdout) == (
        0,
        "asked 1 of 你好\nasked 3 of second\nasked 1 of one\ntwo\n",
    )
    assert "run needs about 1.0 GiB of memory" in done.stderr


def test_help_and_slips_are_no_questions(make_run: MakeRun) -> None:
    make_run()
    done = chat("/help\n/claer\n/etc/passwd?\n")
    assert (done.returncode, done.stdout) == (0, "asked 1 of /etc/passwd?\n")
    said = "/clear forgets, /help says this, /exit or Ctrl-D ends\n"
    assert done.stderr.count(said) == 2
    assert "no command /claer: a line is a question;" in done.stderr


def test_the_end_of_the_pipe_ends_the_conversation(make_run: MakeRun) -> None:
    make_run()
    done = chat("hello", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (
        0,
        [{"question": "hello", "answer": "asked 1 of hello"}],
    )


def test_a_question_that_can_not_be_answered_ends_a_pipe_with_1(make_run: MakeRun) -> None:
    make_run()
    done = chat("too long\n")
    assert (
        done.returncode,
        "the conversation has 9 tokens, the context ends at 8" in done.stderr,
    ) == (1, True)


def test_chat_takes_one_adapter(make_run: MakeRun) -> None:
    make_run()
    done = chat("", "--checkpoint", "all")
    assert (done.returncode, "--checkpoint all is only for predict" in done.stderr) == (2, True)


def test_at_a_terminal_ctrl_c_ends_the_answer_and_not_the_conversation(make_run: MakeRun) -> None:
    make_run()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "iisft", "chat", "run"])
    screen = b""

    def until(text: bytes) -> None:
        nonlocal screen
        while text not in screen:
            assert select.select([terminal], [], [], 30)[0], screen
            screen += os.read(terminal, 4096)
        screen = screen.partition(text)[2]

    until(b"> ")
    os.write(terminal, b"endless\n")
    until(b"and on and on")
    os.write(terminal, b"\x03")
    until(b"> ")
    os.write(terminal, b"too long\n")
    until(b"the context ends at 8")
    until(b"> ")
    os.write(terminal, "再来\n".encode())
    until("asked 1 of 再来".encode())
    until(b"> ")
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_model_of_another_precision_says_nothing(make_run: MakeRun, child: Any) -> None:
    make_run()
    child("other-precision")
    done = chat("hello\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "arithmetic bfloat16, but the preset says float32" in done.stderr


def test_serve_listens_on_this_machine_alone_unless_asked(iisft: CLI, make_run: MakeRun) -> None:
    make_run()
    result = iisft("serve", "run", "--port", "0", "--json")
    answer = json.loads(result.out)
    assert (result.code, answer["model"], answer["api_key"]) == (0, "run", None)
    assert answer["url"].startswith("http://127.0.0.1:")


def test_a_key_is_made_when_others_can_reach_it_and_stands_in_no_file(
    iisft: CLI, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    first, second = (
        json.loads(iisft("serve", "run", "--host", "0.0.0.0", "--port", "0", "--json").out)[
            "api_key"
        ]
        for _ in (1, 2)
    )
    assert len(first) >= 32
    assert first != second
    for path in folder.path.rglob("*"):
        if path.is_file():
            assert first.encode() not in path.read_bytes(), path
    monkeypatch.setenv(talk.KEY_VARIABLE, "my own")
    for host in ("0.0.0.0", "127.0.0.1"):
        shown = iisft("serve", "run", "--host", host, "--port", "0")
        assert '-H "Authorization: Bearer $IISFT_API_KEY"' in shown.err
        assert "my own" not in shown.out + shown.err


def test_a_taken_port_is_refused_before_anything_is_loaded(
    iisft: CLI, make_run: MakeRun, child: Any
) -> None:
    folder = make_run()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = iisft("serve", "run", "--port", str(port), "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"], error["where"]) == (4, "port-taken", f"127.0.0.1:{port}")
    assert error["fix"] == f"--port {port + 1}, or --port 0 for any free one"
    assert not folder.log_of("serve").exists()


def test_a_run_folder_that_can_not_be_written_is_named(make_run: MakeRun) -> None:
    folder = make_run()
    folder.logs.rmdir()
    done = chat("hello\n")
    assert (done.returncode, "the run folder can't be written" in done.stderr) == (4, True)
