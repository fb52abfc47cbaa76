"""Model folders made by hand: JSON files, and safetensors with real headers."""

import json
import random
import struct
from pathlib import Path
from typing import Any

BITS = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I32": 32}

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 8,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "torch_dtype": "bfloat16",
}


REPO = "Qwen/Tiny-Instruct"
SHARD = "model-00001-of-00002.safetensors"
OTHER_SHARD = "model-00002-of-00002.safetensors"


# Qwen2.5's, without tools
CHAT_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen, created by Alibaba "
    "Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = BITS[dtype] // 8
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    write_raw(path, header, b"\0" * position)


def write_raw(path: Path, header: Any, body: bytes, claimed: int | None = None) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + body)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def repository(shard_bytes: int = 400_000) -> dict[str, bytes]:
    """What a hub has of a small model: two shards of random bytes, duplicates that nobody needs,
    papers.
    """
    shards = {f"model-0000{i}-of-00002.safetensors": f"model.layers.{i}.weight" for i in (1, 2)}
    index = {"metadata": {}, "weight_map": {tensor: file for file, tensor in shards.items()}}
    texts = {
        "config.json": json.dumps(CONFIG),
        "generation_config.json": "{}",
        "model.safetensors.index.json": json.dumps(index),
        "tokenizer.json": json.dumps({"version": "1.0", "model": {"vocab": {"龙": 0}}}),
        "tokenizer_config.json": json.dumps({"chat_template": CHAT_TEMPLATE}),
        "README.md": "---\nlicense: apache-2.0\n---\n# Tiny 小模型\n",
        ".gitattributes": "*.safetensors lfs\n",
        "empty.txt": "",
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {name: shard(tensor, shard_bytes, seed=name) for name, tensor in shards.items()}
    for duplicate in (
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "tiny-q4.gguf",
        "model.fp16.safetensors",
    ):
        files[duplicate] = b"\x80" * 2000
    return files


def shard(tensor: str, size: int, *, seed: str) -> bytes:
    """A safetensors file of `size` random bytes after its header."""
    header = json.dumps(
        {tensor: {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that is not hidden."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: path.read_bytes() for name, path in sorted(named.items()) if not name.startswith(".")
    }


NEEDED = sorted(
    {*repository()}
    - {
        ".gitattributes",
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "tiny-q4.gguf",
        "model.fp16.safetensors",
    }
)


def needed(shard_bytes: int = 400_000) -> dict[str, bytes]:
    """What training needs of repository()."""
    return {name: content for name, content in repository(shard_bytes).items() if name in NEEDED}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
