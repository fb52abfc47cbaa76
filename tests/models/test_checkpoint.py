import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models_on_disk import write_json, write_raw, write_safetensors

from iisft.errors import InputError
from iisft.models.folder.checkpoint import checkpoint_findings, inspect_checkpoint
from iisft.models.folder.safetensors import Tensor


def codes(folder: Path) -> list[str]:
    return [finding.id for finding in checkpoint_findings(folder)]


def test_a_sound_folder_is_described_from_its_headers(model_folder: Path) -> None:
    found = inspect_checkpoint(model_folder)
    assert checkpoint_findings(model_folder) == []
    assert found.folder == model_folder
    assert (found.architecture, found.model_type) == ("Qwen2ForCausalLM", "qwen2")
    assert found.tensors == {
        "model.embed_tokens.weight": Tensor("bfloat16", (4, 8), "model.safetensors"),
        "model.norm.weight": Tensor("bfloat16", (8,), "model.safetensors"),
    }
    assert (found.dtypes, found.parameters) == ({"bfloat16": 40}, 40)
    assert (found.weight_files, found.code_files) == (("model.safetensors",), ())


def test_dtypes_are_counted_by_parameters_and_computed_buffers_are_not(model_folder: Path) -> None:
    write_safetensors(
        model_folder / "model.safetensors",
        {
            "small.weight": ("F32", [3]),
            "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [1000]),
            "big.weight": ("F16", [5, 5]),
            "scalar": ("F32", []),
        },
    )
    assert list(inspect_checkpoint(model_folder).dtypes.items()) == [
        ("float16", 25),
        ("float32", 4),
    ]


def test_shards_are_read_through_the_index(sharded_folder: Path) -> None:
    found = inspect_checkpoint(sharded_folder)
    assert found.weight_files == ("model-1.safetensors", "model-2.safetensors")
    assert found.tensors["b.weight"] == Tensor("bfloat16", (2, 3), "model-2.safetensors")


def test_a_single_file_wins_over_an_index_as_in_transformers(sharded_folder: Path) -> None:
    write_safetensors(sharded_folder / "model.safetensors", {"c.weight": ("F32", [1])})
    assert inspect_checkpoint(sharded_folder).weight_files == ("model.safetensors",)


def test_a_missing_folder_is_one_finding_with_its_fix(tmp_path: Path) -> None:
    (finding,) = checkpoint_findings(tmp_path / "no such")
    assert (finding.id, finding.where) == ("model-missing", str(tmp_path / "no such"))
    assert finding.fix == f"iisft download OWNER/NAME --to '{tmp_path / 'no such'}'"
    with pytest.raises(InputError) as caught:
        inspect_checkpoint(tmp_path / "no such")
    assert (caught.value.code, caught.value.exit_code) == ("model-missing", 3)


def test_several_faults_are_reported_together_and_inspect_raises_the_first(
    sharded_folder: Path,
) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model-1.safetensors"):
        (sharded_folder / name).unlink()
    (sharded_folder / "model-2.safetensors").write_bytes(b"\0" * 5)
    assert codes(sharded_folder) == [
        "model-no-config",
        "model-shard-missing",
        "model-shard-torn",
    ]
    with pytest.raises(InputError) as caught:
        inspect_checkpoint(sharded_folder)
    assert caught.value.code == "model-no-config"
    assert caught.value.where == str(sharded_folder / "config.json")


def test_a_model_without_tokenizer_is_found(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    (model_folder / "tokenizer_config.json").unlink()
    assert codes(model_folder) == ["model-no-tokenizer"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"architectures": ["Qwen2',
        "[]",
        "\udcff",
        '{"architectures": [], "model_type": "x"}',
        '{"architectures": ["XForCausalLM"]}',
        '{"architectures": ["owner/repo--evil.XForCausalLM"], "model_type": "x"}',
    ],
)
def test_a_broken_config_is_refused(model_folder: Path, text: str) -> None:
    (model_folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert codes(model_folder) == ["model-config-broken"]


def test_an_adapter_folder_says_what_it_is(model_folder: Path) -> None:
    (model_folder / "config.json").unlink()
    write_json(model_folder / "adapter_config.json", {})
    assert "adapter" in checkpoint_findings(model_folder)[0].message


def test_pickled_weights_alone_are_refused(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    assert codes(model_folder) == ["model-no-safetensors"]


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": {}},
        {"weight_map": {"a.weight": "../other/model.safetensors"}},
        {"weight_map": {"a.weight": ["model-1.safetensors"]}},
        {"weight_map": {"a.weight": "model-2.safetensors", "b.weight": "model-2.safetensors"}},
    ],
)
def test_an_index_that_lies_is_refused(sharded_folder: Path, index: Any) -> None:
    shutil.copy(sharded_folder / "model-1.safetensors", sharded_folder.parent / "model.safetensors")
    write_json(sharded_folder / "model.safetensors.index.json", index)
    assert codes(sharded_folder) == ["model-index-broken"]


def one(**changes: Any) -> dict[str, Any]:
    return {"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("header", "body", "claimed"),
    [
        (one(), 8, 10**12),  # longer than the file
        (one(), 8, 2**63),
        (one(), 7, None),  # cut short
        (one(), 9, None),  # bytes that no tensor owns
        (one(data_offsets=[0, 80]), 8, None),  # beyond the file
        (one(data_offsets=[8, 0]), 8, None),
        (one(data_offsets=[-8, 0]), 8, None),
        (one(data_offsets=[0]), 8, None),
        (one(shape=[3]), 8, None),  # size is not its shape
        (one(shape=[-1, -2]), 8, None),
        (one(shape=["2"]), 8, None),
        (one(dtype="F33"), 8, None),
        (one(dtype="BF16"), 8, None),
        ({**one(), "b.weight": one()["a.weight"]}, 8, None),  # two tensors on the same bytes
        ({"a.weight": 3}, 0, None),
        ([], 0, None),
        ("x", 0, 2),  # a header cut in its middle
    ],
)
def test_a_header_that_lies_is_refused(
    model_folder: Path, header: Any, body: int, claimed: int | None
) -> None:
    write_raw(model_folder / "model.safetensors", header, b"\0" * body, claimed)
    assert codes(model_folder) == ["model-shard-torn"]


def test_a_header_longer_than_any_honest_one_is_not_read(model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    write_raw(path, {}, b"", claimed=100_000_001)
    with path.open("r+b") as stream:
        stream.truncate(100_000_100)  # sparse: the claim fits into the file
    assert codes(model_folder) == ["model-shard-torn"]


def test_deeply_nested_json_is_a_finding_and_no_crash(model_folder: Path) -> None:
    text = b"[" * 100_000
    (model_folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert codes(model_folder) == ["model-shard-torn"]


def test_code_files_come_from_every_auto_map(
    model_folder: Path, change_config: Callable[..., None]
) -> None:
    change_config(
        auto_map={"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
    )
    write_json(
        model_folder / "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}},
    )
    write_json(
        model_folder / "processor_config.json", {"a": [{"auto_map": {"AutoProcessor": "o/r--p.P"}}]}
    )
    assert inspect_checkpoint(model_folder).code_files == (
        "configuration_x.py",
        "modeling_x.py",
        "o/r--p.py",
        "tokenization_x.py",
    )
