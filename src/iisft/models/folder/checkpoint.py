"""What a model folder holds, read from JSON files and safetensors headers: no weight is loaded."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from iisft import files, json_values
from iisft.errors import Finding, InputError
from iisft.files import read_json_object
from iisft.json_values import text_of
from iisft.llamafactory.interpreter import training_interpreter
from iisft.models.folder.manifest import quick_findings, repair_command
from iisft.models.folder.safetensors import Tensor, read_header
from iisft.models.folder.text_part import NAMES, text_config, text_tensors, with_head
from iisft.workspace import lfs_pointers

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# They never hold an auto_map, and they are the only big JSON files of a model.
PURE_DATA_JSON = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", INDEX_FILE})

# what the families of mixtures call the number of their experts
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# each tensor by itself: safetensors refuses those that share their bytes, as tied ones do
_CONVERT = (
    "import sys, torch, safetensors.torch as s; w = {}; "
    '[w.update(torch.load(f, "cpu", weights_only=True)) for f in sys.argv[2:]]; '
    "s.save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in w.items()}, "
    'sys.argv[1], {"format": "pt"})'
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete model folder.

    `dtypes` counts parameters, `code_files` are the files that its auto_maps would execute. Of a
    model with a vision tower it is the text model alone, under the names that it has there;
    `published` is config.json as it stands.
    """

    folder: Path
    config: dict[str, Any]
    architecture: str
    model_type: str
    tensors: dict[str, Tensor]
    dtypes: dict[str, int]
    weight_files: tuple[str, ...]
    code_files: tuple[str, ...]
    published: dict[str, Any]

    @property
    def part(self) -> dict[str, Any] | None:
        """What child/text_part_weights.py must know of a text model inside a bigger one."""
        if not self.is_part:
            return None
        files = list(self.weight_files)
        return {
            "class": self.architecture, "config": self.config, "names": NAMES, "files": files,
        }  # fmt: skip

    @property
    def bytes_beside(self) -> int:
        """Of the weight files, what is not this text model's: a tower's tensors."""
        if not self.is_part:
            return 0
        size = sum((self.folder / name).stat().st_size for name in self.weight_files)
        return max(0, size - sum(tensor.bytes for tensor in self.tensors.values()))

    @property
    def is_part(self) -> bool:
        """Whether the folder holds more than this text model."""
        return self.published is not self.config

    @property
    def parameters(self) -> int:
        return sum(self.dtypes.values())


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Read a model folder's configuration and safetensors headers.

    Raises:
        InputError: the first of checkpoint_findings.
    """
    survey = _Survey(folder)
    if survey.findings:
        raise InputError.of(survey.findings[0])
    config, tensors = survey.config, survey.tensors
    if (text := text_config(config)) is not None:
        tensors = text_tensors(tensors)
        config = with_head(text, tensors)
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if not is_computed_buffer(name):
            counts[tensor.dtype] += tensor.parameters
    return Checkpoint(
        folder=folder.absolute(),
        config=config,
        architecture=config["architectures"][0],
        model_type=config["model_type"],
        tensors=tensors,
        dtypes=dict(counts.most_common()),
        weight_files=survey.weight_files,
        code_files=code_files(folder),
        published=survey.config,
    )


def checkpoint_findings(folder: Path) -> list[Finding]:
    """Everything that keeps a model folder from being loaded; empty for a sound one.

    Only names, sizes, times and headers are read: a bit flipped inside a tensor is found by
    `iisft download --verify`.
    """
    survey = _Survey(folder)
    if survey.config and not any(
        (folder / name).is_file() for name in (*TOKENIZER_FILES, "tokenizer_config.json")
    ):
        survey.report("model-no-tokenizer", "the model folder has no tokenizer", folder)
    told = {finding.where for finding in survey.findings}
    return survey.findings + [
        finding for finding in quick_findings(folder) if finding.where not in told
    ]


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a mixture of experts."""
    return any(config.get(key) for key in _EXPERT_COUNTS)


def is_computed_buffer(name: str) -> bool:
    """Whether old Llama checkpoints store this tensor although every loader computes it."""
    return name.endswith("rotary_emb.inv_freq")


def auto_maps(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON value that has an auto_map."""
    if isinstance(value, dict):
        if "auto_map" in value:
            yield value
        for child in value.values():
            yield from auto_maps(child)
    elif isinstance(value, list):
        for child in value:
            yield from auto_maps(child)


def json_files(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and content of each readable JSON file that could hold an auto_map, sorted by name."""
    for path in sorted(folder.glob("*.json")):
        if path.name not in PURE_DATA_JSON and path.is_file():
            with contextlib.suppress(OSError, ValueError):
                yield path.name, json_values.parse_json(files.read_bytes(path))


def code_files(folder: Path) -> tuple[str, ...]:
    """The Python files that a folder's auto_maps name.

    `owner/name--file.py` names a file of another repository.
    """
    found: set[str] = set()
    for _, content in json_files(folder):
        for holder in auto_maps(content):
            found.update(
                f"{reference.rpartition('.')[0]}.py"
                for reference in _references(holder["auto_map"])
            )
    return tuple(sorted(found))


def _references(auto_map: Any) -> Iterator[str]:
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, dict | list):
        for child in auto_map.values() if isinstance(auto_map, dict) else auto_map:
            yield from _references(child)


def _converting(pickles: list[Path]) -> str:
    """The command that writes pickled weights as safetensors; it runs no code of theirs."""
    target = pickles[0].with_name(SINGLE_FILE)
    words = [str(training_interpreter()), "-c", _CONVERT, str(target), *map(str, pickles)]
    return shlex.join(words)


class _Survey:
    """One pass over a folder that goes on after a fault, so that all are reported together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings: list[Finding] = []
        self.config: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.weight_files: tuple[str, ...] = ()
        if not folder.is_dir():
            self.report("model-missing", f"there is no model folder {folder}", folder)
            return
        pointers = lfs_pointers(folder)
        if pointers:
            kind = "is a Git LFS pointer" if len(pointers) == 1 else "are Git LFS pointers"
            text = f"{', '.join(pointers)} {kind}, not the file itself"
            self.report("model-lfs-pointer", text, folder)
        self._read_config()
        self._read_weights()
        of_pointers = {str(folder / name) for name in pointers}
        self.findings = [one for one in self.findings if one.where not in of_pointers]

    def report(self, code: str, message: str, where: Path, fix: str = "") -> None:
        self.findings.append(
            Finding(code, message, where=str(where), fix=fix or repair_command(self.folder))
        )

    def _read_config(self) -> None:
        path = self.folder / "config.json"
        if not path.is_file():
            adapter = (self.folder / "adapter_config.json").is_file()
            hint = ": this is an adapter, name its base model instead" if adapter else ""
            self.report("model-no-config", f"the model folder has no config.json{hint}", path)
            return
        config = read_json_object(path)
        if config is None:
            self.report("model-config-broken", "config.json is torn or no JSON object", path)
            return
        # the name becomes part of an auto_map, where `--` or a dot would load other code
        named = text_of(config, "architectures").isidentifier()
        if (
            not named
            or not isinstance(config["architectures"], list)
            or not isinstance(config.get("model_type"), str)
        ):
            self.report(
                "model-config-broken", "config.json has no valid architecture and model_type", path
            )
            return
        self.config = config

    def _read_weights(self) -> None:
        index = self.folder / INDEX_FILE
        if (
            self.folder / SINGLE_FILE
        ).is_file():  # preferred to an index (transformers, modeling_utils.py)
            self.weight_files = (SINGLE_FILE,)
            self._read_shard(SINGLE_FILE)
        elif index.is_file():
            self._read_shards(index)
        elif pickles := sorted(path for path in self.folder.glob("*.bin") if path.is_file()):
            text = f"the weights are pickles ({pickles[0].name}), which could run code"
            self.report("model-no-safetensors", text, self.folder, _converting(pickles))
        else:
            self.report(
                "model-no-safetensors",
                f"there is neither {SINGLE_FILE} nor {INDEX_FILE}",
                self.folder,
            )

    def _read_shards(self, index: Path) -> None:
        weight_map = (read_json_object(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            self.report("model-index-broken", f"{INDEX_FILE} is torn or has no weight_map", index)
            return
        names = list(weight_map.values())
        if not all(isinstance(name, str) and PurePosixPath(name).name == name for name in names):
            self.report(
                "model-index-broken", f"{INDEX_FILE} names a file outside the model folder", index
            )
            return
        self.weight_files = tuple(sorted(set(names)))
        sound = [self._read_shard(name) for name in self.weight_files]
        if all(sound):
            for tensor, name in weight_map.items():
                if tensor not in self.tensors or self.tensors[tensor].file != name:
                    self.report(
                        "model-index-broken",
                        f"{INDEX_FILE} says {tensor} is in {name}, but it is not",
                        index,
                    )
                    return

    def _read_shard(self, name: str) -> bool:
        path = self.folder / name
        if not path.is_file():
            self.report("model-shard-missing", f"{name} is missing", path)
            return False
        try:
            self.tensors.update(read_header(path))
        except (OSError, ValueError, RecursionError) as error:
            self.report("model-shard-torn", f"{name} can't be loaded: {error}", path)
            return False
        return True
