"""A model's own chat template: its text, its special tokens, what it writes of a conversation."""

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iisft import files, process
from iisft.workspace import cache_folder

_SCRIPT = Path(__file__).parents[1] / "child" / "render_chat_template.py"
_TIMEOUT_S = 20.0
_LONGEST = 1_000_000
_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def text_of(folder: Path) -> str:
    """The model's own chat template; empty when it has none. Of several, the one called default."""
    jinja = folder / "chat_template.jinja"
    try:
        if jinja.is_file() and jinja.stat().st_size < _LONGEST:
            return jinja.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = (files.read_json_object(folder / name) or {}).get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {
                one.get("name"): one.get("template") for one in template if isinstance(one, dict)
            }
            template = named.get("default") or next(iter(named.values()), None)
        if isinstance(template, str) and len(template) < _LONGEST:
            return template
    return ""


def token_names(folder: Path) -> dict[str, str]:
    """bos_token and the others; tokenizer_config.json wins over special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        source = files.read_json_object(folder / name) or {}
        for token in _NAMED_TOKENS:
            value = source.get(token)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text:
                found[token] = text
    return found


def has_processor(folder: Path) -> bool:
    """Whether transformers finds an image, video or audio processor in the folder.

    Without one LLaMA-Factory's load_tokenizer() has none to give to a template that wants it.
    """
    return any((folder / name).is_file() for name in PROCESSOR_FILES)


def rendered(folder: Path, conversations: Sequence[Mapping[str, Any]]) -> list[str | None] | None:
    """Each conversation as the model's own chat template writes it, None for one that it refuses;
    None when there is no template, or it can't be rendered at all.

    `conversations` are what apply_chat_template() takes: messages, tools, add_generation_prompt.
    Remembered in the cache folder.
    """
    text = text_of(folder)
    return rendered_by(text, token_names(folder), conversations) if text else None


def rendered_by(
    text: str, tokens: Mapping[str, str], conversations: Sequence[Mapping[str, Any]]
) -> list[str | None] | None:
    """The same for a chat template given as text, and the special tokens that it may name."""
    job = {
        "chat_template": text,
        "variables": dict(tokens),
        "conversations": list(conversations),
    }
    content = json.dumps(job)  # tools are written in the order of their keys
    file = cache_folder() / "chats" / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
    known: Any = files.read_json(file)
    if not _sound(known, len(conversations)):
        known = _ask(content)
        if not _sound(known, len(conversations)):
            return None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_json_atomically(file, known)
        except OSError:
            pass  # without a cache it is only slower
    texts: list[str | None] = known
    return texts


def _sound(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(text is None or isinstance(text, str) for text in value)
    )


def _ask(job: str) -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as stream:
        stream.write(job)
        stream.flush()
        # -P: a module of the folder that iisft runs in is not to be imported
        argv = [sys.executable, "-P", str(_SCRIPT), stream.name]
        try:
            done = process.run(argv, timeout_s=_TIMEOUT_S)
            return json.loads(done.stdout) if done.returncode == 0 else None
        except (OSError, TimeoutError, ValueError):
            return None
