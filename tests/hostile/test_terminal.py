"""What reaches a terminal or a pipe: no escape sequences from outside, whole JSON, quiet ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLI = Callable[..., Any]
STEERING = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\r\b\x7f\u2028\U000e0041"
SHOWN = "\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202e\\u2066\\x0d\\x08\\x7f\\u2028\\ue0041"


@pytest.fixture
def run(workspace: Path) -> Path:
    """A run in whose every text somebody put escape sequences."""
    folder = workspace / "runs" / "bad"
    (folder / "logs").mkdir(parents=True)
    preset = {"model": {"id": STEERING}, "summary": STEERING}
    record = {
        "id": STEERING,
        "preset_name": STEERING,
        "preset": preset,
        "created": 1.0,
        "observed": {"weights_dtype": STEERING, STEERING: STEERING},
        "gpus": [STEERING],
        "expected": {"world_size": 1},
    }
    (folder / "run.json").write_text(json.dumps(record))
    events = [
        {
            "time": 1.0,
            "kind": "finding",
            "id": STEERING,
            "severity": STEERING,
            "message": STEERING,
            "fix": STEERING,
        },
        {"time": 2.0, "kind": "metrics", "step": 1, "total_steps": 2, "loss": float("nan")},
        {"time": 3.0, "kind": "state", "state": "restarting", "message": STEERING},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "exit.json").write_text(
        json.dumps({"state": "failed", "reason": STEERING, "fix": STEERING, "preset": STEERING})
    )
    (folder / "logs" / "train.log").write_text(f"line {STEERING} end\n")
    return folder


def steers(text: str) -> list[str]:
    return [
        c for c in text if not (c.isprintable() or c in "\n\t") or c in "\u202e\u2066\U000e0041"
    ]


@pytest.mark.parametrize(
    "argv",
    [
        ("status", "bad"),
        ("runs",),
        ("logs", "bad"),
        ("watch", "bad"),
        ("wait", "bad"),
        ("resume", "bad"),
        ("stop", "bad"),
        ("export", "bad"),
        ("chat", "bad"),
        ("predict", "bad"),
        ("evaluate", "bad"),
        ("runs", "rm", "bad"),
    ],
)
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_no_command_lets_a_run_steer_the_terminal(
    argv: tuple[str, ...], option: tuple[str, ...], iisft: CLI, run: Path
) -> None:
    result = iisft(*argv, *option)
    assert steers(result.out + result.err) == []
    assert "bug in iisft" not in result.err
    if option and result.out:
        json.loads(result.out, parse_constant=pytest.fail)


def test_what_would_steer_is_shown(iisft: CLI, run: Path) -> None:
    # a carriage return ends a line of a log, as progress bars mean it
    assert iisft("logs", "bad").out == f"line {SHOWN} end\n".replace("\\x0d", "\n")
    assert f"bad: failed - {SHOWN}\n" in iisft("status", "bad").out
    assert json.loads(iisft("status", "bad", "--json").out)["reason"] == STEERING


def test_presets_and_files_of_steering_names_are_shown(iisft: CLI, tmp_path: Path) -> None:
    preset = tmp_path / f"{STEERING}.yaml"
    preset.write_text(
        f'extends: demo\nsummary: "{json.dumps(STEERING)[1:-1]}"\nattention: {STEERING!r}\n'
    )
    rows = tmp_path / f"{STEERING}.jsonl"
    rows.write_text(json.dumps({STEERING: STEERING}) + "\n")
    for argv in (
        ("preset", "validate", str(preset)),
        ("preset", "show", str(preset)),
        ("train", "-p", str(preset), "--dry-run"),
        ("data", "check", str(rows)),
        ("data", "stage", str(rows), "--name", "x"),
        ("data", "split", str(rows)),
        ("model", "show", str(tmp_path / STEERING)),
        ("evaluate", str(rows)),
        ("train", "-p", STEERING),
        ("env-check", "--from", str(rows)),
    ):
        result = iisft(*argv)
        assert steers(result.out + result.err) == [], argv
        assert result.code in (2, 3, 4, 6), (argv, result)


def iisft_process(*argv: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "iisft", *argv], **options)


@pytest.mark.parametrize(
    "argv", [("preset", "schema"), ("--help",), ("logs", "long"), ("logs", "long", "--json")]
)
def test_a_reader_that_leaves_ends_a_command_quietly(
    argv: tuple[str, ...], workspace: Path
) -> None:
    folder = workspace / "runs" / "long"
    (folder / "logs").mkdir(parents=True)
    (folder / "exit.json").write_text('{"state": "finished"}')
    (folder / "logs" / "train.log").write_text("a line of the log\n" * 20_000)
    (folder / "events.jsonl").write_text('{"time": 1, "kind": "state"}\n' * 20_000)
    reader, writer = os.pipe()
    os.close(reader)
    command = iisft_process(*argv, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = command.communicate(timeout=30)
    assert (command.returncode, err) == (0, b"")


def test_a_verdict_is_the_same_when_its_reader_leaves(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n" * 10)
    reader, writer = os.pipe()
    os.close(reader)
    command = iisft_process("data", "check", str(bad), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = command.communicate(timeout=30)
    assert (command.returncode, b"Error" in err) == (3, False)


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"])
def test_closed_streams_are_no_bug(closed: str, workspace: Path) -> None:
    for argv, code in (("preset list", 0), ("watch", 6), ("data check nowhere", 3)):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m iisft {argv} {closed}', sys.executable],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, b"bug" in done.stderr) == (code, False), argv
