"""dataset_info.json, LLaMA-Factory's register of datasets."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

FILE_NAME = "dataset_info.json"

# Alpaca key of a staged row -> the name of the column in dataset_info.json.
_COLUMNS = {
    "instruction": "prompt",
    "input": "query",
    "output": "response",
    "system": "system",
    "history": "history",
}


def entry(file_name: str, keys: Sequence[str]) -> dict[str, Any]:
    """One dataset's entry with the full column map: LLaMA-Factory forgets every column that a given map leaves out."""
    return {
        "file_name": file_name,
        "formatting": "alpaca",
        "columns": {column: key for key, column in _COLUMNS.items() if key in keys},
    }


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The file's text, ASCII only: LLaMA-Factory opens it in the locale's encoding."""
    return json.dumps(entries, ensure_ascii=True, indent=2) + "\n"
