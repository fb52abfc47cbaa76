"""dataset_info.json, LLaMA-Factory's register of datasets."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

FILE_NAME = "dataset_info.json"

# Key of a staged row -> the name of the column in dataset_info.json.
_COLUMNS = {
    "instruction": "prompt",
    "input": "query",
    "output": "response",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "history": "history",
}
# Staged messages are OpenAI's. LLaMA-Factory's own `openai` formatting would add "detailed thinking
# off" to every system text (data/converter.py, OpenAIDatasetConverter); its sharegpt one with these
# tags takes them as they are.
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
LAST_ANSWER_ONLY = "llamafactory.mask_history=true"
CHUNK_BYTES = 10 * 2**20
"""LLaMA-Factory reads JSON lines in chunks of this size (datasets, packaged_modules/json)."""


def entry(file_name: str, keys: Sequence[str]) -> dict[str, Any]:
    """One dataset's entry with the full column map: LLaMA-Factory forgets every column that a given
    map leaves out.
    """
    columns = {column: key for key, column in _COLUMNS.items() if key in keys}
    if "messages" in keys:
        return {
            "file_name": file_name,
            "formatting": "sharegpt",
            "columns": columns,
            "tags": dict(_TAGS),
        }
    return {"file_name": file_name, "formatting": "alpaca", "columns": columns}


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The file's text, ASCII only: LLaMA-Factory opens it in the locale's encoding."""
    return json.dumps(entries, ensure_ascii=True, indent=2) + "\n"
