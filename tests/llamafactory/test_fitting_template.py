"""Template names that really are LLaMA-Factory's, and families told apart by what their chat
templates write.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from iisft.llamafactory.fitting_template import known_templates, template_for


def test_every_name_is_one_of_the_installed_llamafactory() -> None:
    spec = find_spec("llamafactory")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "data" / "template.py"
    assert known_templates() <= set(
        re.findall(r'^    name="([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    )


@pytest.mark.parametrize(
    ("model_type", "chat_template", "expected"),
    [
        ("qwen2", "{{ '<|im_start|>' + role }}", "qwen"),
        ("qwen2", "{{ '<｜User｜>' }}{{ '<｜Assistant｜><think>' }}", "deepseekr1"),
        ("qwen3", "<|im_start|> <think>", "qwen3"),
        ("qwen3", "<|im_start|>", "qwen3_nothink"),
        ("llama", "<|start_header_id|>", "llama3"),
        ("llama", "[INST] <<SYS>>", "llama2"),
        ("llama", "<|im_start|>", None),
        ("mistral", "{{ '[INST] ' + content + '[/INST]' }}", "mistral"),
        ("phi3", "<|user|><|end|>", "phi"),
        ("qwen2", "", None),
        ("unheard-of", "<|im_start|>", None),
    ],
)
def test_templates(model_type: str, chat_template: str, expected: str | None) -> None:
    assert template_for(model_type, chat_template) == expected
