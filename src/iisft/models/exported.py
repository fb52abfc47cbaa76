"""The small files of an exported folder, as tools of today and of transformers 4 read them.

The base model's published files stay wherever they still hold; what the training changed is written
into them. transformers 5 itself would write a tokenizer_config.json that transformers 4, and with
it older vLLM and llama.cpp, can't load (extra_special_tokens as a list, TokenizersBackend).
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files
from iisft.models.folder.checkpoint import Checkpoint, checkpoint_findings, inspect_checkpoint

_VOCABULARY_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
_TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", *_VOCABULARY_FILES)
# the class that reads tokenizer.json as it stands, in transformers 4 and 5
_PLAIN_CLASS = "PreTrainedTokenizerFast"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
_BESIDE_SCALING = ("rope_theta", "partial_rotary_factor")
_OLDER_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The tokenizer as the training left it (child/merge_adapter.py)."""

    published: bool
    size: int
    eos: str
    pad: str | None
    pad_id: int | None
    stop_ids: list[int]
    adds_bos: bool
    added: dict[str, Any]


def config(
    original: Checkpoint, dtype: str, *, rows: int | None = None, tied: bool | None = None
) -> dict[str, Any]:
    """config.json: the base model's with the dtype, the embedding and the ties of the merged."""
    changed: dict[str, Any] = {"dtype": dtype, "torch_dtype": dtype}
    if rows is not None and original.config.get("vocab_size", rows) != rows:
        changed["vocab_size"] = rows
    if tied is False and original.config.get("tie_word_embeddings", True):
        changed["tie_word_embeddings"] = False
    whole = original.published | changed
    if original.is_part and "text_config" in whole:
        text = whole["text_config"] | changed
        return whole | {"text_config": text | _older_rope(text)}
    return whole | _older_rope(whole)


def _older_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding under the names of transformers 4, where they are missing.

    It passes over the rope_parameters that transformers 5 writes and takes its defaults without a
    word: another model. Both read both, but for a kind that only 5 knows (Gemma 4's).
    """
    given = config.get("rope_parameters")
    if not isinstance(given, dict):
        return {}
    by_layer = {kind: one for kind, one in given.items() if isinstance(one, dict)}
    own = by_layer.get("full_attention", {}) if by_layer else given
    if own.get("rope_type", "default") not in _OLDER_ROPES:
        return {}
    scaling = {key: one for key, one in own.items() if key not in _BESIDE_SCALING}
    older = {key: own[key] for key in _BESIDE_SCALING if key in own}
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    if "rope_theta" in by_layer.get("sliding_attention", {}):
        older["rope_local_base_freq"] = by_layer["sliding_attention"]["rope_theta"]  # Gemma 3
    return {key: one for key, one in older.items() if config.get(key) is None}


def generation_config(folder: Path, facts: TokenizerFacts) -> dict[str, Any]:
    """The base model's generation_config.json, which also stops where the training ended answers.

    Sampling settings without do_sample are invalid for transformers 5; who set them wanted to
    sample.
    """
    published = files.read_json_object(folder / "generation_config.json") or {}
    ends = published.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else []
    found = published | {"eos_token_id": list(dict.fromkeys([*facts.stop_ids, *ends]))}
    if found.get("pad_token_id") is None and facts.pad_id is not None:
        found["pad_token_id"] = facts.pad_id
    if not found.get("do_sample") and any(found.get(name) is not None for name in _SAMPLING):
        found["do_sample"] = True
    return found


def samples(generation: Mapping[str, Any]) -> str:
    """The sampling settings that a folder ships, for people; "" when it is greedy."""
    if not generation.get("do_sample"):
        return ""
    names = (*_SAMPLING, "repetition_penalty")
    given = [f"{name} {generation[name]}" for name in names if generation.get(name) is not None]
    return ", ".join(given) or "do_sample"


def tokenizer_config(folder: Path, facts: TokenizerFacts, chat_template: str) -> dict[str, Any]:
    """tokenizer_config.json in the form that every transformers reads."""
    found = files.read_json_object(folder / "tokenizer_config.json") or {}
    for name in ("backend", "is_local"):
        found.pop(name, None)
    extra = found.get("extra_special_tokens")
    if isinstance(extra, list):
        del found["extra_special_tokens"]
        found["additional_special_tokens"] = extra
    if found.get("tokenizer_class") in (None, "TokenizersBackend") or not facts.published:
        found["tokenizer_class"] = _PLAIN_CLASS
    if not facts.published:
        found["added_tokens_decoder"] = facts.added
        special = [about["content"] for about in facts.added.values() if about.get("special")]
        named = {_content(found.get(name)) for name in found if name.endswith("_token")}
        found["additional_special_tokens"] = [
            token for token in special if token not in named | {facts.eos, facts.pad}
        ]
    found["eos_token"] = facts.eos
    if _content(found.get("pad_token")) is None and facts.pad:
        found["pad_token"] = facts.pad
    found["chat_template"] = chat_template
    return found


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def write_tokenizer(original: Path, target: Path, facts: TokenizerFacts, chat: str) -> None:
    """The tokenizer's files; where the published ones don't hold, tokenizer.json is there already.

    Raises:
        OSError: the disk is full.
    """
    if facts.published:
        for name in _TOKENIZER_FILES:
            if (original / name).is_file():
                shutil.copyfile(original / name, target / name)
    elif (original / "tokenizer.model").is_file():
        shutil.copyfile(original / "tokenizer.model", target / "tokenizer.model")
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if not facts.published:
            (target / name).unlink(missing_ok=True)
    named = files.read_json_object(original / "special_tokens_map.json")
    if facts.published and named is not None:
        files.write_json_atomically(
            target / "special_tokens_map.json", named | {"eos_token": facts.eos}
        )
    files.write_json_atomically(
        target / "tokenizer_config.json", tokenizer_config(original, facts, chat)
    )
    files.write_text_atomically(target / "chat_template.jinja", chat)


def rehearse(original: Path, facts: TokenizerFacts, chat: str) -> list[str]:
    """What lint() would say of the files beside the weights, written where nobody keeps them.

    Raises:
        OSError: there is no room for them.
    """
    with tempfile.TemporaryDirectory(prefix="iisft-export-") as place:
        made = Path(place)
        if not facts.published:
            (made / "tokenizer.json").touch()  # the child has seen that it can be written
        write_tokenizer(original, made, facts, chat)
        generation = generation_config(original, facts)
        files.write_json_atomically(made / "generation_config.json", generation)
        return lint(made, facts.stop_ids, weights=False)


def lint(folder: Path, stop_ids: list[int], *, weights: bool = True) -> list[str]:
    """What another tool would stumble over in a folder that was written."""
    found = list(_lint_tokenizer(folder)) + list(_lint_generation(folder, stop_ids))
    if weights:
        findings = [one for one in checkpoint_findings(folder) if one.severity == "error"]
        found += [one.message for one in findings]
        if not findings:
            found += _lint_weights(folder)
    return found


def _lint_weights(folder: Path) -> Iterator[str]:
    made = inspect_checkpoint(folder)
    dtype = made.config.get("dtype")
    most = next(iter(made.dtypes), dtype)  # Qwen3.5 is published with float32 vectors in between
    if dtype and most != dtype:
        yield f"config.json says {dtype}, most of the weights are {most}"
    embedding = next(
        (tensor for name, tensor in made.tensors.items() if name.endswith(_EMBEDDINGS)), None
    )
    rows = made.config.get("vocab_size")
    if embedding is not None and rows is not None and embedding.shape[0] != rows:
        yield f"config.json says vocab_size {rows}, the embedding has {embedding.shape[0]} rows"
    has_head = any(name.endswith("lm_head.weight") for name in made.tensors)
    tied = made.config.get("tie_word_embeddings")
    if embedding is not None and tied is True and has_head:
        yield "config.json ties the head to the embedding, and there is a head"
    if embedding is not None and tied is False and not has_head:
        yield "config.json does not tie the head to the embedding, and there is no head"


def _lint_tokenizer(folder: Path) -> Iterator[str]:
    config = files.read_json_object(folder / "tokenizer_config.json") or {}
    if not isinstance(config.get("extra_special_tokens", {}), dict):
        yield "tokenizer_config.json: extra_special_tokens is a list, transformers 4 wants a table"
    if config.get("tokenizer_class") == "TokenizersBackend":
        yield "tokenizer_config.json: transformers 4 has no class TokenizersBackend"
    if config.get("tokenizer_class") == _PLAIN_CLASS and not (folder / "tokenizer.json").is_file():
        yield f"there is no tokenizer.json, and {_PLAIN_CLASS} reads nothing else"
    jinja = folder / "chat_template.jinja"
    if jinja.is_file() and jinja.read_text(encoding="utf-8") != config.get("chat_template"):
        yield "chat_template.jinja is not the chat_template of tokenizer_config.json"


def _lint_generation(folder: Path, stop_ids: list[int]) -> Iterator[str]:
    config = files.read_json_object(folder / "generation_config.json")
    if config is None:
        return
    ends = config.get("eos_token_id")
    missing = set(stop_ids) - set(ends if isinstance(ends, list) else [ends])
    if missing:
        yield f"generation_config.json does not stop at {', '.join(map(str, sorted(missing)))}"
    if not config.get("do_sample") and any(config.get(name) is not None for name in _SAMPLING):
        yield "generation_config.json has sampling settings without do_sample"
