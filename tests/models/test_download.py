"""Downloads that go well, and the folders they leave.

The official clients against the same server.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, Repo, sha256
from models_on_disk import (
    NEEDED,
    OTHER_SHARD,
    REPO,
    SHARD,
    contents,
    flip_a_bit,
    needed,
    repository,
    shard,
)

CLI = Callable[..., Any]


@pytest.mark.parametrize(
    ("source", "revision"), [("huggingface", "main"), ("modelscope", "master")]
)
def test_a_download_holds_what_training_needs_and_says_where_it_is_from(
    hub: HubServer, iisft: CLI, target: Path, source: str, revision: str
) -> None:
    result = iisft("download", REPO, "--source", source, "--json")
    assert result.code == 0, result.err
    assert contents(target) == dict(sorted(needed().items()))
    document = json.loads(result.out)
    assert document == {
        "dir": str(target),
        "source": source,
        "endpoint": hub.url,
        "repo": REPO,
        "revision": revision,
        "commit": "c" * 40,
        "licence": "apache-2.0",
        "complete": True,
        "files": [
            {"path": name, "size": len(needed()[name]), "sha256": sha256(needed()[name])}
            for name in NEEDED
        ],
        "findings": [],
        "fetched_bytes": sum(map(len, needed().values())),
    }
    assert sorted(path.name for path in (target / ".iisft").iterdir()) == ["lock", "manifest.json"]


def test_what_a_person_reads(hub: HubServer, iisft: CLI, target: Path) -> None:
    result = iisft("download", REPO, "--source", "huggingface")
    assert result.out == (
        f"{REPO}: 9 files, 801 kB, every byte verified\n"
        "  fetched  801 kB\n"
        f"  from     Hugging Face ({hub.url}), revision main = {'c' * 40}\n"
        "  licence  apache-2.0\n"
        f"  folder   {target}\n"
    )
    assert result.err == "downloading 9 files, 801 kB\n"


def test_the_presets_model_is_the_default(hub: HubServer, iisft: CLI) -> None:
    hub.repos["Qwen/Qwen2.5-7B-Instruct"] = Repo(repository())
    result = iisft("download")
    assert result.code == 0
    assert result.out.startswith("Qwen/Qwen2.5-7B-Instruct: 9 files")
    assert result.out.endswith("  next     iisft train --preset mi50\n")


def test_a_second_run_reads_every_byte_and_fetches_none(hub: HubServer, iisft: CLI) -> None:
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    before = len(hub.bodies())
    result = iisft("download", REPO)
    assert (result.code, len(hub.bodies())) == (0, before)
    assert "  fetched  nothing, all of it was there\n" in result.out
    assert "from     Hugging Face" in result.out, "a folder stays with its hub while that answers"


def test_a_corrupted_shard_is_found_and_mended_by_the_command_that_verify_names(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    stat = (target / SHARD).stat()
    flip_a_bit(target / SHARD)
    os.utime(target / SHARD, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # bit rot changes no time
    result = iisft("download", "--verify", str(target))
    assert (result.code, result.out) == (5, f"{target}: 1 of 9 files are not as downloaded\n")
    command = f"iisft download {REPO} --source huggingface --revision {'c' * 40} --to '{target}'"
    assert f"error: {SHARD} has other bytes than were downloaded" in result.err
    assert f"  where: {target / SHARD}\n  fix:   {command}\n" in result.err
    before = len(hub.bodies())
    assert iisft(*command.replace(f"'{target}'", "TO").split()[1:-1], str(target)).code == 0
    assert [one.path.partition("?")[0] for one in hub.bodies()[before:]] == [
        f"/{REPO}/resolve/{'c' * 40}/{SHARD}",
        f"/cdn/{REPO}/{'c' * 40}/{SHARD}",
    ]
    assert contents(target) == dict(sorted(needed().items()))
    assert (
        iisft("download", "--verify", str(target)).out
        == f"{target}: 9 files, 801 kB, every byte verified\n"
    )


def test_a_file_that_a_person_changed_is_kept_aside(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    target.mkdir(parents=True)
    (target / "config.json").write_text('{"mine": true}')
    (target / "我的 notes.md").write_text("mine")
    result = iisft("download", REPO)
    kept = target / ".iisft" / "replaced" / "config.json"
    assert result.code == 0
    assert (
        f"warning: config.json was not the hub's: replaced, the old one is {kept}\n" in result.err
    )
    assert kept.read_text() == '{"mine": true}'
    assert (target / "我的 notes.md").read_text() == "mine"


def test_a_new_commit_fetches_only_what_changed(hub: HubServer, iisft: CLI, target: Path) -> None:
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    hub.repos[REPO].files[OTHER_SHARD] = shard("model.layers.2.weight", 400_000, seed="new")
    hub.repos[REPO].commit = "d" * 40
    before = len(hub.bodies())
    result = iisft("download", REPO, "--json")
    assert (result.code, json.loads(result.out)["commit"]) == (0, "d" * 40)
    assert {one.path.rpartition("/")[2].partition("?")[0] for one in hub.bodies()[before:]} == {
        OTHER_SHARD
    }
    assert (target / OTHER_SHARD).read_bytes() == hub.repos[REPO].files[OTHER_SHARD]


def test_another_model_into_the_same_folder_is_refused(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    hub.repos["other/model"] = Repo(repository())
    assert iisft("download", REPO).code == 0
    result = iisft("download", "other/model", "--to", str(target))
    assert (result.code, f"error: the folder holds {REPO}: two models" in result.err) == (5, True)


def test_shards_of_an_earlier_commit_do_not_stay(hub: HubServer, iisft: CLI, target: Path) -> None:
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    files = {**repository(), "model.safetensors": shard("whole.weight", 4000, seed="w")}
    for name in (SHARD, OTHER_SHARD, "model.safetensors.index.json"):
        del files[name]
    hub.repos[REPO] = Repo(files, commit="e" * 40)
    flip_a_bit(target / OTHER_SHARD)  # no longer what was downloaded
    result = iisft("download", REPO)
    assert result.code == 0
    assert f"warning: {SHARD} was removed: the repository no longer has it\n" in result.err
    assert sorted(path.name for path in target.glob("*.safetensors")) == [
        OTHER_SHARD,
        "model.safetensors",
    ]


def test_a_second_choice_of_files_joins_the_manifest(
    hub: HubServer, iisft: CLI, target: Path
) -> None:
    assert iisft("download", REPO, "--source", "modelscope").code == 0
    result = iisft("download", REPO, "--include", "*.gguf", "--json")
    assert (result.code, json.loads(result.out)["fetched_bytes"]) == (0, 2000)
    assert [file["path"] for file in json.loads(result.out)["files"]] == sorted(
        [*NEEDED, "tiny-q4.gguf"]
    )


def test_globs_choose(hub: HubServer, iisft: CLI, tmp_path: Path) -> None:
    to = tmp_path / "a b"
    chosen = ("--include", "*.json", "--include", "*.gguf", "--exclude", "tok*", "--to", str(to))
    assert iisft("download", REPO, *chosen).code == 0
    assert [*contents(to)] == [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tiny-q4.gguf",
    ]
    result = iisft("download", REPO, "--include", "*.nothing", "--to", str(tmp_path / "c"))
    assert (
        result.code,
        f"none of the {len(repository())} files of the repository is chosen" in result.err,
    ) == (
        5,
        True,
    )


def test_pickles_only_when_asked_for(hub: HubServer, iisft: CLI, tmp_path: Path) -> None:
    hub.repos["old/pickled"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"\x80" * 3000})
    result = iisft("download", "old/pickled")
    assert result.code == 5
    assert result.err.startswith(
        "error: the repository has its weights only as pickles: pytorch_model.bin. Loading a "
        "pickle can run any code"
    )
    assert "--allow-pickle downloads them anyway" in result.err
    assert iisft("download", REPO, "--include", "*.bin").code == 5
    to = tmp_path / "pickled"
    assert iisft("download", "old/pickled", "--allow-pickle", "--to", str(to)).code == 0
    assert [*contents(to)] == ["config.json", "pytorch_model.bin"]


def test_code_that_a_model_brings_is_named_and_not_trusted(hub: HubServer, iisft: CLI) -> None:
    config = json.loads(repository()["config.json"]) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_x.XModel"}
    }
    hub.repos["some/code"] = Repo(
        {**repository(), "config.json": json.dumps(config).encode(), "modeling_x.py": b"1/0"}
    )
    result = iisft("download", "some/code")
    assert result.code == 0
    assert (
        "note: the model comes with its own code: modeling_x.py. None of it runs unless a preset "
        "trusts it" in result.err
    )


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_the_hubs_own_client_can_fetch_and_is_verified(
    hub: HubServer, iisft: CLI, target: Path, source: str
) -> None:
    result = iisft("download", REPO, "--source", source, "--transfer", "hub")
    assert result.code == 0, result.err
    assert contents(target) == dict(sorted(needed().items()))
    assert sorted(path.name for path in (target / ".iisft").iterdir()) == ["lock", "manifest.json"]


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "huggingface_hub.cli.hf", "download", REPO, "--local-dir"],
        ["-m", "modelscope_hub.cli.main", "download", REPO, "--local-dir"],
    ],
)
def test_the_official_clients_find_a_hub_in_the_test_server(
    hub: HubServer, tmp_path: Path, argv: list[str]
) -> None:
    to = tmp_path / "official"
    done = subprocess.run(
        [sys.executable, *argv, str(to)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {name: content for name, content in repository().items() if name != ".gitattributes"}
    assert contents(to) == dict(sorted(expected.items()))
