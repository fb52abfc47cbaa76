"""Kills, freezes, fills and truncates a real training at random moments, and counts what was lost.

python benchmarks/chaos.py [--faults N] [--ranks 1|2] [--seed S]

One run of the real LLaMA-Factory on a tiny model meets N faults in turn. Whatever iisft does not
mend by itself is mended by one `iisft resume`. At the end the run must have every step once, on the
curve of an uninterrupted run, with the same adapter byte by byte. Needs root for the full disk (a
small tmpfs); without it that fault is left out and said.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from iisft import process
from iisft.runs.record.checkpoints import checkpoints
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.state import status_of

BINARIES = Path(sys.executable).parent
TINY_MODELS = Path(__file__).parents[1] / "tests" / "fidelity" / "tiny_models.py"
SAVE_EVERY = 20
DISK_BYTES = 400 * 2**20
BACK_WITHIN_S = 300.0


@dataclass
class Bench:
    """One run and what happened to it."""

    home: Path
    ranks: int
    steps: int
    random: random.Random
    noticed_s: list[float] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    lost_steps: list[int] = field(default_factory=list)
    resumes: int = 0
    orphans: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.home / "runs" / "chaos")

    def iisft(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BINARIES / "iisft", *argv], env=os.environ, capture_output=True, text=True, check=False
        )

    def resume(self, fault: str) -> None:
        """The one command of a person.

        --from-start where the only checkpoint is the one that was cut.
        """
        self.resumes += 1
        for more in ([], ["--from-start"]):
            resumed = self.iisft("resume", "chaos", "--detach", *more)
            if "every checkpoint that was whole once is torn" not in resumed.stderr:
                break
        # it came through by itself
        if resumed.returncode and "chaos is running" not in resumed.stderr:
            self.wrong.append(f"{fault}: resume said {resumed.stderr.strip()[-300:]}")

    def train(self, name: str, *more: str) -> None:
        size = {
            "train.accumulation": 4,
            "train.cutoff_len": 256,
            "train.max_steps": self.steps,
            "save.every_steps": SAVE_EVERY,
            "watch.restarts": 1000,
            "watch.hang_min_s": 8,
        }
        options = [part for key, value in size.items() for part in ("--set", f"{key}={value}")]
        argv = [
            "train",
            "--preset",
            "mi50",
            "--model",
            str(self.home / "tiny" / "qwen2-tied" / "model"),
        ]
        argv += ["--data", "rows", "--gpus", str(self.ranks), "--name", name, *options, *more]
        done = self.iisft(*argv)
        if done.returncode:
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])

    def events(self, *kinds: str) -> list[dict[str, object]]:
        return [event for event in self.folder.read_events() if event["kind"] in kinds]

    def pids(self) -> dict[str, list[int]]:
        """Who can be a victim now."""
        recorded = json.loads(self.folder.processes.read_text())
        supervisor, trainer = (recorded[name]["pid"] for name in ("supervisor", "trainer"))
        everyone = process.processes_of_run(self.folder.marker)
        ranks = process.rank_processes(self.folder.marker)
        torchrun = [pid for pid in everyone if pid not in ranks and pid != trainer]
        return {
            "supervisor": [supervisor],
            "trainer": [trainer],
            "ranks": ranks,
            "torchrun": torchrun,
        }


def kill(pids: list[int]) -> None:
    process.kill(pids)


def fault_trainer(bench: Bench) -> str:
    kill(bench.pids()["trainer"])
    return ""


def fault_rank(bench: Bench) -> str:
    if ranks := bench.pids()["ranks"]:
        kill([bench.random.choice(ranks)])
    return ""


def fault_torchrun(bench: Bench) -> str:
    pids = bench.pids()
    kill(pids["torchrun"][:1] or pids["trainer"])
    return ""


def fault_supervisor(bench: Bench) -> str:
    kill(bench.pids()["supervisor"])
    return "resume"


def fault_everything(bench: Bench) -> str:
    kill(bench.pids()["supervisor"])
    process.kill_run(bench.folder.marker)
    return "resume"


def fault_supervisor_and_parents(bench: Bench) -> str:
    """The ranks go on alone."""
    pids = bench.pids()
    kill([*pids["supervisor"], *pids["trainer"], *pids["torchrun"]])
    return "resume"


def fault_truncated_checkpoint(bench: Bench) -> str:
    fault_everything(bench)
    whole = [saved for saved in checkpoints(bench.folder.output, bench.ranks) if saved.complete]
    if whole:
        names = [
            path
            for path in whole[-1].folder.iterdir()
            if path.suffix in (".pt", ".pth", ".safetensors")
        ]
        victim = bench.random.choice(sorted(names))
        size = victim.stat().st_size
        os.truncate(victim, bench.random.randrange(size))
    return "resume"


def fault_torn_trainer_log(bench: Bench) -> str:
    fault_everything(bench)
    with contextlib.suppress(OSError):
        size = bench.folder.trainer_log.stat().st_size
        os.truncate(bench.folder.trainer_log, max(0, size - bench.random.randrange(1, 40)))
    return "resume"


def fault_frozen_rank(bench: Bench) -> str:
    if ranks := bench.pids()["ranks"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(bench.random.choice(ranks), signal.SIGSTOP)
    return ""


def fault_killed_follower(bench: Bench) -> str:
    with subprocess.Popen(
        [BINARIES / "iisft", "logs", "-f", "chaos"], env=os.environ, stdout=subprocess.DEVNULL
    ) as follower:
        time.sleep(1.0)
        follower.kill()
    return "nothing"


def fault_full_disk(bench: Bench) -> str:
    """Until the trainer has failed to save, or has come to an end otherwise."""
    filler = bench.home / "filler"
    with filler.open("wb") as stream:
        while (free := os.statvfs(bench.home).f_bavail * os.statvfs(bench.home).f_frsize) > 400_000:
            with contextlib.suppress(OSError):  # the trainer was faster
                os.posix_fallocate(stream.fileno(), stream.tell(), free - 300_000)
            stream.seek(0, os.SEEK_END)
    deadline = time.monotonic() + 120
    while status_of(bench.folder).live and time.monotonic() < deadline:
        time.sleep(0.2)
    filler.unlink()
    return "resume"


FAULTS: dict[str, Callable[[Bench], str]] = {
    name.removeprefix("fault_").replace("_", " "): function
    for name, function in sorted(globals().items())
    if name.startswith("fault_")
}


def meet(bench: Bench, name: str) -> None:
    """One fault at a random moment, until the run makes new steps again."""
    time.sleep(bench.random.uniform(0.0, 6.0))
    if status_of(bench.folder).state == "finished":
        raise SystemExit("the run ended before all faults: give it more steps")
    seen = len(bench.events("state", "metrics", "redone", "finding"))
    furthest = max((int(str(event["step"])) for event in bench.events("metrics")), default=0)
    began = time.monotonic()
    by_hand = FAULTS[name](bench)
    if by_hand == "resume":
        bench.resume(name)
    noticed = back = None
    while back is None:
        time.sleep(0.1)
        new = bench.events("state", "metrics", "redone", "finding")[seen:]
        changes = [event for event in new if event["kind"] in ("state", "finding")]
        noticed = noticed or (time.monotonic() - began if changes or by_hand else None)
        starts = [number for number, event in enumerate(new) if event.get("state") == "running"]
        if by_hand == "nothing" or (
            starts and any(e["kind"] in ("metrics", "redone") for e in new[starts[-1] :])
        ):
            back = time.monotonic() - began
            if starts and (origin := new[starts[-1]].get("from_step")) is not None:
                bench.lost_steps.append(max(0, furthest - int(str(origin))))
        elif not status_of(bench.folder).live:
            bench.wrong.append(
                f"{name}: it ended as {status_of(bench.folder).reason!r}; resumed by hand"
            )
            bench.resume(name)
        elif time.monotonic() - began > BACK_WITHIN_S:
            raise SystemExit(f"{name}: not back within {BACK_WITHIN_S} s")
    bench.noticed_s.append(noticed or 0.0)
    bench.back_s.append(back)
    print(
        f"  {name:<24} noticed {noticed or 0:5.1f} s  back {back:5.1f} s  at step {furthest}",
        flush=True,
    )


def judge(bench: Bench) -> None:
    """Whether anything was lost, once the run is at its end."""
    while status_of(bench.folder).state != "finished":
        ended = bench.iisft("wait", "chaos")
        if ended.returncode:
            print(f"  ended: {ended.stderr.strip()}", flush=True)
            bench.resume("the end")
    whole = RunFolder(bench.home / "runs" / "whole")
    expected = {
        e["step"]: (e["loss"], e["grad_norm"])
        for e in whole.read_events()
        if e["kind"] == "metrics"
    }
    metrics = bench.events("metrics")
    counts = Counter(int(str(event["step"])) for event in metrics)
    if odd := {step: counts[step] for step in range(1, bench.steps + 1) if counts[step] != 1}:
        bench.wrong.append(f"events.jsonl has these steps so many times: {odd}")
    steps = bench.events("metrics", "redone")
    off = [e["step"] for e in steps if expected[e["step"]] != (e["loss"], e.get("grad_norm"))]
    if off:
        bench.wrong.append(
            f"{len(off)} losses or norms differ from the uninterrupted run, first at step {off[0]}"
        )
    adapters = [
        (folder.output / "adapter_model.safetensors").read_bytes()
        for folder in (whole, bench.folder)
    ]
    if adapters[0] != adapters[1]:
        bench.wrong.append("the adapter differs from that of the uninterrupted run")
    torn = [
        s.fault
        for s in checkpoints(bench.folder.output, bench.ranks, thorough=True)
        if not s.complete
    ]
    named = [fault for fault in torn if fault != "torn, put aside"]
    if named:
        bench.wrong.append(f"torn checkpoints under their own name: {named}")
    bench.orphans = len(process.processes_of_run(bench.folder.marker))
    print(f"checkpoints put aside as torn: {len(torn) - len(named)}")


@contextlib.contextmanager
def small_disk(home: Path) -> Iterator[bool]:
    """A tmpfs at `home`, so that a full disk is this bench's own."""
    made = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(home)], check=False
        ).returncode
    )
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(home)], check=False)


def end(bench: Bench) -> None:
    """Leave no process behind, however the bench itself ended."""
    if bench.folder.processes.exists():
        fault_everything(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= {"OMP_NUM_THREADS": "1"}
    process.on_terminate(sys.exit)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        with_disk = stack.enter_context(small_disk(Path(folder)))
        home = Path(folder)
        os.environ["IISFT_HOME"] = folder
        subprocess.run([sys.executable, TINY_MODELS, home / "tiny", "qwen2-tied"], check=True)
        bench = Bench(
            home, options.ranks, options.steps or 40 * options.faults, random.Random(options.seed)
        )
        rows = [
            {"instruction": f"row {i}", "input": "text " * (i % 7), "output": f"{i * i}"}
            for i in range(64)
        ]
        (home / "rows.json").write_text(json.dumps(rows))
        staged = bench.iisft("data", "stage", str(home / "rows.json"), "--name", "rows")
        assert staged.returncode == 0, staged.stderr
        names = [name for name in FAULTS if with_disk or name != "full disk"]
        print(f"{options.faults} faults of {len(names)} kinds, {options.ranks} ranks, seed "
              f"{options.seed}; "
              "full disk "
              f"{'included' if with_disk else 'left out: not root'}", flush=True)  # fmt: skip
        began = time.monotonic()
        bench.train("whole")
        print(f"uninterrupted: {bench.steps} steps in {time.monotonic() - began:.0f} s", flush=True)
        stack.callback(end, bench)
        bench.train("chaos", "--detach")
        order = [names[number % len(names)] for number in range(options.faults)]
        bench.random.shuffle(order)
        while not bench.events("metrics"):
            time.sleep(0.1)
        for name in order:
            meet(bench, name)
        judge(bench)
        report(bench, len(order))
    raise SystemExit(1 if bench.wrong else 0)


def report(bench: Bench, tried: int) -> None:
    lost = bench.lost_steps or [0]
    print(
        f"survived {tried - len(bench.wrong)} of {tried} faults; {bench.resumes} of them with one "
        "`iisft resume`"
    )
    again = f"median {statistics.median(lost)}, most {max(lost)}"
    print(f"steps done again per restart: {again} (a checkpoint every {SAVE_EVERY})")
    print(
        f"noticed after: median {statistics.median(bench.noticed_s):.1f} s, most "
        f"{max(bench.noticed_s):.1f} s"
    )
    print(
        f"stepping again after: median {statistics.median(bench.back_s):.1f} s, most "
        f"{max(bench.back_s):.1f} s"
    )
    print(f"orphans {bench.orphans}; wrong: {bench.wrong or 'nothing'}")


if __name__ == "__main__":
    main()
