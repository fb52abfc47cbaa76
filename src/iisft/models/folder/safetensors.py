"""A safetensors header: names, dtypes and shapes, checked against the size of the file."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from iisft import files, json_values

_LONGEST_HEADER = 100_000_000  # MAX_HEADER_SIZE of the safetensors library

# name in the header -> (torch's name, bits), as the safetensors format defines them
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "F32": ("float32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}


_BITS = dict(DTYPES.values())


class Tensor(NamedTuple):
    """One tensor as a safetensors header describes it; `dtype` is torch's name."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.parameters * _BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        OSError: the file can't be read.
        ValueError: the header or the file's length breaks the safetensors format.
    """
    return {name: tensor for name, (tensor, _) in _read(path).items()}


def read_values(path: Path) -> Iterator[tuple[str, Tensor, bytes]]:
    """Each tensor of one file with its bytes, in the order of their names.

    Raises:
        OSError, ValueError: as read_header.
    """
    found = _read(path)
    start = path.stat().st_size - max((end for _, (_, end) in found.values()), default=0)
    with files.open_regular(path) as stream:
        for name, (tensor, (begin, end)) in sorted(found.items()):
            stream.seek(start + begin)
            values = stream.read(end - begin)
            if len(values) != end - begin:
                raise ValueError("it was cut while it was read")
            yield name, tensor, values


def _read(path: Path) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    size = path.stat().st_size
    with files.open_regular(path) as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ValueError("it ends before its header")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"its header claims {length} bytes of a file of {size}")
        header = json_values.parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return _tensors(header, size - 8 - length, path.name)


def _tensors(
    header: dict[str, Any], available: int, file: str
) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    tensors = {
        name: _tensor(name, entry, file) for name, entry in header.items() if name != "__metadata__"
    }
    position = 0
    for begin, end in sorted(span for _, span in tensors.values()):
        if begin != position:
            raise ValueError("its tensors overlap or leave gaps")
        position = end
    if position != available:
        raise ValueError(f"its tensors need {position} bytes, the file holds {available}")
    return tensors


def _tensor(name: str, entry: Any, file: str) -> tuple[Tensor, tuple[int, int]]:
    try:
        dtype, bits = DTYPES[entry["dtype"]]
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(
            f"its header describes tensor {name} in a way that no loader understands"
        ) from None
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(
            f"its header gives tensor {name} a shape or offset that is not a whole number"
        )
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise ValueError(
            f"its header gives tensor {name} {end - begin} bytes, which does not match its shape "
            f"{list(shape)}"
        )
    return Tensor(dtype, shape, file), (begin, end)
