"""A LoRA adapter as peft writes it: which matrices it holds, and whether training can go on with
them.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import InputError
from iisft.models.folder.safetensors import Tensor, read_header, read_values

WEIGHTS = "adapter_model.safetensors"  # peft's SAFETENSORS_WEIGHTS_NAME
CONFIG = "adapter_config.json"
_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."  # of peft's names, before those of the model
_A, _B = ".lora_A.weight", ".lora_B.weight"
_LARGEST = 10**9
_LONGEST_NAME = 500
_LONGEST = 60  # characters shown of what a configuration says

# What every adapter_config.json may say besides rank, alpha and modules: defaults of peft 0.18's
# LoraConfig, and what decides nothing once the matrices are there. Anything else makes another kind
# of adapter (DoRA, ranks by layer, whole modules) unless it is empty.
_HARMLESS: dict[str, Any] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "use_rslora": (True, False),
}
_DECIDES_NOTHING = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "init_lora_weights",
    "auto_mapping",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "exclude_modules",
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that training can go on with.

    `shapes`: input and output width by the module's name in the model. `digest`: of the matrices,
    as `digest_of` has it; `sha256`: of the file.
    """

    folder: Path
    rank: int
    alpha: float
    rslora: bool
    base: str
    shapes: Mapping[str, tuple[int, int]]
    digest: str
    sha256: str

    @property
    def modules(self) -> dict[str, int]:
        """How many modules of each name have matrices."""
        return dict(sorted(Counter(name.rpartition(".")[2] for name in self.shapes).items()))

    @property
    def parameters(self) -> int:
        return sum(self.rank * sum(shape) for shape in self.shapes.values())

    def config(self, dropout: float) -> dict[str, Any]:
        """An adapter_config.json that says no more than what was checked."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": dropout,
            "target_modules": list(self.modules),
            "bias": "none",
            "use_rslora": self.rslora,
        }


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        InputError: there is none, it is torn, it is pickled, or of a kind that iisft doesn't train.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise _without_weights(folder)
    try:
        shapes, rank = _shapes(read_header(weights))
        digest = digest_of(weights)
    except (OSError, ValueError) as error:
        raise _torn(weights, f"the adapter can't be read: {error}") from error
    config = files.read_json_object(folder / CONFIG)
    if config is None:
        raise _torn(folder / CONFIG, "the adapter's configuration is missing or torn")
    if other := list(_other_kind(config)):
        raise _unsupported(folder, ", ".join(other[:5]))
    if config.get("r") != rank or type(config.get("r")) is not int:
        text = f"the configuration says rank {config.get('r')!r}, the matrices have {rank}"
        raise _torn(folder / CONFIG, text)
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not 0 < alpha < _LARGEST:
        raise _torn(folder / CONFIG, f"the configuration's lora_alpha is {alpha!r}")
    if alpha != int(alpha):
        raise _unsupported(folder, f"lora_alpha {alpha!r} is not a whole number")
    base = config.get("base_model_name_or_path")
    return Adapter(
        folder=folder,
        rank=rank,
        alpha=alpha,
        rslora=bool(config.get("use_rslora")),
        base=base[:_LONGEST_NAME] if isinstance(base, str) else "",
        shapes=shapes,
        digest=digest,
        sha256=files.sha256_of(weights),
    )


def digest_of(weights: Path) -> str:
    """Of the LoRA matrices as float32 under their names in the model: what the trainer says of
    those that it has loaded (child/witness_iisft.py, loaded_adapter).

    Raises:
        OSError, ValueError: the file can't be read, or holds numbers of another kind.
    """
    digest = hashlib.sha256()
    for name, tensor, values in _in_order(weights):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(_as_float32(tensor.dtype, values))
    return digest.hexdigest()[:16]


def _in_order(weights: Path) -> Iterator[tuple[str, Tensor, bytes]]:
    """As sorted by the model's names, which begin behind the same prefix."""
    for name, tensor, values in read_values(weights):
        if ".lora_A." in name or ".lora_B." in name:
            yield name.removeprefix(_PREFIX), tensor, values


def _as_float32(dtype: str, values: bytes) -> bytes:
    if dtype == "float32":
        return values
    if dtype == "bfloat16":  # the upper half of a float32
        wide = bytearray(2 * len(values))
        wide[2::4], wide[3::4] = values[::2], values[1::2]
        return bytes(wide)
    if dtype == "float16":
        numbers = struct.unpack(f"<{len(values) // 2}e", values)
        return struct.pack(f"<{len(numbers)}f", *numbers)
    raise ValueError(f"its matrices are of type {dtype}")


def _shapes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, int]], int]:
    """Widths of each adapted module, and the rank that all of them have.

    Raises:
        ValueError: something else is among them, or a matrix lacks its other half.
    """
    modules = {name.removesuffix(_A).removesuffix(_B) for name in tensors}  # as peft names them
    strange = [
        name for name in tensors if not (name.startswith(_PREFIX) and name.endswith((_A, _B)))
    ]
    if strange:
        raise ValueError(f"it holds {strange[0]} besides the matrices of LoRA")
    shapes, ranks = {}, set()
    for module in sorted(modules):
        pair = tensors.get(module + _A), tensors.get(module + _B)
        if pair[0] is None or pair[1] is None:
            raise ValueError(f"{module} has one matrix of two")
        down, up = pair[0].shape, pair[1].shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise ValueError(f"the matrices of {module} do not fit together")
        ranks.add(down[0])
        shapes[module.removeprefix(_PREFIX)] = (down[1], up[0])
    if len(ranks) != 1 or not 0 < min(ranks) < _LARGEST:
        raise ValueError("its matrices have no rank in common" if ranks else "it holds no matrix")
    return shapes, ranks.pop()


def _other_kind(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in sorted(config.items()):
        if name in _HARMLESS:
            known = any(value is one or value == one for one in _HARMLESS[name])
        else:
            known = name in _DECIDES_NOTHING or not value
        if not known:
            yield f"{name[:_LONGEST]} {str(value)[:_LONGEST]}"


def _without_weights(folder: Path) -> InputError:
    if (folder / _PICKLED).is_file():
        return InputError(
            "start-pickle",
            f"{_PICKLED} is a pickle, which can run code when it is loaded",
            where=str(folder),
            fix=f"if you trust it, save it once with peft: save_pretrained writes {WEIGHTS}",
        )
    text = "there is no adapter" if folder.is_dir() else "there is no such folder"
    fix = f"a folder with {WEIGHTS} and {CONFIG}, or a run of iisft runs"
    return InputError("start-missing", text, where=str(folder), fix=fix)


def _unsupported(folder: Path, what: str) -> InputError:
    return InputError(
        "start-kind",
        f"the adapter is of a kind that iisft does not go on with: {what}",
        where=str(folder / CONFIG),
        fix="merge it into its model (llamafactory-cli export), then that folder as model.id",
    )


def _torn(place: Path, text: str) -> InputError:
    return InputError("start-torn", text, where=str(place), fix="take a whole copy of the adapter")
