"""Real processes that are killed and interrupted: what they had is kept, and nothing half is taken
for whole.
"""

import contextlib
import os
import pty
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer, Repo, sha256
from models_on_disk import REPO, contents, needed, repository

from iisft.process import Adopted, identity_of

CLI = Callable[..., Any]
SHARD_BYTES = 16_000_000


@pytest.fixture
def start(hub: HubServer) -> Callable[..., subprocess.Popen[str]]:
    def run(*argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "iisft", "download", REPO, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.mark.slow
def bytes_of_parts(target: Path) -> dict[str, int]:
    """What is there of each unfinished file, by the file's name."""
    parts = (target / ".iisft" / "parts").glob("*")
    return {part.name.rpartition(".")[0]: size for part in parts if (size := part.stat().st_size)}


def test_ten_kills_lose_only_what_was_on_its_way(
    hub: HubServer, start: Callable[..., subprocess.Popen[str]], iisft: CLI, target: Path
) -> None:
    hub.repos[REPO] = Repo(files := needed(SHARD_BYTES))
    hub.bytes_per_s = 6_000_000
    total = sum(map(len, files.values()))
    moments = sorted(random.Random(7).sample(range(total // 20, total * 19 // 20), 10))
    kept: dict[str, int] = {}
    resumed = 0
    for moment in moments:
        before = {name: len(hub.bodies(name)) for name in files}
        process = start("--source", "modelscope", "--quiet")
        hub.wait_until_sent(moment)
        process.kill()
        process.wait()
        for name, size in kept.items():
            for body in hub.bodies(name)[before[name] :][:1]:
                assert body.headers.get("Range") == f"bytes={size}-", "what was written is kept"
                resumed += 1
        kept = bytes_of_parts(target)
        assert not [
            name
            for name in contents(target)
            if name.endswith(".safetensors") and contents(target)[name] != files[name]
        ]
        assert (
            not target.joinpath(".iisft", "manifest.json").exists()
            or "incomplete" in iisft("models").out
        )
    process = start("--source", "modelscope", "--quiet")
    assert process.communicate(timeout=60)[0] == f"{target}\n"
    assert process.returncode == 0
    assert contents(target) == dict(sorted(files.items()))
    assert resumed > 3


def test_ctrl_c_ends_it_at_once_and_keeps_the_parts(
    hub: HubServer, start: Callable[..., subprocess.Popen[str]], target: Path
) -> None:
    hub.repos[REPO] = Repo(files := needed(SHARD_BYTES))
    hub.bytes_per_s = 200_000  # minutes
    process = start("--source", "huggingface")
    hub.wait_until_sent(500_000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    parts = sum(path.stat().st_size for path in (target / ".iisft" / "parts").iterdir())
    assert parts > 400_000
    hub.bytes_per_s = None
    before = hub.sent
    process = start("--source", "huggingface")
    assert process.communicate(timeout=60) and process.returncode == 0
    assert contents(target) == dict(sorted(files.items()))
    assert hub.sent - before < sum(map(len, files.values())) - parts + 1000


@pytest.mark.parametrize("source", ["auto", "huggingface", "modelscope"])
def test_ctrl_c_while_a_hub_is_silent(
    hub: HubServer, start: Callable[..., subprocess.Popen[str]], source: str
) -> None:
    hub.faults.append(Fault("@api", slow_s=600))
    process = start("--source", source)
    hub.wait_until_asked("/api/")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_ctrl_c_while_a_body_stalls(
    hub: HubServer, start: Callable[..., subprocess.Popen[str]]
) -> None:
    hub.faults.append(Fault("*.safetensors", stall_after=1000))
    process = start("--source", "modelscope")
    hub.wait_until_sent(2000)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_terminal_gets_a_bar(hub: HubServer, target: Path) -> None:
    hub.repos[REPO] = Repo(needed(1_000_000))
    hub.bytes_per_s = 1_000_000
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "iisft", "download", REPO, "--source", "modelscope"]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert process.wait(timeout=30) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"downloading ━+ .* of 2 MB  \d/9 files  .* [kM]B/s  ETA \ds", plain), plain
    assert "2 MB of 2 MB  9/9 files" in plain


@pytest.fixture
def start_hubs_client(
    hub: HubServer, start: Callable[..., subprocess.Popen[str]]
) -> Callable[[str], subprocess.Popen[str]]:
    """A download by the hub's own client that is on its way, slowly."""

    def run(source: str) -> subprocess.Popen[str]:
        hub.repos[REPO] = Repo(needed(SHARD_BYTES))
        hub.bytes_per_s = 200_000
        process = start("--source", source, "--transfer", "hub")
        hub.wait_until_sent(300_000)
        return process

    return run


def test_ctrl_c_ends_the_hubs_own_client_too(
    start_hubs_client: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = start_hubs_client("huggingface")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_the_hubs_own_client_does_not_outlive_a_kill(
    start_hubs_client: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = start_hubs_client("modelscope")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    client = identity_of(int(child))
    process.kill()
    process.wait()
    assert client is not None and Adopted(client).wait(timeout_s=60)


def test_a_part_that_was_torn_is_fetched_again(hub: HubServer, iisft: CLI, target: Path) -> None:
    """As a power cut leaves it: the length is there, the bytes are not."""
    name = "model-00001-of-00002.safetensors"
    part = target / ".iisft" / "parts" / f"{name}.{sha256(repository()[name])[:16]}"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(100_000))
    result = iisft("download", REPO)
    assert result.code == 0
    assert f"  {name}: wrong digest, fetching it again\n" in result.err
    assert contents(target) == dict(sorted(needed().items()))


def test_a_part_longer_than_the_file_is_begun_anew(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    name = "model-00001-of-00002.safetensors"
    part = target / ".iisft" / "parts" / f"{name}.{sha256(repository()[name])[:16]}"
    part.parent.mkdir(parents=True)
    part.write_bytes(os.urandom(500_000))
    assert iisft("download", REPO).code == 0
    assert contents(target) == dict(sorted(needed().items()))


def test_an_unfinished_download_is_no_model(
    hub: HubServer, start: Callable[..., subprocess.Popen[str]], iisft: CLI, target: Path
) -> None:
    hub.repos[REPO] = Repo(needed(SHARD_BYTES))
    hub.bytes_per_s = 1_000_000
    process = start("--source", "huggingface")
    hub.wait_until_sent(1_000_000)
    process.kill()
    process.wait()
    result = iisft("model", "show", REPO)
    assert result.code == 3
    assert f"error: the download of {REPO} has not finished: " in result.err
    assert (
        f"  fix:   iisft download {REPO} --source huggingface --revision {'c' * 40} --to "
        f"'{target}'\n" in result.err
    )
    assert iisft("download", "--verify", str(target)).code == 5
