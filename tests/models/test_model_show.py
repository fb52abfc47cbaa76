"""Verifying and adopting folders, what `model show` and `models` tell, and what training makes of a
manifest.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, sha256
from models_on_disk import (
    CONFIG,
    OTHER_SHARD,
    REPO,
    SHARD,
    contents,
    flip_a_bit,
    needed,
    write_json,
    write_safetensors,
)

CLI = Callable[..., Any]


@pytest.fixture
def downloaded(hub: HubServer, iisft: CLI, target: Path) -> Path:
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    return target


# --verify


def test_verify_needs_no_network(downloaded: Path, hub: HubServer, iisft: CLI) -> None:
    hub.close()
    result = iisft("download", "--verify", str(downloaded), "--json")
    document = json.loads(result.out)
    assert (result.code, document["ok"], document["findings"]) == (0, True, [])
    assert document["files"][-1] == {
        "path": "tokenizer_config.json",
        "size": len(needed()["tokenizer_config.json"]),
        "sha256": sha256(needed()["tokenizer_config.json"]),
    }


def test_verify_tells_every_fault_at_once(downloaded: Path, iisft: CLI) -> None:
    flip_a_bit(downloaded / SHARD)
    (downloaded / OTHER_SHARD).write_bytes((downloaded / OTHER_SHARD).read_bytes()[:-1])
    (downloaded / "tokenizer.json").unlink()
    result = iisft("download", "--verify", str(downloaded), "--json")
    document = json.loads(result.out)
    assert (result.code, document["ok"]) == (5, False)
    assert [
        (Path(f["where"]).name, f["message"].partition(" (")[0]) for f in document["findings"]
    ] == [
        (SHARD, f"{SHARD} has other bytes than were downloaded"),
        (OTHER_SHARD, f"{OTHER_SHARD} has other bytes than were downloaded"),
        ("tokenizer.json", "tokenizer.json is missing"),
    ]


def test_verify_without_a_manifest_names_adopt(iisft: CLI, model_folder: Path) -> None:
    result = iisft("download", "--verify", str(model_folder))
    assert result.code == 5
    assert result.err == (
        f"error: {model_folder} has no manifest\n"
        f"  where: {model_folder}\n"
        f"  fix:   iisft download --adopt '{model_folder}' records its digests\n"
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": 3}', '{"files": [{"path": "../x", "size": 1}]}']
)
def test_a_torn_manifest_is_none(downloaded: Path, iisft: CLI, text: str) -> None:
    (downloaded / ".iisft" / "manifest.json").write_text(text)
    assert iisft("download", "--verify", str(downloaded)).code == 5
    assert iisft("download", REPO, "--source", "huggingface").code == 0
    assert iisft("download", "--verify", str(downloaded)).code == 0


# --adopt


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder that came by another way: the hub's bytes, no manifest."""
    folder = tmp_path / "别处 models" / "tiny"
    folder.mkdir(parents=True)
    for name, content in needed().items():
        (folder / name).write_bytes(content)
    (folder / "my notes.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_folder_is_adopted_when_its_bytes_are_the_hubs(
    hub: HubServer, iisft: CLI, copied: Path, source: str
) -> None:
    result = iisft("download", REPO, "--adopt", str(copied), "--source", source)
    assert (result.code, result.out) == (0, f"{copied}: 9 files, 801 kB, every byte adopted\n"), (
        result.err
    )
    assert hub.bodies() == []
    shown = json.loads(iisft("model", "show", str(copied), "--json").out)
    assert (shown["source"], shown["repo"], shown["commit"]) == (source, REPO, "c" * 40)


def test_a_folder_with_other_bytes_is_not_adopted(hub: HubServer, iisft: CLI, copied: Path) -> None:
    flip_a_bit(copied / SHARD)
    (copied / "config.json").write_text("{}")
    result = iisft("download", REPO, "--adopt", str(copied), "--source", "huggingface")
    assert (result.code, result.out) == (5, "")
    assert (
        f"error: {SHARD} differs from that of {REPO} at main\n  where: {copied / SHARD}\n"
        in result.err
    )
    assert "error: config.json differs from that of" in result.err
    assert "--source local adopts the folder as it is" in result.err
    assert not (copied / ".iisft").exists()
    assert iisft("download", "--adopt", str(copied), "--source", "local").code == 0
    assert iisft("download", "--verify", str(copied)).code == 0


def test_what_is_missing_from_an_adopted_folder_is_told(
    hub: HubServer, iisft: CLI, copied: Path
) -> None:
    (copied / OTHER_SHARD).unlink()
    (copied / "README.md").unlink()
    result = iisft("download", REPO, "--adopt", str(copied), "--source", "huggingface")
    command = (
        f"iisft download {REPO} --source huggingface --to '{copied}' fetches it, and makes "
        "the manifest too"
    )
    assert result.code == 5
    assert (
        f"error: {OTHER_SHARD} is missing\n  where: {copied / OTHER_SHARD}\n  fix:   {command}\n"
        in result.err
    )
    assert "README" not in result.err


def test_a_wrong_name_is_not_adopted(hub: HubServer, iisft: CLI, copied: Path) -> None:
    result = iisft("download", "Qwen/Nothing", "--adopt", str(copied))
    assert (result.code, "has no model Qwen/Nothing" in result.err) == (5, True)
    assert not (copied / ".iisft").exists()


def test_without_a_hub_the_digests_are_recorded_and_the_lack_is_told(
    hub: HubServer, iisft: CLI, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    result = iisft("download", REPO, "--adopt", str(copied))
    assert result.code == 0
    assert (
        result.err.startswith("checking 10 files")
        and "warning: adopted as it is, not compared with any hub: " in result.err
    )
    flip_a_bit(copied / SHARD)
    assert iisft("download", "--verify", str(copied)).code == 5


def test_adopting_asks_which_model_it_is(iisft: CLI, copied: Path) -> None:
    result = iisft("download", "--adopt", str(copied))
    assert (result.code, f"which model is {copied}?" in result.err) == (2, True)


def test_options_that_exclude_each_other(iisft: CLI, copied: Path) -> None:
    assert iisft("download", "--adopt", str(copied), "--verify", str(copied)).code == 2
    assert iisft("download", REPO, "--source", "local").code == 2


# model show, models


def test_model_show_tells_what_a_folder_holds(downloaded: Path, iisft: CLI) -> None:
    config = {
        **CONFIG,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_size": 3584,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    }
    write_json(downloaded / "config.json", config)
    assert iisft("download", REPO, "--adopt", str(downloaded), "--source", "local").code == 0
    result = iisft("model", "show", REPO)
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        f"{REPO}\n"
        f"  folder        {downloaded}\n"
        "  architecture  Qwen2ForCausalLM (qwen2)\n"
        "  parameters    400,000 (400 k)\n"
        "  stored as     bfloat16 400 k\n"
        "  shape         28 layers, 28 heads, 4 for keys and values, hidden 3584, context 32768\n"
        "  vocabulary    152064, embeddings tied\n"
        "  template      qwen: it writes the prompts of the model's own chat template\n"
        "  size          801 kB in 9 files\n"
        f"  from          local, {REPO}\n"
        "  licence       apache-2.0\n"
        "  precision     fp32 over stored: exact float32 arithmetic over bfloat16 weights\n"
        "  precision     fp32: float32 weights\n"
        "  precision     fp16: float16 weights\n"
        "  precision     bf16: bfloat16 weights\n"
    )


def test_model_show_as_json(downloaded: Path, iisft: CLI) -> None:
    result = iisft("model", "show", str(downloaded), "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert {
        key: document[key]
        for key in ("dir", "source", "revision", "architecture", "parameters", "dtypes")
    } == {
        "dir": str(downloaded),
        "source": "huggingface",
        "revision": "main",
        "architecture": "Qwen2ForCausalLM",
        "parameters": 400_000,
        "dtypes": {"bfloat16": 400_000},
    }
    assert document["files"][0] == {
        "path": "README.md",
        "size": 45,
        "sha256": sha256(needed()["README.md"]),
    }
    assert (document["state"], document["findings"], document["chat_template"]) == ("ok", [], True)


def test_model_show_names_missing_and_cut_shards(downloaded: Path, iisft: CLI) -> None:
    (downloaded / SHARD).unlink()
    with (downloaded / OTHER_SHARD).open("r+b") as stream:
        stream.truncate(1000)
    result = iisft("model", "show", str(downloaded), "--json")
    assert result.code == 3
    assert [(f["id"], Path(f["where"]).name) for f in json.loads(result.out)["findings"]] == [
        ("model-shard-missing", SHARD),
        ("model-shard-torn", OTHER_SHARD),
    ]
    assert "2 faults" in iisft("models").out


def test_model_show_of_a_folder_without_a_manifest(model_folder: Path, iisft: CLI) -> None:
    write_safetensors(
        model_folder / "model.safetensors",
        {"model.embed_tokens.weight": ("F32", [4, 8]), "lm_head.weight": ("F32", [4, 8])},
    )
    document = json.loads(iisft("model", "show", str(model_folder), "--json").out)
    assert (document["source"], document["tied_embeddings"], document["dtypes"]) == (
        "",
        False,
        {"float32": 64},
    )
    assert [file["path"] for file in document["files"]] == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_model_show_of_nothing(iisft: CLI) -> None:
    result = iisft("model", "show", "Qwen/Nothing")
    assert (result.code, "there is no model folder" in result.err) == (3, True)


def test_models_lists_what_is_there(downloaded: Path, iisft: CLI) -> None:
    (downloaded.parents[1] / "empty").mkdir()
    result = iisft("models")
    assert result.code == 0
    assert re.split(r"\s{2,}", result.out.splitlines()[1]) == [
        REPO,
        "400 k",
        "bfloat16",
        "801 kB",
        "huggingface",
        "ok",
    ]
    assert iisft("models", "--quiet").out == f"{REPO}\n"
    assert [one["id"] for one in json.loads(iisft("models", "--json").out)] == [REPO]


# training


def test_training_refuses_what_the_manifest_speaks_against(downloaded: Path, iisft: CLI) -> None:
    (downloaded / "generation_config.json").unlink()
    (downloaded / "tokenizer_config.json").write_text("{}")
    os.utime(downloaded / "tokenizer.json", ns=(0, 0))
    (downloaded / "README.md").write_text("read")
    with (downloaded / SHARD).open("r+b") as stream:
        stream.truncate(1000)
    result = iisft("train", "--preset", "mi50", "--model", str(downloaded), "--dry-run", "--json")
    command = (
        f"iisft download {REPO} --source huggingface --revision {'c' * 40} --to '{downloaded}'"
    )
    found = {
        f["where"]: (f["id"], f["severity"], f["fix"])
        for f in json.loads(result.out)["findings"]
        if f["id"].startswith("model")
    }
    keep = f"; if you changed it yourself: iisft download --adopt '{downloaded}' --source local"
    assert result.code == 3
    assert found == {
        str(downloaded / SHARD): ("model-shard-torn", "error", command),
        str(downloaded / "README.md"): ("model-file-changed", "warn", command + keep),
        str(downloaded / "generation_config.json"): ("model-file-changed", "error", command + keep),
        str(downloaded / "tokenizer_config.json"): ("model-file-changed", "error", command + keep),
        str(downloaded): ("model-file-touched", "warn", f"iisft download --verify '{downloaded}'"),
    }
    assert len(contents(downloaded)) == 8


def test_a_copied_folder_is_a_warning_until_it_is_verified(downloaded: Path, iisft: CLI) -> None:
    for path in downloaded.iterdir():
        if path.is_file():
            os.utime(path, ns=(1, 1))
    assert "written or copied since the download" in iisft("model", "show", str(downloaded)).err
    assert iisft("model", "show", str(downloaded)).code == 0
    assert iisft("download", "--verify", str(downloaded)).code == 0
    assert iisft("model", "show", str(downloaded)).err == ""


def test_training_names_the_download_of_a_model_that_is_missing(iisft: CLI) -> None:
    result = iisft("train", "--preset", "mi50", "--dry-run")
    assert "error: the model Qwen/Qwen2.5-7B-Instruct is not there\n" in result.err
    assert "  fix:   iisft download Qwen/Qwen2.5-7B-Instruct, or --model DIR\n" in result.err


BUILT: dict[str, Any] = {
    "warnings": [["peft", "a library says something"], ["transformers", "LOAD REPORT: none"]],
    "loaded": {"missing": [1, ["lm_head.weight"]], "unexpected": [0, []], "mismatched": [0, []]},
    "base": 40,
    "modules": {"mlp.up_proj": 30, "self_attn.q_proj": 10},
    "adapted": {
        "modules": {"q_proj": 2, "up_proj": 2},
        "parameters": {"mlp.up_proj": 28, "self_attn.q_proj": 10},
    },
    "trained_whole": [],
}


def test_model_show_has_what_the_trainer_would_make_of_it(
    model_folder: Path, iisft: CLI, trainer: Callable[[dict[str, Any]], None]
) -> None:
    trainer(BUILT)
    first, again = (iisft("model", "show", str(model_folder)) for _ in range(2))
    assert first.err.startswith("building the model without its weights (some seconds; ")
    assert again.err == first.err.split("\n", 1)[1]
    assert "a library says something" in again.err and "LOAD REPORT" not in again.err
    assert "1 in no file, so that they would be random (lm_head.weight)" in again.err
    assert (first.code, first.out) == (again.code, again.out) == (3, again.out)
    line = "  adapters      q_proj 2, up_proj 2: 95% of the parameters (lora.target: all)\n"
    assert line in again.out
    document = json.loads(iisft("model", "show", str(model_folder), "--json").out)
    assert (document["adapters"], document["adapted_share"]) == ({"q_proj": 2, "up_proj": 2}, 0.95)
