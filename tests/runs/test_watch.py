"""iisft watch: what one picture shows, and that watching and leaving change nothing."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from helpers import train_argv
from iisft import process
from iisft.machine.facts import sensors
from iisft.machine.facts.sensors import GpuSample
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import status_of

CLI = Callable[..., Any]
OfRun = Callable[[RunFolder, str], dict[str, Any]]
Event = dict[str, Any]
_LEAVES_ITS_SCREEN = "\x1b[?1049l"


@pytest.fixture
def folder(workspace: Path, of_run: OfRun) -> RunFolder:
    """A run with a live supervisor."""
    folder = RunFolder(workspace / "runs" / "run-1")
    folder.logs.mkdir(parents=True)
    launcher = process.identity_of(os.getpid())
    assert launcher is not None
    record = {
        "id": "run-1",
        "preset_name": "mi50",
        "created": time.time(),
        "launcher": launcher.as_json(),
    }
    folder.record.write_text(json.dumps(record))
    supervisor = of_run(folder, process.SUPERVISOR_MARKER)
    folder.processes.write_text(json.dumps({"run": folder.marker, "supervisor": supervisor}))
    return folder


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [
        GpuSample("amd", "AMD INSTINCT MI50 32GB", 97.0, 24.0, 32.0, 83.0, 223.5, False),
        GpuSample("amd", "", None, None, 31.98, 104.0, None, True),
    ]
    monkeypatch.setattr(sensors, "sample", lambda: gpus)


def step(number: int, **values: Any) -> Event:
    figures = {
        "epoch": number / 4,
        "loss": 2 / number,
        "learning_rate": 1e-5,
        "grad_norm": 2.0,
        "step_s": 5.0,
    }
    return {"kind": "metrics", "step": number, "total_steps": 8} | figures | values


def happened(folder: RunFolder, *events: Event | str) -> None:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    folder.events.write_text("".join(line + "\n" for line in lines))


def ended(folder: RunFolder, state: str, reason: str) -> None:
    folder.exit.write_text(
        json.dumps({"state": state, "reason": reason, "returncode": 0, "ended": time.time()})
    )


def test_the_whole_picture_of_a_running_run(iisft: CLI, folder: RunFolder) -> None:
    happened(
        folder,
        {"kind": "state", "state": "running"},
        {"kind": "observed", "rows": 8},
        step(1, step_s=None),
        step(2),
        {"kind": "checkpoint", "step": 2},
        step(3, loss="nan", grad_norm="nan"),
        {"kind": "state", "state": "restarting", "message": "SIGKILL ended the trainer at step 3"},
        {"kind": "state", "state": "running", "from_step": 2},
        step(3, loss=1.0) | {"kind": "redone"},
        step(4, loss="nan", tokens_per_s=812.4, eval_loss=0.75),
        {"kind": "checkpoint", "step": 4},
        {
            "kind": "finding",
            "id": "slow",
            "severity": "warn",
            "message": "GPU 1 is too hot",
            "fix": "more air",
        },
    )
    folder.train_log.write_text(
        "loading [bold]\x1b[31m模型\x1b[0m\n 10%|#    | 1/8\r 20%|##   | 2/8\r\n\nsaved\n"
    )
    result = iisft("watch", "--once")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "run-1  running  preset mi50",
        "",
        f"step 4/8  {'█' * 42}{'░' * 42}  50 %",
        "ETA 20s  5 s/step  loss nan  grad_norm 2  lr 1.00e-05  epoch 1.00  812 tokens/s  "
        "eval_loss 0.7500",
        "",
        "loss, steps 1 to 4, 1 not finite                   grad_norm, steps 1 to 4",
        "       2 ⠑⢄                                               2",
        "           ⠉⠢⡀",
        "             ⠈⠢⡀",
        "               ⠈⠑⢄                                          "
        "⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉",
        "                  ⠑⢄⡀",
        "       1            ⠈⠢⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀",
        "",
        "saved at     2 4",
        "restarts     1  SIGKILL ended the trainer at step 3",
        "",
        "GPU  NAME                    BUSY  MEMORY         TEMP            POWER",
        "0    AMD INSTINCT MI50 32GB  97 %  24.0/32.0 GiB  83 °C           224 W",
        "1    amd                     -     ?/32.0 GiB     104 °C too hot  -",
        "",
        "warn: GPU 1 is too hot",
        "  fix: more air",
        "",
        "log",
        "loading [bold]模型",
        " 20%|##   | 2/8",
        "saved",
    ]


def test_a_pending_run_says_what_it_waits_for(iisft: CLI, folder: RunFolder) -> None:
    folder.processes.unlink()
    out = iisft("watch", "run-1", "--once").out.splitlines()
    waits = "no step yet: the trainer imports torch, loads model and data"
    assert out[:3] == ["run-1  pending  preset mi50", "", waits]


def test_a_lost_run(iisft: CLI, folder: RunFolder) -> None:
    folder.processes.write_text("{}")
    folder.record.write_text(json.dumps({"preset_name": "mi50", "created": 1.0}))
    happened(folder, {"kind": "state", "state": "running"}, step(1))
    assert iisft("watch", "--once").out.splitlines()[:5] == [
        "run-1  lost  preset mi50",
        "the supervisor and the trainer are gone and left no exit record",
        "",
        f"step 1/8  {'█' * 10}{'░' * 74}  12 %",
        "loss 2.0000  grad_norm 2  lr 1.00e-05  epoch 0.25",
    ]


def test_an_unsupervised_run(iisft: CLI, folder: RunFolder, of_run: OfRun) -> None:
    trainer = of_run(folder, process.RUN_MARKER)
    folder.processes.write_text(json.dumps({"run": folder.marker, "trainer": trainer}))
    out = iisft("watch", "--once").out.splitlines()
    assert out[:2] == [
        "run-1  running  preset mi50",
        "unsupervised: the supervisor died, the trainer goes on",
    ]


def test_a_corrupt_record(iisft: CLI, folder: RunFolder) -> None:
    folder.record.write_text('{"id": "ru')
    result = iisft("watch", "--once")
    assert (result.code, result.out.splitlines()) == (
        0,
        ["run-1  lost", status_of(folder).reason, "", "no step was logged"],
    )


@pytest.mark.parametrize(
    ("state", "code"),
    [("finished", 0), ("failed", 1), ("stopped", 130)],
    ids=["finished", "failed", "stopped"],
)
def test_an_ended_run_shows_its_last_picture_and_ends_as_it_did(
    iisft: CLI, folder: RunFolder, state: str, code: int
) -> None:
    happened(folder, {"kind": "state", "state": "running"}, step(8))
    ended(folder, state, "why it ended")
    result = iisft("watch")
    assert result.code == code
    assert result.out.splitlines()[:5] == [
        f"run-1  {state}  preset mi50",
        "why it ended",
        "",
        f"step 8/8  {'█' * 83}  100 %",
        "loss 0.2500  grad_norm 2  lr 1.00e-05  epoch 2.00",
    ]
    assert "GPU" not in result.out  # they do something else by now
    assert iisft("watch", "--once").code == 0


def test_no_such_run(iisft: CLI, folder: RunFolder) -> None:
    result = iisft("watch", "run-2", "--once")
    assert (result.code, "no run named 'run-2'; did you mean run-1?" in result.err) == (6, True)


def test_garbage_in_events_and_log_is_passed_over(iisft: CLI, folder: RunFolder) -> None:
    happened(
        folder,
        '{"kind": "metrics", "step": 1, "total_st',
        "[]",
        '{"kind": ["metrics"]}',
        {"kind": "metrics"},
        {"kind": "metrics", "step": 10**400, "loss": 1.0},
        {
            "kind": "metrics",
            "step": 1,
            "total_steps": "8",
            "loss": "high",
            "grad_norm": [1],
            "epoch": 10**400,
        },
        step(2, loss="Infinity", total_steps=None, tokens_per_s="nan", epoch="\udcff"),
        {"kind": "checkpoint", "step": "two"},
        {
            "kind": "finding",
            "message": "esc\x1b]0;title\x07aped\x9b2J\u202e [red]\ud800\nnext line",
        },
    )
    folder.train_log.write_bytes(b"\xff\xfe\x00[/red] :smile: \x1b[2J\x1b(B\x07\x08\tend\n\x1b[1")
    result = iisft("watch", "--once")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[2:4] == [
        f"step 2/?  {'░' * 90}",
        "loss inf  grad_norm 2  lr 1.00e-05  nan tokens/s",
    ]
    assert result.out.splitlines()[-6:] == [
        "",
        "finding: escaped2J [red] next line",
        "",
        "log",
        "��[/red] :smile:  end",
        "1",
    ]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", result.out)


def test_a_resume_from_an_earlier_step_replaces_what_is_trained_again(
    iisft: CLI, folder: RunFolder
) -> None:
    happened(
        folder, *(step(n, loss=9.0) for n in range(1, 7)), *(step(n, loss=1.0) for n in (3, 4))
    )
    out = iisft("watch", "--once").out
    assert "loss, steps 1 to 4 " in out
    assert [line.split()[0] for line in out.splitlines()[6:12] if line[:8].strip()] == ["9", "1"]


def test_only_the_last_findings_and_checkpoints_are_shown(iisft: CLI, folder: RunFolder) -> None:
    findings = [
        {"kind": "finding", "severity": "info", "message": f"message {n}"} for n in range(8)
    ]
    happened(
        folder,
        step(1),
        *findings,
        *({"kind": "checkpoint", "step": 1000 * n} for n in range(1, 60)),
    )
    out = iisft("watch", "--once").out.splitlines()
    kept = " ".join(str(1000 * n) for n in range(46, 60))
    assert f"saved at     … {kept}" in out
    start = out.index("3 earlier findings: iisft status")
    assert out[start + 1 :] == [f"info: message {n}" for n in range(3, 8)]


def test_a_huge_log_is_not_read(iisft: CLI, folder: RunFolder) -> None:
    with folder.train_log.open("wb") as log:
        log.truncate(2**40)  # a hole: nothing lies on the disk
        log.seek(0, os.SEEK_END)
        log.write(b"\n" + b"".join(b"line %d\n" % n for n in range(100)))
    assert iisft("watch", "--once").out.splitlines()[-9:] == [
        "log",
        *(f"line {n}" for n in range(92, 100)),
    ]


def test_thousands_of_steps_fit(iisft: CLI, folder: RunFolder) -> None:
    happened(folder, *(step(n, total_steps=6000) for n in range(1, 5001)))
    out = iisft("watch", "--once").out.splitlines()
    assert out[2] == f"step 5000/6000  {'█' * 65}{'░' * 13}  83 %"
    assert "loss, steps 1 to 5000 " in out[5]
    assert max(map(cell_len, out)) <= 100


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *argv: str, columns: int = 100, rows: int = 40) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        env = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")
        }
        self._master, self.text = master, ""
        self.command = subprocess.Popen(
            [sys.executable, "-m", "iisft", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env | {"TERM": "xterm"},
            start_new_session=True,
        )
        os.close(slave)

    def until(self, text: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.text!r}"
            self._read(0.1)

    def rest(self) -> tuple[int, str]:
        """The exit code and everything that was written."""
        while self._read(20):
            pass
        return self.command.wait(20), self.text

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.text += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def close(self) -> None:
        self.command.kill()
        self.command.wait()
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened = []

    def start(*argv: str, **size: int) -> Terminal:
        opened.append(Terminal(*argv, **size))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_narrow_terminal(folder: RunFolder, terminal: Callable[..., Terminal]) -> None:
    happened(
        folder,
        *(step(n) for n in range(1, 5)),
        {"kind": "finding", "severity": "error", "message": "字 " * 90},
    )
    folder.train_log.write_text("a long line " * 30 + "\n")
    code, text = terminal("watch", "--once", columns=60).rest()
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in text.splitlines()]
    assert (code, max(map(cell_len, lines))) == (0, 60)
    assert [
        line for line in lines if line.startswith(("step", "ETA", "epoch", "loss,", "grad_norm,"))
    ] == [
        f"step 4/8  {'█' * 22}{'░' * 22}  50 %",
        "ETA 20s  5 s/step  loss 0.5000  grad_norm 2  lr 1.00e-05",
        "epoch 1.00",
        "loss, steps 1 to 4",
        "grad_norm, steps 1 to 4",
    ]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 40), (200, 50)])
def test_the_whole_height_is_used(
    folder: RunFolder, terminal: Callable[..., Terminal], columns: int, rows: int
) -> None:
    happened(folder, *(step(n) for n in range(1, 5)))
    folder.train_log.write_text("".join(f"line {n} of the log\n" for n in range(99)))
    watching = terminal("watch", columns=columns, rows=rows)
    watching.until("line 98 of the log")
    os.write(watching._master, b"xq")
    code, text = watching.rest()
    picture = text.partition("\x1b[?1049h")[2].partition("line 98 of the log")[0]
    assert (code, picture.count("\n")) == (0, rows - 1)
    message = "left run-1; the run is not touched. Back to it: iisft watch run-1\r\n"
    assert text.rpartition(_LEAVES_ITS_SCREEN)[2] == message


def test_leaving_a_live_view_leaves_the_run_alone(
    iisft: CLI,
    model: Path,
    rows: Path,
    fake_trainer: Callable[..., None],
    workspace: Path,
    terminal: Callable[..., Terminal],
) -> None:
    fake_trainer("hang")
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    argv = train_argv(model, "--gpus", "1", "--name", "long")
    assert iisft(*argv, "--detach").code == 0
    watching = terminal("watch", "long")
    watching.until("step 1/4")
    assert "long  running" in iisft("watch", "long", "--once").out
    os.killpg(watching.command.pid, signal.SIGINT)
    code, text = watching.rest()
    message = "left long; the run is not touched. Back to it: iisft watch long\r\n"
    assert (code, text.rpartition(_LEAVES_ITS_SCREEN)[2]) == (0, message)
    assert status_of(RunFolder(workspace / "runs" / "long")).state == "running"

    again = terminal("watch", "long")
    again.until("step 1/4")
    assert iisft("stop", "long", "--now").code == 0
    code, text = again.rest()
    last = re.sub(r"\x1b\[[\d;]*m", "", text.rpartition(_LEAVES_ITS_SCREEN)[2])
    assert (code, last.splitlines()[0]) == (130, "long  stopped  preset mi50")
