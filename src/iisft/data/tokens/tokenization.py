"""Counting and showing a row's tokens as the trainer will make them, from tokenizer.json alone,
without torch.
"""

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from iisft import files
from iisft.data.read.conversation import Conversation
from iisft.errors import InputError
from iisft.llamafactory import catalogue, chat_template, templates, turns
from iisft.llamafactory.templates import EOS, Piece, Special
from iisft.llamafactory.tools import Unrenderable
from iisft.llamafactory.turns import Options
from iisft.workspace import lfs_pointers, lfs_pull

Pairs = list[tuple[int, int]]
"""Tokens of question and answer, turn by turn."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# system prompts and what a template puts around turns come again and again
_REMEMBERED_CHARACTERS = 512
_REMEMBERED_TEXTS = 4096
_BATCH_CHARACTERS = 400_000  # an encoding keeps about 100 bytes per token


class Tokenization:
    """A model's tokenizer under one template, as LLaMA-Factory sets it up.

    `identity` names all that decides a row's tokens; two with the same identity make the same
    tokens.
    Source: Template.fix_special_tokens() in LLaMA-Factory 0.9.5, data/template.py.
    """

    def __init__(self, model: Path, template: str, extra: Mapping[str, Any]) -> None:
        """The tokenizer in the folder `model`; `extra` is a preset's `llamafactory:` section.

        Raises:
            InputError: LLaMA-Factory has no such template or refuses these arguments, an argument
                changes tokens in ways unknown here, or there is no tokenizer.json. That it is
                broken is told when it is first needed.
        """
        found = catalogue.catalogue()
        self.options = Options.of(extra)
        self.template = turns.under(found.template(template), self.options)
        turns.refuse(self.template, extra)
        if names := turns.unfollowed(extra):
            raise InputError(
                "tokens-uncounted",
                f"with {', '.join(names)} tokens can't be counted",
                where="llamafactory",
            )
        if not (file := model / "tokenizer.json").is_file():
            raise InputError(
                "tokenizer-missing",
                "the model has no tokenizer.json, by which tokens are counted",
                where=str(file),
                fix="take a release of the model that has one; --set data.overlong=allow trains "
                "without an account",
            )
        self._model = model
        self._remembered: dict[str, int] = {"": 0}
        self.identity = {"tokenizer": tokenizer_digest(model), "template": template} | {
            name: value
            for name in Options.__dataclass_fields__
            if (value := getattr(self.options, name)) != getattr(Options(), name)
        }
        if found is not catalogue.snapshot():
            self.identity["llamafactory"] = found.version

    @cached_property
    def _tokenizer(self) -> Any:
        """Loaded when something is really counted: a large vocabulary takes half a second.

        The stop words are made special, and the end token is replaced, as the template says.
        """
        tokenizer = _read_tokenizer(self._model)
        special = templates.special_tokens(self.template, self._names.get("eos_token"))
        tokenizer.add_special_tokens([*self._names.values(), *special])
        return tokenizer

    @cached_property
    def _names(self) -> dict[str, str]:
        return chat_template.token_names(self._model)

    @property
    def _eos(self) -> str:
        return templates.end_token(self.template, self._names.get("eos_token"))

    @cached_property
    def tokens_after_end(self) -> int:
        """Tokens of an answer behind its end token."""
        return len(self.encode(templates.after_end(self.template)))

    @property
    def end_id(self) -> int | None:
        """The token that templates with one end for the whole row put there."""
        return self._special(EOS)

    @property
    def model(self) -> Path:
        """The folder of the tokenizer."""
        return self._model

    def encode(self, text: str) -> list[int]:
        """Token ids of one text.

        Special tokens written in it become special tokens, as in the trainer.
        """
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each token in `text`, in characters."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets) if text else []

    def ids(self, conversation: Conversation) -> list[tuple[list[int], list[int]]]:
        """Token ids of each question and answer, nothing cut."""
        return [
            (self.ids_of(question), self.ids_of(answer))
            for question, answer in self._render(conversation)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def lengths(self, conversations: Sequence[Conversation]) -> list[Pairs]:
        """Tokens of each question and answer of each row, nothing cut.

        No pairs for a row that LLaMA-Factory can't render under this template.
        """
        rendered = [self._rendered(conversation) for conversation in conversations]
        fresh = dict.fromkeys(
            piece
            for pairs in rendered
            for pair in pairs
            for side in pair
            for piece in side
            if isinstance(piece, str) and piece not in self._remembered
        )
        counted = dict(zip(fresh, self._counts(list(fresh)), strict=True))
        result = [
            [
                (self._length(question, counted), self._length(answer, counted))
                for question, answer in pairs
            ]
            for pairs in rendered
        ]
        for text, count in counted.items():
            if len(text) <= _REMEMBERED_CHARACTERS and len(self._remembered) < _REMEMBERED_TEXTS:
                self._remembered[text] = count
        return result

    def unrenderable(self, conversation: Conversation) -> str:
        """Why LLaMA-Factory would end the training at this row; "" when it would not."""
        try:
            self._render(conversation)
        except Unrenderable as error:
            return str(error)
        return ""

    def _rendered(self, conversation: Conversation) -> turns.Pairs:
        try:
            return self._render(conversation)
        except Unrenderable:
            return []

    def _render(self, conversation: Conversation) -> turns.Pairs:
        said = [(message.role, message.content) for message in conversation.messages]
        return turns.render(
            self.template, self.options, said, conversation.system, conversation.tools
        )

    def _counts(self, texts: list[str]) -> Iterator[int]:
        for batch in _batches(texts):
            for encoding in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield len(encoding)

    def _length(self, pieces: list[Piece], counted: Mapping[str, int]) -> int:
        total = 0
        for piece in pieces:
            if isinstance(piece, str):
                total += counted[piece] if piece in counted else self._remembered[piece]
            else:
                total += self._special(piece) is not None
        return total

    def ids_of(self, pieces: list[Piece]) -> list[int]:
        """Token ids of the pieces of one question or answer."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, str):
                ids += self.encode(piece)
            elif (special := self._special(piece)) is not None:
                ids.append(special)
        return ids

    def _special(self, piece: Special) -> int | None:
        """The id, -1 for a token by name that the tokenizer lacks (it still takes a place), None
        for no bos or eos.
        """
        if piece.kind == "token":
            found = self._tokenizer.token_to_id(piece.name)
            return -1 if found is None else int(found)
        name = self._eos if piece == EOS else self._names.get("bos_token")
        return self._tokenizer.token_to_id(name) if name else None


_LARGEST_TOKENIZER = 512 * 2**20


def tokenizer_digest(model: Path) -> str:
    """sha256 over the names and bytes of a model folder's tokenizer files."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        try:
            content = files.read_bytes(model / name, _LARGEST_TOKENIZER)
        except OSError:
            continue
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _read_tokenizer(model: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers

    file = model / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(files.read_bytes(file, _LARGEST_TOKENIZER))
        known = set(tokenizer.get_added_tokens_decoder())
        for number, about in sorted(
            (_config(model).get("added_tokens_decoder") or {}).items(), key=lambda i: int(i[0])
        ):
            if int(number) not in known:
                flags = {
                    k: about[k]
                    for k in ("single_word", "lstrip", "rstrip", "normalized", "special")
                    if k in about
                }
                tokenizer.add_tokens([AddedToken(about["content"], **flags)])
    except Exception as error:  # the library raises bare Exception for every broken file
        raise InputError(
            "tokenizer-broken",
            f"tokenizer.json can't be read: {error}",
            where=str(file),
            fix=lfs_pull(model)
            if lfs_pointers(model)
            else f"iisft download --verify {shlex.quote(str(model))} names the command that "
            "fixes it",
        ) from error
    if _is_rebuilt_llama(model):
        words = _config(model)
        prefix = words.get("add_prefix_space")
        scheme = "never" if prefix is False else "always" if words.get("legacy") else "first"
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme=scheme, split=False
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _is_rebuilt_llama(model: Path) -> bool:
    """Whether transformers takes only vocabulary and merges of tokenizer.json and makes the rest
    itself.

    Its other classes that do so (Qwen2Tokenizer, GemmaTokenizer) make what the published files
    have; this one does not.
    Source: LlamaTokenizer.__init__ in transformers 5.5, models/llama/tokenization_llama.py.
    """
    named = str(_config(model).get("tokenizer_class", "")).removesuffix("Fast")
    kind = (files.read_json_object(model / "config.json") or {}).get("model_type")
    return named == "LlamaTokenizer" and kind == "llama"


def _config(model: Path) -> dict[str, Any]:
    return files.read_json_object(model / "tokenizer_config.json") or {}
