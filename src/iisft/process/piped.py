"""A child that is talked to in lines, over its standard input and output."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from iisft.process import signal_group, sleep_until_end


class Piped:
    """A child that is talked to in lines, in its own session; its stderr goes to a file.

    Its standard input ends when this process does, however that ends: by that it knows that nobody
    listens any more.

    Args:
        argv: the program and its arguments.
        cwd: where it runs.
        env: all of its variables.
        log: where its stderr goes.
        inherits: descriptors that it gets under the same numbers.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        inherits: Sequence[int] = (),
    ) -> None:
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=inherits,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: str) -> None:
        """Write one line to its standard input; nothing when it is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def lines(self) -> Iterator[str]:
        """What it writes to its standard output, as it comes, until that ends."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            yield line.rstrip("\n")

    def wait(self) -> int:
        """Its return code, when it has ended; minus the signal's number when a signal ended it."""
        return self._process.wait()

    def end(self, grace_s: float = 5.0) -> int:
        """Close its standard input, wait, and kill its session if it doesn't end by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        sleep_until_end(self.pid, grace_s)
        if self._process.poll() is None:
            signal_group(self.pid, signal.SIGKILL)
        return self._process.wait()
