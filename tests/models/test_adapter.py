"""An adapter's files: what is read of them, and what training does not go on with."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from iisft.errors import InputError
from iisft.models.folder.adapter import digest_of, read_adapter

LAYER = "model.layers.0.self_attn.q_proj"
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj"],
    "bias": "none",
    "base_model_name_or_path": "Qwen/Qwen2.5-7B",
    "inference_mode": True,
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "peft_version": "0.18.1",
    "rank_pattern": {},
    "modules_to_save": None,
    "use_dora": False,
}
NUMBERS = [0.5, -2.0, 1.0, 0.25, 3.0, -0.125]  # exact in every width


def write_weights(file: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, body = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        span = [len(body), len(body) + len(values)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        body += values
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def packed(dtype: str, numbers: list[float]) -> bytes:
    if dtype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    return struct.pack(f"<{len(numbers)}{'e' if dtype == 'F16' else 'f'}", *numbers)


def write_adapter(folder: Path, dtype: str = "F32", **config: Any) -> Path:
    """Rank 2 on one layer of 3 inputs and 4 outputs; the second matrix stands first in the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    write_weights(
        folder / "adapter_model.safetensors",
        {
            f"base_model.model.{LAYER}.lora_B.weight": (dtype, [4, 2], packed(dtype, [1.5] * 8)),
            f"base_model.model.{LAYER}.lora_A.weight": (dtype, [2, 3], packed(dtype, NUMBERS)),
        },
    )
    return folder


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_an_adapter_has_its_numbers_whatever_their_width(dtype: str, tmp_path: Path) -> None:
    found = read_adapter(write_adapter(tmp_path / "适配 器", dtype, lora_alpha=4.0))
    assert (found.rank, found.alpha, found.rslora, found.base) == (2, 4, False, "Qwen/Qwen2.5-7B")
    assert (found.shapes, found.modules, found.parameters) == ({LAYER: (3, 4)}, {"q_proj": 1}, 14)
    assert found.digest == digest_of(
        write_adapter(tmp_path / "float32") / "adapter_model.safetensors"
    )
    assert found.config(0.1) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj"],
        "bias": "none",
        "use_rslora": False,
    }


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ({"use_dora": True}, "start-kind", "use_dora True"),
        ({"rank_pattern": {"q_proj": 4}}, "start-kind", "rank_pattern {'q_proj': 4}"),
        ({"modules_to_save": ["lm_head"]}, "start-kind", "modules_to_save ['lm_head']"),
        ({"bias": "all"}, "start-kind", "bias all"),
        ({"peft_type": "LOHA"}, "start-kind", "peft_type LOHA"),
        ({"something_new": 1}, "start-kind", "something_new 1"),
        ({"r": 8}, "start-torn", "says rank 8, the matrices have 2"),
        ({"r": True}, "start-torn", "says rank True"),
        ({"lora_alpha": None}, "start-torn", "lora_alpha is None"),
        ({"lora_alpha": 1e999}, "start-torn", "lora_alpha is"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(
    config: dict[str, Any], code: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        read_adapter(write_adapter(tmp_path / "a", **config))
    assert (error.value.code, said in error.value.message) == (code, True), error.value


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"r": 2', b"[" * 100_000, b"\xff\xfe"])
def test_a_torn_configuration_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_adapter(folder)
    assert error.value.code == "start-torn"


F32 = ("F32", [2, 2], packed("F32", [1.0] * 4))
PEFT = "base_model.model.model.q_proj"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "it holds no matrix"),
        ({f"{PEFT}.lora_A.weight": F32}, "q_proj has one matrix of two"),
        ({"model.q_proj.lora_A.weight": F32}, "besides the matrices of LoRA"),
        ({"base_model.model.lm_head.weight": F32}, "lm_head.weight besides the matrices of LoRA"),
        (
            {
                f"{PEFT}.lora_A.weight": F32,
                f"{PEFT}.lora_B.weight": ("F32", [2, 1], packed("F32", [1.0, 2.0])),
            },
            "do not fit together",
        ),
        (
            {
                f"{PEFT}.lora_A.weight": ("I32", [2, 2], bytes(16)),
                f"{PEFT}.lora_B.weight": F32,
            },
            "of type int32",
        ),
    ],
)
def test_other_tensors_than_those_of_lora_are_refused(
    tensors: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a")
    write_weights(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(InputError) as error:
        read_adapter(folder)
    assert (error.value.code, said in error.value.message) == ("start-torn", True), error.value


def test_a_pickle_is_never_loaded_and_a_cut_file_is_said(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    with pytest.raises(InputError) as error:
        read_adapter(folder)
    assert error.value.code == "start-torn"
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(InputError) as error:
        read_adapter(folder)
    assert error.value.code == "start-pickle"
    with pytest.raises(InputError) as error:
        read_adapter(tmp_path / "nowhere")
    assert (error.value.code, error.value.message) == ("start-missing", "there is no such folder")
