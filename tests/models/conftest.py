import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, Repo, running
from models_on_disk import CONFIG, REPO, repository, write_json, write_safetensors


@pytest.fixture(autouse=True)
def trainer(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], None]:
    """An interpreter without LLaMA-Factory, until a test gives it what it would make of a model."""
    file = tmp_path_factory.mktemp("trainer") / "python"

    def give(facts: dict[str, Any], *packages: str) -> None:
        about = {"python": "3.11.7", "packages": dict.fromkeys(packages, "0.9.5"), "launcher": None}
        file.write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"print({json.dumps(json.dumps(facts))} if 'build_model' in sys.argv[1]\n"
            f"      else {json.dumps(json.dumps(about))})\n"
        )
        file.chmod(0o755)

    give({})
    monkeypatch.setenv("IISFT_PYTHON", str(file))
    return lambda facts: give(facts, "llamafactory", "torch")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A complete one-file model in a folder with a space and Chinese letters."""
    folder = tmp_path / "模型 a" / "tiny"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer.json", {"version": "1.0"})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 64})
    write_safetensors(
        folder / "model.safetensors",
        {"model.embed_tokens.weight": ("BF16", [4, 8]), "model.norm.weight": ("BF16", [8])},
    )
    return folder


@pytest.fixture
def sharded_folder(model_folder: Path) -> Path:
    (model_folder / "model.safetensors").unlink()
    shards = {"model-1.safetensors": "a.weight", "model-2.safetensors": "b.weight"}
    for file, tensor in shards.items():
        write_safetensors(model_folder / file, {tensor: ("BF16", [2, 3])})
    index = {"metadata": {}, "weight_map": {tensor: file for file, tensor in shards.items()}}
    write_json(model_folder / "model.safetensors.index.json", index)
    return model_folder


@pytest.fixture
def change_config(model_folder: Path) -> Callable[..., None]:
    """Change keys of the model's config.json; None removes one."""

    def change(**keys: Any) -> None:
        merged = {**json.loads((model_folder / "config.json").read_text()), **keys}
        write_json(model_folder / "config.json", {k: v for k, v in merged.items() if v is not None})

    return change


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server that is both hubs and has REPO; nobody is logged in, and waiting costs no time."""
    import modelscope_hub._legacy_api as modelscope

    from iisft.models.hub import hubs, transfer

    for name in [*os.environ]:
        ours = ("HF_", "HUGGING", "MODELSCOPE_", "SSL_CERT", "REQUESTS_CA", "CURL_CA")
        if name.upper().endswith("_PROXY") or name.startswith(ours):
            monkeypatch.delenv(name)
    for name in ("HF_HOME", "MODELSCOPE_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(transfer, "PAUSES_S", (0.0, 0.01, 0.01, 0.01))
    monkeypatch.setattr(hubs, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(modelscope, "REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS", 0)
    with running() as server:
        server.repos[REPO] = Repo(repository())
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        yield server


@pytest.fixture
def target() -> Path:
    """Where `iisft download REPO` puts it."""
    return Path(os.environ["IISFT_HOME"]) / "models" / REPO
