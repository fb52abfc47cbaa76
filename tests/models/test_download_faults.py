"""Everything that goes wrong between a hub and a disk: what mends itself, and what a person reads
when it does not.
"""

import json
import resource
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer, Repo, running
from models_on_disk import OTHER_SHARD, REPO, SHARD, contents, needed, repository

from iisft.models.hub import hubs, metadata, network, transfer

CLI = Callable[..., Any]


@pytest.fixture(params=["huggingface", "modelscope"])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def name_of(source: str, hub: HubServer) -> str:
    return f"{metadata.NAMES[source]} ({hub.url})"


def assert_whole(target: Path) -> None:
    assert contents(target) == dict(sorted(needed().items()))
    assert not (target / ".iisft" / "parts").exists()


def assert_nothing_published(target: Path, *paths: str) -> None:
    assert not {*contents(target)} & {*paths}


# what the metadata can do


@pytest.mark.parametrize("folder", ["missing", "not empty"])
def test_a_model_that_does_not_exist(
    hub: HubServer, iisft: CLI, source: str, folder: str, tmp_path: Path
) -> None:
    to = tmp_path / "there"
    if folder == "not empty":
        to.mkdir()
        (to / "config.json").write_text("{}")
    result = iisft("download", "Qwen/Nothing", "--source", source, "--to", str(to))
    assert (result.code, result.out) == (5, "")
    assert sorted(path.name for path in to.glob("*")) == (
        ["config.json"] if folder == "not empty" else []
    )
    assert to.exists() == (folder == "not empty")
    assert result.err.startswith(
        f"error: {name_of(source, hub)} has no model Qwen/Nothing, or it is private\n"
        f"  where: {name_of(source, hub)}\n"
        "  fix:   check the spelling; a private one needs a login: "
    )


def test_a_model_that_neither_hub_has_names_both(hub: HubServer, iisft: CLI) -> None:
    result = iisft("download", "Qwen/Nothing", "--json")
    assert result.code == 5
    findings = json.loads(result.out)["error"]["findings"]
    assert {(finding["id"], finding["where"]) for finding in findings} == {
        ("hub-no-such-model", name_of("huggingface", hub)),
        ("hub-no-such-model", name_of("modelscope", hub)),
    }


def test_a_model_that_one_hub_has_comes_from_there(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as other:
        other.repos["only/here"] = Repo(repository())
        monkeypatch.setenv("HF_ENDPOINT", other.url)
        result = iisft("download", "only/here")
    assert (result.code, f"Hugging Face ({other.url})" in result.out) == (0, True)


def test_a_revision_that_does_not_exist(hub: HubServer, iisft: CLI, source: str) -> None:
    result = iisft("download", REPO, "--source", source, "--revision", "nope")
    assert result.code == 5
    assert result.err.startswith(
        f"error: {REPO} has no revision 'nope' on {name_of(source, hub)}\n"
    )


def test_a_gated_model_without_and_with_a_token(
    hub: HubServer, iisft: CLI, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[REPO].gated, hub.token = True, "right-token"
    for token in (None, "wrong-token"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        result = iisft("download", REPO, "--source", "huggingface")
        assert result.code == 5
        assert result.err.startswith(
            f"error: {REPO} is gated on {name_of('huggingface', hub)}: its licence must be "
            "accepted first\n"
            f"  where: {hub.url}/{REPO}\n"
            "  fix:   accept it on that page in a browser, then hf auth login, or export "
            "HF_TOKEN=...; or --source m"
        )
    monkeypatch.setenv("HF_TOKEN", "right-token")
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    assert_whole(target)


def test_modelscope_refuses_a_token(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[REPO].gated, hub.token = True, "right-token"
    result = iisft("download", REPO, "--source", "modelscope")
    assert result.code == 5
    assert result.err.startswith(
        f"error: {REPO}: {name_of('modelscope', hub)} does not let this token's owner read it "
        "(403)\n"
    )
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "right-token")
    assert iisft("download", REPO, "--source", "modelscope").code == 0


@pytest.mark.parametrize("folder", ["missing", "not empty"])
def test_connection_refused(
    hub: HubServer,
    iisft: CLI,
    source: str,
    folder: str,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if folder == "not empty":
        assert iisft("download", REPO).code == 0
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    result = iisft("download", REPO, "--source", source)
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith(
        f"error: {metadata.NAMES[source]} (http://127.0.0.1:1) can't be reached: connection "
        "refused\n"
    )
    other = "--source modelscope" if source == "huggingface" else "--source huggingface"
    assert f"check the network, or {other}" in result.err
    assert ("export HF_ENDPOINT=https://hf-mirror.com" in result.err) == (source == "huggingface")


def test_a_machine_without_names_says_so_of_both_hubs_and_asks_neither(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(
        hubs, "huggingface_listing", lambda *_: pytest.fail("its client was started")
    )

    def unknown(name: str, *_: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(network.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(network, "_has_route", lambda: False)
    result = iisft("download", REPO)
    assert (result.code, hub.seen) == (5, [])
    said = "can't be reached: temporary failure in name resolution; this machine has no network"
    for source in ("huggingface", "modelscope"):
        assert f"error: {metadata.NAMES[source]} (http://hub.invalid) {said}\n" in result.err
    assert "fix:   check the network, or --source huggingface\n" in result.err


def test_a_resolver_that_never_answers_is_not_waited_for_without_a_network(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(network.socket, "getaddrinfo", lambda *_: ended.wait())
    monkeypatch.setattr(network, "_has_route", lambda: False)
    monkeypatch.setattr(network, "_OFFLINE_NAME_S", 0.01)
    result = iisft("download", REPO, "--source", "modelscope")
    ended.set()
    assert (result.code, "no answer from a resolver" in result.err) == (5, True)


def test_an_endpoint_without_a_scheme_is_written_with_one(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    result = iisft("download", REPO, "--source", "huggingface")
    assert result.code == 5
    assert "error: HF_ENDPOINT is not an address: hf-mirror.com\n" in result.err
    assert "fix:   export HF_ENDPOINT=https://hf-mirror.com\n" in result.err


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "wants fewer requests (429)"),
        (500, "has an error of its own (5"),
        (503, "has an error of its own (503)"),
    ],
)
def test_a_hub_with_a_fault(
    hub: HubServer, iisft: CLI, source: str, status: int, message: str
) -> None:
    hub.faults.append(Fault("@api", status=status))
    result = iisft("download", REPO, "--source", source)
    assert (result.code, message in result.err) == (5, True), result.err
    assert result.err.startswith(f"error: {name_of(source, hub)} ")


def test_a_fault_that_passes_is_waited_for(
    hub: HubServer, iisft: CLI, source: str, target: Path
) -> None:
    hub.faults.append(Fault("@api", status=503, times=2))
    assert iisft("download", REPO, "--source", source).code == 0
    assert_whole(target)


def test_an_api_that_does_not_answer(
    hub: HubServer, iisft: CLI, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "DEADLINE_S", 0.5)
    hub.faults.append(Fault("@api", slow_s=60))
    result = iisft("download", REPO, "--source", source)
    assert result.code == 5
    assert result.err.startswith(f"error: no listing from {name_of(source, hub)} within 0.5 s\n")


def test_a_hub_that_does_not_answer_gives_way_to_the_other(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    hub.faults.append(Fault("@api", slow_s=60, source="modelscope"))
    result = iisft("download", REPO)
    assert (result.code, "from     Hugging Face" in result.out) == (0, True)
    assert_whole(target)


def test_a_login_page_instead_of_a_hub(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[REPO].extra.append({"type": "file", "path": "x"})  # no size, no oid
    result = iisft("download", REPO, "--source", "huggingface")
    assert result.code == 5
    assert "answers with something that is not a model listing" in result.err


def test_offline_mode_is_named(hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = iisft("download", REPO, "--source", "huggingface")
    assert (result.code, result.err.splitlines()[0]) == (
        5,
        "error: HF_HUB_OFFLINE forbids asking Hugging Face",
    )


def test_a_socks_proxy_without_its_packages(
    hub: HubServer, iisft: CLI, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:1")
    result = iisft("download", REPO, "--source", source)
    assert (result.code, "the environment names a SOCKS proxy" in result.err) == (5, True), (
        result.err
    )
    assert "secret" not in result.err


def test_not_a_model_id(iisft: CLI) -> None:
    for name in ("../../etc", "a/b/c", "Qwen/Q wen", "/abs/path", "Qwen/.."):
        result = iisft("download", name)
        assert (result.code, "is not a model id" in result.err) == (2, True), name


# what the bytes can do


@pytest.mark.parametrize(
    "fault",
    [
        Fault("*.safetensors", drop_after=150_000),
        Fault("*.safetensors", drop_after=0, times=3),
        Fault("*.safetensors", status=503, headers={"Retry-After": "0"}, times=2),
        Fault("*.safetensors", status=429, headers={"Retry-After": "0"}, times=2),
        Fault("*.safetensors", status=500, times=2),
        Fault(SHARD, corrupt=True, times=1),
        Fault(SHARD, slow_s=0.2, times=1),
        Fault("config.json", drop_after=5, times=2),
    ],
    ids=[
        "drops",
        "drops-at-once",
        "503",
        "429",
        "500",
        "corrupt-once",
        "slow-first-byte",
        "small-file",
    ],
)
def test_what_mends_itself(
    hub: HubServer, iisft: CLI, source: str, target: Path, fault: Fault
) -> None:
    hub.faults.append(fault)
    result = iisft("download", REPO, "--source", source)
    assert result.code == 0, result.err
    assert_whole(target)


def test_a_drop_is_continued_at_its_byte(hub: HubServer, iisft: CLI, target: Path) -> None:
    hub.faults.append(Fault(SHARD, drop_after=150_000, times=1))
    result = iisft("download", REPO, "--source", "modelscope")
    assert result.code == 0
    size = len(needed()[SHARD])
    assert (
        f"  {SHARD}: 127.0.0.1:{hub.port} ended the connection {size - 150_000} bytes early; "
        "again in 0 s\n" in result.err
    )
    assert [one.headers.get("Range") for one in hub.bodies(SHARD)] == [None, "bytes=150000-"]
    assert sum(one.sent for one in hub.bodies(SHARD)) == size


def test_a_server_without_ranges_begins_again(hub: HubServer, iisft: CLI, target: Path) -> None:
    hub.faults += [Fault(SHARD, drop_after=150_000, times=1), Fault(SHARD, ignore_range=True)]
    assert iisft("download", REPO, "--source", "modelscope").code == 0
    assert sum(one.sent for one in hub.bodies(SHARD)) == 150_000 + len(needed()[SHARD])
    assert_whole(target)


def test_a_stalled_body_is_dropped_and_continued(
    hub: HubServer, iisft: CLI, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "READ_S", 0.3)
    hub.faults.append(Fault(SHARD, stall_after=100_000, times=2))
    result = iisft("download", REPO, "--source", "modelscope")
    assert result.code == 0
    assert f"{SHARD}: no answer from 127.0.0.1:{hub.port} in time; again in" in result.err
    assert [one.headers.get("Range") for one in hub.bodies(SHARD)] == [
        None,
        "bytes=100000-",
        "bytes=200000-",
    ]


def test_a_body_that_never_comes_is_given_up(
    hub: HubServer, iisft: CLI, source: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "READ_S", 0.1)
    hub.faults.append(Fault(SHARD, stall_after=0))
    result = iisft("download", REPO, "--source", source)
    host = "localhost" if source == "huggingface" else "127.0.0.1"
    assert result.code == 5
    assert f"error: no answer from {host}:{hub.port} in time\n" in result.err
    assert OTHER_SHARD in contents(target), "the others were finished"


def test_wrong_bytes_of_the_right_length_are_never_published(
    hub: HubServer, iisft: CLI, source: str, target: Path
) -> None:
    hub.faults.append(Fault(SHARD, corrupt=True))
    result = iisft("download", REPO, "--source", source)
    assert result.code == 5
    assert (
        f"error: {SHARD}: the bytes received differed from the hub's listing twice\n" in result.err
    )
    assert_nothing_published(target, SHARD)
    assert OTHER_SHARD in contents(target), "the others were finished"


def test_wrong_bytes_are_noticed_when_the_hubs_own_client_does_not(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    hub.faults.append(Fault(SHARD, corrupt=True))
    result = iisft("download", REPO, "--source", "huggingface", "--transfer", "hub")
    assert result.code == 5
    assert (
        f"error: {SHARD}: the hub's client delivered other bytes than the listing promises"
        in result.err
    )
    assert_nothing_published(target, SHARD)


def test_a_truncated_shard(hub: HubServer, iisft: CLI, source: str, target: Path) -> None:
    hub.faults.append(Fault(SHARD, short=1000))
    result = iisft("download", REPO, "--source", source)
    size = len(needed()[SHARD])
    assert result.code == 5
    assert f" sends {size - 1000} bytes, its listing says {size}\n" in result.err
    assert_nothing_published(target, SHARD)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "wants a login for this (401)"),
        (403, "refuses this (403): the token's owner may not read it"),
        (404, "no longer has it (404)"),
        (500, "has an error of its own (500)"),
    ],
)
def test_a_file_that_is_refused(
    hub: HubServer, iisft: CLI, source: str, target: Path, status: int, message: str
) -> None:
    hub.faults.append(Fault(SHARD, status=status))
    result = iisft("download", REPO, "--source", source)
    assert (result.code, message in result.err) == (5, True), result.err
    assert f"  where: {SHARD}\n" in result.err
    assert_nothing_published(target, SHARD)


def test_a_signature_that_ran_out_is_asked_for_again(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    hub.faults.append(Fault(SHARD, status=403, times=1))
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    assert_whole(target)


def test_several_faults_are_told_together(hub: HubServer, iisft: CLI) -> None:
    hub.faults.append(Fault("*.safetensors", status=404))
    result = iisft("download", REPO, "--source", "modelscope", "--json")
    assert result.code == 5
    findings = json.loads(result.out)["error"]["findings"]
    assert sorted(finding["where"] for finding in findings) == [SHARD, OTHER_SHARD]


# the other hub


@pytest.mark.parametrize(
    ("first", "second"), [("huggingface", "modelscope"), ("modelscope", "huggingface")]
)
def test_a_hub_that_fails_in_mid_download_is_left_and_its_parts_are_continued(
    hub: HubServer, iisft: CLI, target: Path, first: str, second: str
) -> None:
    hub.faults += [
        Fault("@api", slow_s=0.5, source=second),  # so that the first answers first
        Fault(SHARD, drop_after=150_000, times=1, source=first),
        Fault(SHARD, status=500, source=first),
    ]
    result = iisft("download", REPO)
    assert result.code == 0, result.err
    assert_whole(target)
    assert f"warning: {metadata.NAMES[first]} could not finish" in result.err
    assert f"from     {metadata.NAMES[second]}" in result.out
    assert sum(one.sent for one in hub.bodies(SHARD)) == len(needed()[SHARD])


def test_other_bytes_at_the_other_hub_are_not_mixed_in(
    hub: HubServer, iisft: CLI, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as other:
        files = {
            **repository(),
            "config.json": repository()["config.json"] + b" ",
            "configuration.json": b"{}",
        }
        other.repos[REPO] = Repo(files)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", other.url)
        other.faults.append(Fault("@api", slow_s=0.5))
        hub.faults.append(Fault(SHARD, status=404))
        result = iisft("download", REPO, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["source"], document["endpoint"]) == ("modelscope", other.url)
    expected = {name: files[name] for name in [*needed(), "configuration.json"]}
    assert contents(target) == dict(sorted(expected.items()))


# the disk


def test_a_disk_too_small_is_noticed_before_the_first_byte(
    hub: HubServer, iisft: CLI, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(target.anchor)._replace(free=64_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    result = iisft("download", REPO)
    assert result.code == 5
    assert result.err.startswith(
        f"error: 801 kB are still to be fetched, 64.5 MB are free\n  where: {target}\n"
        "  fix:   free some space"
    )
    assert hub.bodies() == []


def test_a_disk_that_fills_up_keeps_what_came(hub: HubServer, iisft: CLI, target: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        result = iisft("download", REPO, "--source", "modelscope")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 5
    assert "error: the disk is full (File too large)\n" in result.err
    assert "run the command again: it continues where it stopped" in result.err
    before = len(hub.seen)
    assert iisft("download", REPO, "--source", "modelscope").code == 0
    assert "bytes=200000-" in [one.headers.get("Range") for one in hub.seen[before:]]
    assert_whole(target)


def test_a_folder_that_can_not_be_written(hub: HubServer, iisft: CLI, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = iisft("download", REPO, "--to", str(tmp_path / "file" / "model"))
    assert (result.code, result.err.splitlines()[0]) == (
        5,
        "error: can't be written: Not a directory",
    )


def test_a_second_download_into_the_same_folder_is_refused(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    from iisft.files import exclusive_lock

    (target / ".iisft").mkdir(parents=True)
    with exclusive_lock(target / ".iisft" / "lock"):
        result = iisft("download", REPO)
    assert (result.code, result.err.splitlines()[0]) == (
        5,
        "error: another iisft is downloading into this folder",
    )
    assert [path.name for path in (target / ".iisft").iterdir()] == ["lock"]
