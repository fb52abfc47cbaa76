"""Files of predictions as different tools write them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

KEPT = {"TITLE": "t", "PLACES": ["北京"], "RATE": {"policy": 3}}


def drop(number: int) -> str:
    return json.dumps({"UUID": f"id-{number:06}"})


def keep(number: int) -> str:
    return json.dumps({"UUID": f"id-{number:06}", **KEPT}, ensure_ascii=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Rows as JSON lines."""

    def make(rows: Iterable[dict[str, Any]], name: str = "预测 file.jsonl") -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return make


@pytest.fixture
def first_users_file(write: Callable[..., Path]) -> Path:
    """The counts of the first user's checkpoint 100: what looked healthy and was useless.

    135 answers of 159: 59 rows to drop (52 right, 5 kept, 2 no JSON), 76 to keep (5 right, 68
    dropped, 3 no JSON).
    """
    pairs = [(drop, drop)] * 52 + [(drop, keep)] * 5 + [(drop, None)] * 2
    pairs += [(keep, keep)] * 5 + [(keep, drop)] * 68 + [(keep, None)] * 3
    rows = []
    for number, (reference, answer) in enumerate(pairs):
        broken = '{"UUID": "id-'
        rows.append(
            {
                "instruction": "评估",
                "input": f"- UUID: id-{number:06}\nnews",
                "ground_truth": reference(number),
                "model_output": answer(number) if answer else broken,
            }
        )
    rows += [
        {"input": "x", "ground_truth": drop(900 + i), "model_output": "ERROR_GENERATION"}
        for i in range(24)
    ]
    return write(rows)
