"""What tests in several folders share."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iisft.runs.record.folder import RunFolder

CLI = Callable[..., Any]

# In the environment of a child whose lines another test has run too: coverage does not trace it.
# Steps of tiny models take up to twice as long while it does.
UNTRACED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}

# family that is published with a vision tower -> class of the text model, and of the whole
TEXT_PARTS = {
    "gemma3-vision": ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    "gemma4-vision": ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    "ministral3-vision": ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    "qwen3_5-vision": ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    "qwen2_vl-vision": ("Qwen2ForCausalLM", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl-vision": ("Qwen2ForCausalLM", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl-vision": ("Qwen3ForCausalLM", "Qwen3VLForConditionalGeneration"),
    "internvl-vision": ("Qwen2ForCausalLM", "InternVLForConditionalGeneration"),
    "internvl3_5-vision": ("Qwen3ForCausalLM", "InternVLForConditionalGeneration"),
    "llava-vision": ("LlamaForCausalLM", "LlavaForConditionalGeneration"),
    "pixtral-vision": ("MistralForCausalLM", "LlavaForConditionalGeneration"),
    "llava_onevision-vision": ("Qwen2ForCausalLM", "LlavaOnevisionForConditionalGeneration"),
    "smolvlm-vision": ("LlamaForCausalLM", "SmolVLMForConditionalGeneration"),
    "idefics3-vision": ("LlamaForCausalLM", "Idefics3ForConditionalGeneration"),
}


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something that another process does; the limit only ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def train_argv(model: Path, *more: str, data: str = "rows", preset: str = "mi50") -> list[str]:
    return ["train", "--preset", preset, "--model", str(model), "--data", data, *more]


def steps(folder: RunFolder, kind: str = "metrics") -> list[int]:
    return [event["step"] for event in folder.read_events() if event["kind"] == kind]


def target_options(model: Path, cutoff: int) -> list[str]:
    """The model and the limit that rows are counted or fitted for."""
    values = ("model.template=qwen", f"train.cutoff_len={cutoff}")
    return ["--model", str(model), *(part for value in values for part in ("--set", value))]


def write_rows(file: Path, rows: list[Any]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
    return file
