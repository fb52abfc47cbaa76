"""Whole processes timed in turn, A B A B, so that a drifting machine is fair to both."""

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Command:
    """One side of a comparison. `expect` is the exit code that a right run has."""

    name: str
    argv: Sequence[str]
    cwd: Path = field(default_factory=Path.cwd)
    env: Mapping[str, str] = field(default_factory=dict)
    expect: int = 0
    seconds: list[float] = field(default_factory=list)

    def run(self) -> float:
        # Byte code on disk is what an installed program has; without it both would measure Python's
        # compiler.
        env = {
            name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
        }
        started = time.perf_counter()
        done = subprocess.run(
            list(self.argv),
            cwd=self.cwd,
            env=env | dict(self.env),
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode != self.expect:
            raise SystemExit(
                f"{self.name} ended with "
                f"{done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return seconds

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def in_turn(commands: Sequence[Command], runs: int, warm_up: int = 1) -> None:
    """Time every command `runs` times, alternating."""
    for number in range(-warm_up, runs):
        for command in commands:
            seconds = command.run()
            if number >= 0:
                command.seconds.append(seconds)


def report(commands: Sequence[Command], peer: Command) -> None:
    """Medians, spans, and the ratio to the peer measured in the same turns."""
    for command in commands:
        pairs = [own / other for own, other in zip(command.seconds, peer.seconds, strict=True)]
        print(
            f"{command.name:<44} median {command.median:8.3f} s  ({min(command.seconds):.3f} .. "
            f"{max(command.seconds):.3f}, {len(command.seconds)} runs)  ratio "
            f"{statistics.median(pairs):.4f}"
            f"  = 1/{1 / statistics.median(pairs):.1f}"
        )


def peak_memory_mb(argv: Sequence[str]) -> float:
    """Largest resident set of one process, in MB (10^6 bytes)."""
    with Path(os.devnull).open("w") as nowhere:
        child = subprocess.Popen(list(argv), stdout=nowhere, stderr=nowhere)
        _, _, usage = os.wait4(child.pid, 0)
    return usage.ru_maxrss * 1024 / 1e6
