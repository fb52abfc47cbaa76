"""Kills, tears and occupies what a queue of runs stands on, at random moments, and counts what was
lost, run twice, or started on a busy card.

python benchmarks/chaos_queue.py [--faults N] [--runs N] [--seed S] [--step-s S]

A machine with two cards and stand-in trainers (tests/fakes): each notes on which cards it is, and
whether anybody else is on them or trains the same run. Everything else is real: the command line,
the process that starts the runs, supervisors, files. A fault is followed by one command that a
person would type next (`iisft runs`, or `iisft resume --all-lost` after everything was killed).
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.two_cards import CARDS, write_two_cards
from iisft import process
from iisft.runs.queue import entries
from iisft.runs.record import given_cards
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import brief_of
from iisft.workspace import Workspace
from runs.conftest import make_fake_environment, write_checkpoint

BINARIES = Path(sys.executable).parent
BACK_WITHIN_S = 120.0
STRANGER_S = 6.0
LATE_S = 5.0
"""Between the look at the cards and a trainer's start lies the check of what has changed since."""


@dataclass
class Bench:
    """A queue and what happened to it."""

    home: Path
    cards: Path
    model: Path
    steps: int
    random: random.Random
    added: list[str] = field(default_factory=list)
    strangers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    resumes: int = 0

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.home)

    def iisft(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BINARIES / "iisft", *argv], capture_output=True, text=True, check=False
        )

    def add(self, name: str, cards: int) -> list[str]:
        size = {"train.accumulation": 2, "watch.restarts": 1000, "watch.hang_min_s": 60}
        options = [part for key, value in size.items() for part in ("--set", f"{key}={value}")]
        argv = ["train", "--preset", "cuda-24g", "--model", str(self.model), "--data", "rows"]
        return [*argv, "--gpus", str(cards), "--name", name, *options, "--queue"]

    def folders(self, *states: str) -> list[RunFolder]:
        found = [RunFolder(self.workspace.runs / name) for name in self.added]
        return [folder for folder in found if not states or brief_of(folder).state in states]

    def runners(self) -> list[int]:
        return process.marked(process.SUPERVISOR_MARKER).get(str(self.workspace.queue), [])

    def supervisors(self) -> list[int]:
        marked = process.marked(process.SUPERVISOR_MARKER)
        return [pid for one in self.folders() for pid in marked.get(one.marker, [])]

    def trainers(self) -> list[int]:
        marked = process.marked(process.RUN_MARKER)
        return [pid for one in self.folders() for pid in marked.get(one.marker, [])]

    def some(self, pids: list[int]) -> list[int]:
        return [self.random.choice(pids)] if pids else []


def fault_runner(bench: Bench) -> str:
    process.kill(bench.runners())
    return "runs"


def fault_supervisor(bench: Bench) -> str:
    process.kill(bench.some(bench.supervisors()))
    return "runs"


def fault_trainer(bench: Bench) -> str:
    process.kill(bench.some(bench.trainers()))
    return "runs"


def fault_runner_and_supervisors(bench: Bench) -> str:
    """The trainers go on alone."""
    process.kill([*bench.runners(), *bench.supervisors()])
    return "runs"


def fault_supervisor_and_trainer(bench: Bench) -> str:
    """One run is lost while the others go on."""
    if live := bench.folders("running"):
        folder = bench.random.choice(live)
        process.kill(process.marked(process.SUPERVISOR_MARKER).get(folder.marker, []))
        process.kill_run(folder.marker)
    return "runs"


def fault_everything(bench: Bench) -> str:
    """As a reboot."""
    while left := [*bench.runners(), *bench.supervisors(), *bench.trainers()]:
        process.kill(left)
    return "resume --all-lost"


def fault_runner_at_a_start(bench: Bench) -> str:
    """Between the gift of cards and the first word of the supervisor, or soon after."""
    seen = {folder.id for folder in bench.folders() if folder.cards.exists()}
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if any(one.cards.exists() and one.id not in seen for one in bench.folders("queued")):
            break
        time.sleep(0.002)
    time.sleep(bench.random.uniform(0, 0.3))
    process.kill(bench.runners())
    if bench.random.random() < 0.5:
        process.kill(bench.supervisors())
    return "runs"


def fault_torn_entry(bench: Bench) -> str:
    if files := [one.queue_entry for one in bench.folders() if one.queue_entry.exists()]:
        victim = bench.random.choice(files)
        with contextlib.suppress(OSError):
            os.truncate(victim, bench.random.randrange(victim.stat().st_size))
    return "queue"


def fault_torn_runner_file(bench: Bench) -> str:
    with contextlib.suppress(OSError):
        os.truncate(bench.workspace.queue / "runner", bench.random.randrange(40))
    process.kill(bench.runners())
    return "queue"


def fault_second_runner(bench: Bench) -> str:
    for _ in range(3):
        entries.ensure_runner(bench.workspace, added=True)
    process.kill(bench.some(bench.runners()))
    return "runs"


def fault_moved_and_killed(bench: Bench) -> str:
    if waiting := bench.folders("queued"):
        name, place = bench.random.choice(waiting).id, bench.random.randrange(1, 9)
        with subprocess.Popen(
            [BINARIES / "iisft", "queue", "move", name, str(place)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as mover:  # fmt: skip
            time.sleep(bench.random.uniform(0.2, 0.8))
            mover.kill()
    process.kill(bench.runners())
    return "queue"


def fault_killed_while_queueing(bench: Bench) -> str:
    """It is in the queue or it is not; where it is, it is a run like the others."""
    name = f"cut-{len(bench.added)}"
    with subprocess.Popen(
        [BINARIES / "iisft", *bench.add(name, 1)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as adder:  # fmt: skip
        time.sleep(bench.random.uniform(0.8, 3.0))
        adder.kill()
    if (bench.workspace.runs / name).exists():
        bench.added.append(name)
    return "runs"


def taken(bench: Bench) -> set[str]:
    """Cards that were given to a run that has not ended."""
    found = set()
    for folder in bench.folders("running", "queued", "lost", "pending"):
        given = given_cards.read(folder)
        found |= set(str(given.variables["CUDA_VISIBLE_DEVICES"]).split(",") if given else ())
    return found


def fault_stranger(bench: Bench) -> str:
    """Somebody else takes a card that no run has, as soon as there is one."""
    deadline = time.monotonic() + 20
    while not (free := sorted(set(CARDS) - taken(bench))) and time.monotonic() < deadline:
        time.sleep(0.02)
    for card in free[:1]:
        stranger = subprocess.Popen(["sleep", str(STRANGER_S)])
        (bench.cards / card / str(stranger.pid)).touch()
        bench.strangers.append(stranger)
    return "queue"


FAULTS: dict[str, Callable[[Bench], str]] = {
    name.removeprefix("fault_").replace("_", " "): function
    for name, function in sorted(globals().items())
    if name.startswith("fault_")
}


def meet(bench: Bench, name: str) -> None:
    """One fault at a random moment, until a trainer makes a step again."""
    time.sleep(bench.random.uniform(0.0, 4.0))
    if not bench.folders("queued", "running", "lost", "pending"):
        raise SystemExit("the queue was empty before all faults: give it more or longer runs")
    by_hand = FAULTS[name](bench)
    began, before = time.monotonic(), steps_made(bench)
    bench.iisft(*by_hand.split())
    while steps_made(bench) <= before:
        time.sleep(0.1)
        if not bench.folders("queued", "running", "lost", "pending"):
            break
        if time.monotonic() - began > BACK_WITHIN_S:
            bench.wrong.append(f"{name}: no step within {BACK_WITHIN_S:.0f} s")
            break
    bench.back_s.append(time.monotonic() - began)
    states = Counter(brief_of(folder).state for folder in bench.folders())
    print(f"  {name:<24} a step after {bench.back_s[-1]:5.1f} s  {dict(states)}", flush=True)


def steps_made(bench: Bench) -> int:
    """Lines of steps, those that were done again too."""
    made = 0
    for folder in bench.folders():
        with contextlib.suppress(OSError):
            text = folder.events.read_bytes()
            made += text.count(b'"kind": "metrics"') + text.count(b'"kind": "redone"')
            made += text.count(b'"kind":"metrics"') + text.count(b'"kind":"redone"')
    return made


def judge(bench: Bench) -> None:
    """Whether anything was lost, once the queue is empty."""
    deadline = time.monotonic() + 30 * 60
    while queue := entries.read(bench.workspace).entries:
        time.sleep(1)
        if time.monotonic() > deadline:
            bench.wrong.append(f"still in the queue: {[entry.id for entry in queue]}")
            break
        if entries.runner_of(bench.workspace) is None:
            bench.iisft("queue")
    for folder in bench.folders():
        status = brief_of(folder)
        if status.state == "failed":  # the same crash twice at one step is not tried again
            print(f"  {folder.id} failed: {status.reason}", flush=True)
            bench.resumes += 1
            bench.iisft("resume", folder.id)
            status = brief_of(folder)
        if status.state != "finished":
            bench.wrong.append(f"{folder.id}: {status.state}: {status.reason}")
        counts = Counter(e["step"] for e in folder.read_events() if e["kind"] == "metrics")
        odd = {step: n for step in range(1, bench.steps + 1) if (n := counts[step]) != 1}
        if odd:
            bench.wrong.append(f"{folder.id} has these steps so many times: {odd}")
        ends = [e for e in folder.read_events() if e.get("state") == "finished"]
        if len(ends) != 1:
            bench.wrong.append(f"{folder.id} finished {len(ends)} times")
    left = [*bench.runners(), *bench.supervisors(), *bench.trainers()]
    if left:
        bench.wrong.append(f"processes left: {left}")


def shared(bench: Bench) -> tuple[list[str], int]:
    """Trainers that began on a card with somebody on it; how many strangers came too late for the
    look at the cards.
    """
    try:
        lines = (bench.cards / "shared").read_text().splitlines()
    except OSError:
        return [], 0
    late = [
        line
        for line in lines
        if any(f"'{one.pid}'" in line for one in bench.strangers)
        and float(line.rsplit("['", 1)[1].split()[0]) < LATE_S
    ]
    return [line for line in lines if line not in late], len(late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step-s", type=float, default=0.5)
    options = parser.parse_args()
    process.on_terminate(sys.exit)
    with (
        tempfile.TemporaryDirectory(prefix="chaos-队列-") as place,
        contextlib.ExitStack() as stack,
    ):
        home = Path(place) / "home"
        home.mkdir()
        cards, env = write_two_cards(Path(place))
        os.environ |= env | {
            "IISFT_HOME": str(home),
            "IISFT_PYTHON": str(make_fake_environment(Path(place))),
            "XDG_CACHE_HOME": str(Path(place) / "cache"),
            "FAKE_STEPS": str(options.steps),
            "FAKE_STEP_S": str(options.step_s),
            "HF_HUB_OFFLINE": "1",
        }
        model = write_checkpoint(home / "models" / "tiny")
        bench = Bench(home, cards, model, options.steps, random.Random(options.seed))
        stack.callback(end, bench)
        rows = "".join(
            json.dumps({"instruction": f"{i}", "output": "yes"}) + "\n" for i in range(8)
        )
        (home / "rows.jsonl").write_text(rows)
        staged = bench.iisft("data", "stage", str(home / "rows.jsonl"), "--name", "rows")
        assert staged.returncode == 0, staged.stderr
        for number in range(options.runs):
            name, size = f"run-{number:02}", 2 if number % 5 == 2 else 1
            queued = bench.iisft(*bench.add(name, size))
            assert queued.returncode == 0, queued.stderr
            bench.added.append(name)
        names = list(FAULTS)
        order = [names[number % len(names)] for number in range(options.faults)]
        bench.random.shuffle(order)
        print(
            f"{len(order)} faults of {len(names)} kinds, {options.runs} runs of {options.steps} "
            f"steps, two cards, seed {options.seed}",
            flush=True,
        )
        for name in order:
            meet(bench, name)
        judge(bench)
        report(bench, len(order))
    raise SystemExit(1 if bench.wrong else 0)


def report(bench: Bench, faults: int) -> None:
    busy, late = shared(bench)
    bench.wrong += busy
    starts = sum("from_step" in event for one in bench.folders() for event in one.read_events())
    print(
        f"{len(bench.added)} runs met {faults} faults; their trainers were started {starts} times"
    )
    print(
        f"a step again after: median {statistics.median(bench.back_s):.1f} s, most "
        f"{max(bench.back_s):.1f} s; resumed by hand {bench.resumes}"
    )
    print(
        f"started on a busy card: {len(busy)} ({len(bench.strangers)} strangers, {late} of them "
        f"came less than {LATE_S:.0f} s before a start)"
    )
    print(f"wrong: {bench.wrong or 'nothing'}")


def end(bench: Bench) -> None:
    """Leave no process behind, however the bench itself ended."""
    while left := [*bench.runners(), *bench.supervisors(), *bench.trainers()]:
        process.kill(left)
    for stranger in bench.strangers:
        stranger.kill()
        stranger.wait()


if __name__ == "__main__":
    main()
