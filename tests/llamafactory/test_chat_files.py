"""Whatever a run was trained with, its exported chat template writes the training's prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from iisft.child.render_chat_template import environment
from iisft.llamafactory import as_trained, chat_files
from iisft.llamafactory.catalogue import snapshot
from iisft.llamafactory.chat_jinja import jinja
from iisft.llamafactory.templates import Template
from iisft.llamafactory.tools import Unrenderable
from iisft.llamafactory.turns import Options

TEMPLATES = snapshot().templates
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = CHATML + (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"default_system": "你是'分析员'。\n\"{{ x }}\""},
    "no system": {"default_system": ""},
    "thinking off": {"enable_thinking": False},
    "thinking unset": {"enable_thinking": None},
    "masked": {"mask_history": True},
    "masked, thinking off": {"mask_history": True, "enable_thinking": False},
    "masked, kept": {"mask_history": True, "preserve_thinking": True},
}
WITH_TOOLS = {"tools", "tools offered", "two calls"}


def differing(text: str, template: Template, options: Options) -> set[str]:
    """Conversations of which a chat template makes something else than the trainer does."""
    compiled = environment().from_string(text)
    found = set()
    for name, conversation in chat_files.conversations_of(template).items():
        try:
            wanted = as_trained.written(template, options, TOKENS, conversation)
        except Unrenderable:
            continue
        try:
            made = compiled.render(**TOKENS, **conversation)
        except Exception as error:
            made = str(error)
        if made != wanted:
            found.add(name)
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_template_can_be_written(options: Mapping[str, Any]) -> None:
    given = Options.of(options)
    unlike = {
        name: differing(jinja(template, given, TOKENS), template, given) - WITH_TOOLS
        for name, template in TEMPLATES.items()
    }
    assert {name: found for name, found in unlike.items() if found} == {}


def test_tools_are_written_where_their_form_is_a_frame_around_json() -> None:
    written = {
        template.tool_format
        for template in TEMPLATES.values()
        if not differing(jinja(template, Options(), TOKENS), template, Options()) & WITH_TOOLS
    }
    assert written == {"qwen", "ling"}


def model(folder: Path, chat: str) -> Path:
    folder.mkdir()
    config = {"eos_token": "<|endoftext|>", "chat_template": chat}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("own", "name", "options", "how", "tools"),
    [
        (CHATML, "chatml", {}, "the model's own", "own"),
        (
            CHATML,
            "chatml",
            {"default_system": "S"},
            "the model's own, with the run's system text",
            "own",
        ),
        (THINKS, "qwen3", {}, "written from LLaMA-Factory's template qwen3", "trained"),
        (
            THINKS,
            "qwen3",
            {"mask_history": True, "enable_thinking": False},
            "written from LLaMA-Factory's template qwen3",
            "trained",
        ),
        (CHATML, "llama3", {}, "written from LLaMA-Factory's template llama3", "own"),
        ("", "qwen", {}, "written from LLaMA-Factory's template qwen", "trained"),
        ("{{ broken", "llama3", {}, "written from LLaMA-Factory's template llama3", "refused"),
    ],
)
def test_the_model_s_own_where_it_holds_else_one_that_is_written(
    tmp_path: Path, own: str, name: str, options: dict[str, Any], how: str, tools: str
) -> None:
    folder, given = model(tmp_path / "模型 m", own), Options.of(options)
    found = chat_files.chat(folder, TEMPLATES[name], given, with_tools=False)
    assert (found.how, found.tools) == (how, tools)


def test_tools_that_were_trained_in_another_form_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", CHATML)
    found = chat_files.chat(folder, TEMPLATES["llama3"], Options(), with_tools=True)
    assert found.tools == "refused"
    compiled = environment().from_string(found.text)
    with pytest.raises(Exception, match="use iisft serve"):
        compiled.render(**TOKENS, **as_trained.CONVERSATIONS["tools offered"])
