"""What an export will be, and how what was made compares with the adapter."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

from iisft.data.stage.staged import has_tools
from iisft.errors import EnvironmentFault, InputError
from iisft.inference import gguf, headroom
from iisft.inference.base_model import Source
from iisft.inference.headroom import Need
from iisft.llamafactory import chat_files, turns
from iisft.llamafactory.catalogue import catalogue
from iisft.llamafactory.chat_files import Chat
from iisft.llamafactory.templates import Template
from iisft.llamafactory.turns import Options
from iisft.models.view.support import DTYPES, stored_dtype
from iisft.runs.record.selection import ADAPTER, Chosen

MERGED, ADAPTER_ONLY, GGUF = "merged", "adapter", "gguf"
FORMATS = (MERGED, ADAPTER_ONLY, GGUF)
_TOKENIZER_BYTES = 64 * 2**20
PROBE_ROWS = 16
# How much of the adapter's effect merging may lose: rounding to bf16 costs a useful adapter a few
# percent at most.
_TOLERATED_SHARE = 0.1
_TOLERATED_NATS = 1e-3


@dataclass(frozen=True, slots=True)
class Check:
    """How an exported model compares with base model and adapter on answers to training rows.

    `tokens`: answer tokens compared. `agreement`: share with the same likeliest token. `divergence`
    and `effect`: mean KL divergence (nats) of the exported and of the base model from the adapter.
    `prompts` conversations were written by the exported chat template, `equal` of them to the very
    tokens of the training; `unlike` is a text that was not the training's.
    """

    tokens: int
    agreement: float
    divergence: float
    effect: float
    prompts: int = 0
    equal: int = 0
    unlike: str | None = None

    @property
    def sound(self) -> bool:
        """Whether merging changed little compared with the adapter. NaN is not sound."""
        return self.divergence <= max(_TOLERATED_SHARE * self.effect, _TOLERATED_NATS)

    @property
    def sentence(self) -> str:
        return (
            f"{self.agreement:.2%} of {self.tokens} answer tokens agree with the adapter; "
            f"exporting moved the distribution by {self.divergence:.2g} nats, the adapter by "
            f"{self.effect:.2g}"
        )

    @property
    def of_prompts(self) -> str:
        return f"{self.equal} of {self.prompts} prompts are the tokens of the training"


@dataclass(frozen=True)
class Export:
    """What will be made. `dtype`: torch's name for that of the merged weights; `chat`: the chat
    template that writes the prompts of the training.
    """

    source: Source
    chosen: Chosen
    target: Path
    dtype: str
    format: str
    quant: str
    converter: Path | None
    template: Template
    options: Options
    chat: Chat

    @property
    def stored(self) -> str:
        return stored_dtype(self.source.checkpoint)

    @property
    def need(self) -> Need:
        """Memory for merging: the weights on the CPU, in float32 if their dtype changes."""
        loaded = self.dtype if self.dtype == self.stored else "float32"
        return headroom.need(
            self.source.checkpoint, loaded, "float32", adapter_bytes=0, place="cpu"
        )

    @property
    def disk_bytes(self) -> int:
        parameters, beside = self.source.checkpoint.parameters, self.source.checkpoint.bytes_beside
        if self.format == ADAPTER_ONLY:
            assert self.chosen.adapter is not None
            return (self.chosen.adapter / ADAPTER).stat().st_size + _TOKENIZER_BYTES
        quantised = gguf.BYTES[self.quant] if self.format == GGUF else 0.0
        weights = int(parameters * (headroom.BYTES[self.dtype] + quantised))
        return weights + beside + _TOKENIZER_BYTES

    @functools.cached_property
    def tokens(self) -> dict[str, str]:
        """The names of the exported tokenizer's special tokens."""
        return chat_files.tokens_of(self.source.checkpoint.folder, self.template)


def plan(
    source: Source,
    chosen: Chosen,
    target: Path,
    dtype: str | None,
    format: str = MERGED,
    quant: str = "q8_0",
    converter: Path | None = None,
) -> Export:
    """What `export` will do, checked before anything is loaded.

    Raises:
        InputError: there is no adapter, the target exists, or the prompts of the training can't be
            written as a chat template.
        EnvironmentFault: the disk is too small, or there is no converter.
    """
    if chosen.adapter is None:
        raise InputError(
            "export-base", "the base model has no adapter to merge", fix="--checkpoint final"
        )
    _require_free_name(target)
    if format == GGUF:
        converter = gguf.converter(source.python, converter)
    arguments = source.record.train_yaml
    options = Options.of(arguments)
    template = turns.under(catalogue().template(str(arguments["template"])), options)
    folder = source.checkpoint.folder
    with_tools = any(
        has_tools(source.folder.dataset / f"{data.name}.jsonl") for data in source.record.data
    )
    export = Export(
        source,
        chosen,
        target.absolute(),
        DTYPES[dtype] if dtype else stored_dtype(source.checkpoint),
        format,
        quant,
        converter,
        template,
        options,
        chat_files.chat(folder, template, options, with_tools=with_tools),
    )
    _require_space(export)
    return export


def _require_free_name(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            "export-occupied",
            f"{target} exists already",
            where=str(target),
            fix="choose another -o, or remove it",
        )


def _require_space(export: Export) -> None:
    place = export.target.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < export.disk_bytes:
        text = (
            f"the exported model needs {export.disk_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} "
            "GiB are free"
        )
        raise EnvironmentFault(
            "disk-space",
            text,
            where=str(place),
            fix="free some space, or -o on another disk",
        )
