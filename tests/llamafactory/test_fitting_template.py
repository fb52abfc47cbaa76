"""The template that fits a model writes what the model's own chat template writes, whatever either
is called.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from iisft.llamafactory import chat_template, fitting_template
from iisft.llamafactory.fitting_template import Guess

SAME = "it writes the prompts of the model's own chat template"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    f"{DEFAULT_SYSTEM}<|im_end|>\n{{% endif %}}"
)
QWEN_THINKS = CHATML + (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ s if loop.first else '' }}{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


def model(folder: Path, chat: Any, model_type: str = "x", **tokens: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"eos_token": "<|im_end|>", **tokens, "chat_template": chat}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("chat", "tokens", "expected"),
    [
        (QWEN_SYSTEM + CHATML, {}, "qwen"),
        (CHATML, {"eos_token": "<|endoftext|>"}, "chatml"),
        (QWEN_THINKS, {}, "qwen3"),
        (LLAMA3, {"bos_token": "<s>", "eos_token": "<|eot_id|>"}, "llama3"),
        (GEMMA, {"bos_token": "<bos>", "eos_token": "<eos>"}, "gemma"),
        (R1, {"bos_token": "<s>", "eos_token": "</s>"}, "deepseekr1"),
        ("{% for m in messages %}#{{ m.content }}#{% endfor %}", {}, None),
    ],
)
def test_the_guess(tmp_path: Path, chat: str, tokens: dict[str, str], expected: str | None) -> None:
    found = fitting_template.guess(model(tmp_path / "模型 a", chat, **tokens))
    assert found.name == expected
    assert found.differs == ()


def test_templates_that_would_write_the_same_are_named(tmp_path: Path) -> None:
    found = fitting_template.guess(model(tmp_path / "m", CHATML))
    assert found.name == "chatml"
    assert found.how.startswith(f"{SAME}; ") and found.how.endswith(" would write the same")


def test_a_head_of_the_model_s_own_is_told(tmp_path: Path) -> None:
    dated = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}<|im_end|>\n"
    found = fitting_template.guess(model(tmp_path / "m", dated + CHATML))
    assert found.differs == ("head", "system")
    assert found.how.startswith(
        f"{SAME}, except what stands before the first question, the system text"
    )


def test_a_model_without_a_chat_template_is_guessed_by_its_family(tmp_path: Path) -> None:
    assert fitting_template.guess(model(tmp_path / "m", None, "llama")) == Guess(
        "llama3", "for a model of type 'llama' without a chat template"
    )
    assert fitting_template.guess(model(tmp_path / "m", None, "new")).name is None


def test_a_model_with_a_tower_takes_its_template_where_the_processor_is_there(
    tmp_path: Path,
) -> None:
    """LLaMA-Factory ends while it tokenises where the template wants a processor and none is."""
    folder = model(tmp_path / "m", GEMMA, bos_token="<bos>", eos_token="<eos>")
    assert fitting_template.guess(folder).name == "gemma"
    (folder / "preprocessor_config.json").write_text("{}")
    assert fitting_template.guess(folder).name == "gemma3"
    base = model(tmp_path / "base", None)
    config = {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}}
    (base / "config.json").write_text(json.dumps(config))
    assert fitting_template.guess(base).name is None
    (base / "preprocessor_config.json").write_text("{}")
    assert fitting_template.guess(base).name == "qwen3_5"


@pytest.mark.parametrize(
    "hostile",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ ",
    ],
)
def test_a_chat_template_that_can_t_be_rendered_hurts_nothing(tmp_path: Path, hostile: str) -> None:
    folder = model(tmp_path / "m", hostile, "qwen2")
    assert fitting_template.guess(folder).name == "qwen"
    written = chat_template.rendered(folder, [{"messages": []}])
    assert written in (None, [None], [""])


def test_what_was_rendered_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    folder = model(tmp_path / "m", QWEN_SYSTEM + CHATML)
    assert fitting_template.guess(folder).name == "qwen"
    monkeypatch.setattr(chat_template, "_ask", lambda job: pytest.fail("asked again"))
    assert fitting_template.guess(folder).name == "qwen"
    [file] = (tmp_path / "c" / "iisft" / "chats").iterdir()
    file.write_text("[1, 2", encoding="utf-8")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert fitting_template.guess(folder).name == "qwen"


@pytest.mark.parametrize(
    ("template", "extra", "words", "severity"),
    [
        ("qwen", {}, None, ""),
        ("chatml", {"default_system": DEFAULT_SYSTEM}, None, ""),
        ("chatml", {}, "it writes something else in what stands before the first question", "warn"),
        ("llama3", {}, "what stands between turns", "error"),
        ("qwen3", {}, "it puts an empty thought (<think>) before answers", "warn"),
        ("qwem", {}, None, ""),  # is told elsewhere
    ],
)  # fmt: skip
def test_a_template_of_another_family_is_objected_to(
    tmp_path: Path, template: str, extra: dict[str, Any], words: str | None, severity: str
) -> None:
    folder = model(tmp_path / "m", QWEN_SYSTEM + CHATML)
    found = fitting_template.objection(folder, template, extra)
    if words is None:
        assert found is None
    else:
        assert found is not None and words in found.message and found.severity == severity
        assert found.fix.startswith("--set model.template=qwen")


def test_a_template_for_images_needs_a_processor(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", GEMMA, bos_token="<bos>")
    found = fitting_template.objection(folder, "gemma3", {})
    assert found is not None and (found.id, found.severity) == ("template-needs-processor", "error")
    assert found.fix == "--set model.template=gemma"
    (folder / "preprocessor_config.json").write_text("{}")
    assert fitting_template.objection(folder, "gemma3", {}) is None
    assert fitting_template.guess(folder).name in ("gemma3", "gemma3n")
