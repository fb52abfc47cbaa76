"""Downloads against `hf download` and `modelscope download`, from one local hub, in turn.

python benchmarks/download.py [RUNS] [MEGABYTES_PER_SHARD]
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from timing import Command, in_turn, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
from hub_server import HubServer, Repo, running
from models_on_disk import repository

BINARIES = Path(sys.executable).parent
REPO, SHARDS, KILLS = "bench/model", 4, 20
Argv = Callable[[Path], list[str]]

CLIENTS: dict[str, Argv] = {
    "iisft download (huggingface)": lambda to: _iisft(to, "huggingface"),
    "iisft download (modelscope)": lambda to: _iisft(to, "modelscope"),
    "hf download": lambda to: [str(BINARIES / "hf"), "download", REPO, "--local-dir", str(to)],
    "modelscope download": lambda to: [
        str(BINARIES / "modelscope"), "download", "--model", REPO, "--local_dir", str(to),
    ],
}  # fmt: skip


def _iisft(to: Path, source: str) -> list[str]:
    return [
        str(BINARIES / "iisft"),
        "download",
        REPO,
        "--source",
        source,
        "--to",
        str(to),
        "--quiet",
    ]


def big_repository(megabytes: int) -> Repo:
    """Four shards of random bytes, and the small files of a model."""
    small = {
        name: text for name, text in repository(1000).items() if name.endswith((".json", ".md"))
    }
    del small["model.safetensors.index.json"]
    shards = {
        f"model-0000{i}-of-0000{SHARDS}.safetensors": os.urandom(megabytes * 1_000_000)
        for i in range(1, SHARDS + 1)
    }
    return Repo({**small, **shards})


def environment(hub: HubServer, folder: Path) -> dict[str, str]:
    homes = {
        name: str(folder / name)
        for name in ("HF_HOME", "MODELSCOPE_HOME", "MODELSCOPE_CACHE", "IISFT_HOME")
    }
    return {
        **homes,
        "HF_ENDPOINT": hub.url,
        "MODELSCOPE_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
    }


def clean_line(hub: HubServer, folder: Path, runs: int) -> None:
    """Whole downloads in turn, each into a folder that is not there."""
    targets = {name: folder / f"to-{number}" for number, name in enumerate(CLIENTS)}
    commands = [
        Command(name, ["sh", "-c", 'rm -rf "$0"; exec '
                                   '"$@"', str(targets[name]), *argv(targets[name])],
                env=environment(hub, folder))
        for name, argv in CLIENTS.items()
    ]  # fmt: skip
    in_turn(commands, runs)
    report(commands, commands[2])
    for target in targets.values():
        shutil.rmtree(target, ignore_errors=True)


def first_byte(hub: HubServer, folder: Path, runs: int) -> None:
    """From the start of the process to the first request for a file's bytes."""
    for name, argv in CLIENTS.items():
        waits = []
        for number in range(runs + 1):
            to = folder / f"first-{number}"
            known, started = len(hub.seen), time.monotonic()
            process = _start(argv(to), hub, folder)
            while not (bodies := [one for one in hub.seen[known:] if one in hub.bodies()]):
                time.sleep(0.002)
            process.kill()
            process.wait()
            shutil.rmtree(to, ignore_errors=True)
            time.sleep(0.3)  # what was on its way is not the next one's
            if number:
                waits.append(bodies[0].when - started)
        print(
            f"first byte: {name:<32} median {statistics.median(waits):.3f} s ({min(waits):.3f} .. "
            f"{max(waits):.3f})"
        )


def kills(hub: HubServer, folder: Path, names: Sequence[str]) -> None:
    """The same random kills for each client, then a run to the end: what was sent more
    than once.
    """
    total = sum(map(len, hub.repos[REPO].files.values()))
    for name in names:
        chance, to, before = random.Random(1), folder / "killed", hub.sent
        for _ in range(KILLS):
            life = chance.uniform(0.2, 1.8) * total / (KILLS + 1)
            start = hub.sent
            process = _start(CLIENTS[name](to), hub, folder)
            while process.poll() is None and hub.sent < start + life:
                time.sleep(0.002)
            process.kill()
            process.wait()
        assert _start(CLIENTS[name](to), hub, folder).wait() == 0
        same = all(
            (to / path).read_bytes() == hub.repos[REPO].files[path]
            for path in hub.repos[REPO].files
        )
        twice = hub.sent - before - total
        left = sum(path.stat().st_size for path in to.rglob("*") if path.is_file()) - total
        print(f"{KILLS} kills: {name:<32} sent again {100 * twice / total:.2f} % of "
              f"{total / 1e6:.0f} MB, "
              f"left behind {max(left, 0) / 1e6:.1f} MB, byte-identical: {same}")  # fmt: skip
        shutil.rmtree(to)


def memory(hub: HubServer, folder: Path) -> None:
    """Largest resident set.

    Asked of a small process in between, because a child begins with its parent's.
    """
    ask = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    env = {**os.environ, **environment(hub, folder)}
    for name, argv in CLIENTS.items():
        between = [sys.executable, "-c", ask, *argv(folder / "memory")]
        done = subprocess.run(between, env=env, capture_output=True, text=True, check=True)
        print(f"peak memory: {name:<32} {int(done.stdout) * 1024 / 1e6:.1f} MB")
        shutil.rmtree(folder / "memory")


def verify(hub: HubServer, folder: Path, runs: int) -> None:
    """Re-reading a folder against coreutils' sha256sum, on one core and on all."""
    to = folder / "verified"
    assert _start(CLIENTS["iisft download (huggingface)"](to), hub, folder).wait() == 0
    shards = [str(path) for path in sorted(to.glob("*.safetensors"))]
    own = [str(BINARIES / "iisft"), "download", "--verify", str(to), "--quiet"]
    one = ["taskset", "-c", "0"]
    each = ["sh", "-c", 'printf "%s\\n" "$@" | xargs -P 0 -n 1 sha256sum', "sh", *shards]
    pairs = [
        (
            Command("sha256sum, one core", [*one, "sha256sum", *shards]),
            Command("--verify, one core", [*one, *own]),
        ),
        (Command("sha256sum, a process a file", each), Command("--verify, all cores", own)),
    ]
    for peer, ours in pairs:
        in_turn([peer, ours], runs)
        report([peer, ours], peer)
    shutil.rmtree(to)


def _start(argv: Sequence[str], hub: HubServer, folder: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, **environment(hub, folder)}
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(runs: int, megabytes: int) -> None:
    os.environ.pop("HF_HUB_OFFLINE", None)
    with tempfile.TemporaryDirectory() as name, running() as hub:
        folder = Path(name)
        hub.repos[REPO] = big_repository(megabytes)
        print(f"{SHARDS} shards of {megabytes} MB; unthrottled loopback")
        clean_line(hub, folder, runs)
        memory(hub, folder)
        verify(hub, folder, runs)
        first_byte(hub, folder, runs)
        hub.bytes_per_s = 25e6
        print("25 MB/s per connection")
        clean_line(hub, folder, max(1, runs // 2))
        hub.bytes_per_s = 10e6
        print("10 MB/s per connection")
        kills(hub, folder, [*CLIENTS])


if __name__ == "__main__":
    main(*(int(argument) for argument in [*sys.argv[1:], "5", "250"][:2]))
