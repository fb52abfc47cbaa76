"""Which of LLaMA-Factory's templates fits a model: the one that writes what the model's own chat
template writes, compared text by text and not by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from iisft import files
from iisft.errors import Finding, Severity
from iisft.llamafactory import chat_template
from iisft.llamafactory.as_trained import ANSWER, CONVERSATIONS, QUESTION, SECOND, written
from iisft.llamafactory.catalogue import Catalogue, catalogue
from iisft.llamafactory.templates import Template
from iisft.llamafactory.tools import Unrenderable
from iisft.llamafactory.turns import Options

NEEDS_PROCESSOR = "template-needs-processor"  # under such a template no row could be tokenised

# For models without a chat template of their own, model_type of config.json -> what their
# instruction-tuned siblings take.
_FAMILIES = {
    "qwen2": "qwen",
    "qwen3": "qwen3",
    "qwen3_5_text": "qwen3_5",
    "llama": "llama3",
    "mistral": "mistral",
    "ministral3": "ministral3",
    "mixtral": "mistral",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gemma4_text": "gemma4",
    "glm": "glm4",
    "glm4": "glm4",
    "chatglm": "glm4",
    "phi3": "phi",
}

_ASKED = [CONVERSATIONS[name] for name in ("plain", "system", "two turns", "answered", "tools")]


class Written(NamedTuple):
    """What stands around the texts of a conversation, by the model or by a template.

    `head`: before the first question; `system`: the same with a system text; `prompt`: between
    question and answer; `between`: from answer to next question; `end`: after the last answer;
    `tools`: a whole conversation with tools.
    """

    head: str | None
    system: str | None
    prompt: str | None
    between: str | None
    end: str | None
    tools: str | None


_NAMES = {
    "head": "what stands before the first question",
    "system": "the system text",
    "prompt": "what stands before an answer",
    "between": "what stands between turns",
    "end": "the end of an answer",
}


@dataclass(frozen=True)
class Guess:
    """The template that fits a model, None when none clearly does; `how` says why, for people.

    `differs`: parts of a conversation that even this one writes in another way than the model.
    """

    name: str | None
    how: str
    differs: tuple[str, ...] = ()


class Fitting:
    """One model's own prompts beside those of every template."""

    def __init__(self, folder: Path, found: Catalogue | None = None) -> None:
        self._folder = folder
        self._catalogue = found or catalogue()
        self._names = chat_template.token_names(folder)
        self._has_processor = chat_template.has_processor(folder)

    @cached_property
    def own(self) -> Written | None:
        """What the model's own chat template writes; None when there is none to render."""
        texts = chat_template.rendered(self._folder, _ASKED)
        return _written(texts) if texts else None

    @cached_property
    def guess(self) -> Guess:
        if self.own is None:
            return self._by_family()
        agreeing = {
            name: parts
            for name, template in self._candidates.items()
            if (parts := self._agreement(template)) is not None
        }
        if not agreeing:
            return Guess(None, "no template of LLaMA-Factory writes the model's own prompts")
        ranks = {name: self._rank(name, parts) for name, parts in agreeing.items()}
        best = max(ranks.values())
        alike = sorted(
            (name for name, rank in ranks.items() if rank == best), key=lambda n: (len(n), n)
        )
        differs = tuple(part for part in _NAMES if part not in agreeing[alike[0]])
        return Guess(alike[0], _how(differs, alike[1:]), differs)

    @property
    def _candidates(self) -> dict[str, Template]:
        return {
            name: template
            for name, template in self._catalogue.templates.items()
            if name not in self._catalogue.refused
            and (self._has_processor or not template.needs_processor)
        }

    def _by_family(self) -> Guess:
        config = files.read_json_object(self._folder / "config.json") or {}
        inner = config.get("text_config")  # of a model with a vision tower
        kind = (inner if isinstance(inner, dict) else config).get("model_type")
        name = _FAMILIES.get(str(kind))
        if name and not self._has_processor and self._catalogue.templates[name].needs_processor:
            name = None
        whose = "whose chat template can't be rendered" if self._chat else "without a chat template"
        if name is None:
            return Guess(None, f"a model of type {kind!r} {whose}")
        return Guess(name, f"for a model of type {kind!r} {whose}")

    @property
    def _chat(self) -> str:
        return chat_template.text_of(self._folder)

    def objection(self, name: str, extra: Mapping[str, Any]) -> Finding | None:
        """What speaks against training this model with this template.

        `extra` is a preset's `llamafactory:` section.
        """
        template = self._catalogue.templates.get(name)
        if template is None or name in self._catalogue.refused:
            return None  # said elsewhere
        if template.needs_processor and not self._has_processor:
            return Finding(
                NEEDS_PROCESSOR,
                f"template {name} wants an image or audio processor, which this model does not "
                "have: LLaMA-Factory would end while it tokenises",
                where="model.template",
                fix=_setting(self.guess),
            )
        if self.own is None or self.guess.name in (None, name):
            return None
        agreed = self._agreement(template, Options.of(extra)) or frozenset()
        better = self._agreement(self._catalogue.templates[str(self.guess.name)]) or frozenset()
        parts, word = better - agreed, template.thought_words[0].strip()
        if parts - {"head"}:  # other turns; a default system text is no other prompt
            named = ", ".join(_NAMES[part] for part in _NAMES if part in parts)
            return self._differs(name, f"writes something else in {named}", "error")
        if template.reasons and word not in self._chat:
            return self._differs(name, f"puts an empty thought ({word}) before answers", "warn")
        if parts:
            return self._differs(name, f"writes something else in {_NAMES['head']}", "warn")
        return None

    def _differs(self, name: str, what: str, severity: Severity) -> Finding:
        return Finding(
            "template-differs",
            f"template {name} is not the model's own chat template: it {what}",
            where="model.template",
            fix=f"{_setting(self.guess)} writes them as the model's does",
            severity=severity,
        )

    def _agreement(
        self, template: Template, options: Options | None = None
    ) -> frozenset[str] | None:
        """The parts that a template writes as the model does; None when the turns are others."""
        assert self.own is not None
        mine = self._of(template, options or Options())
        if mine is None:
            return None
        own = self.own
        if own.prompt != mine.prompt and template.reasons:
            # a model that always thinks begins the thought in its prompt
            opened = (mine.prompt or "") + template.thought_words[0]
            if (own.prompt or "").rstrip("\n") == opened.rstrip("\n"):
                own = own._replace(prompt=mine.prompt)
        agreed = frozenset(
            part for part in Written._fields if getattr(own, part) == getattr(mine, part)
        )
        return agreed if {"prompt", "between"} <= agreed else None

    def _rank(self, name: str, agreed: frozenset[str]) -> tuple[int, ...]:
        template = self._catalogue.templates[name]
        thinks = template.thought_words[0].strip() in self._chat
        return (
            len(agreed - {"tools"}),
            "head" in agreed,
            thinks == template.reasons,
            template.needs_processor == self._has_processor,
            "tools" in agreed,
            template.replace_eos,
        )

    def _of(self, template: Template, options: Options) -> Written | None:
        """What a template writes, without the thoughts that it puts into answers."""
        template = replace(template, family="Template" if template.reasons else template.family)
        texts: list[str | None] = []
        for conversation in _ASKED:
            try:
                texts.append(written(template, options, self._names, conversation))
            except Unrenderable:
                texts.append(None)
        return _written(texts)


def guess(folder: Path) -> Guess:
    """The template for the model in this folder."""
    return Fitting(folder).guess


def objection(folder: Path, name: str, extra: Mapping[str, Any]) -> Finding | None:
    """What speaks against this template for the model in this folder."""
    return Fitting(folder).objection(name, extra)


def _setting(found: Guess) -> str:
    return f"--set model.template={found.name or 'NAME'}"


def _how(differs: tuple[str, ...], alike: list[str]) -> str:
    text = "it writes the prompts of the model's own chat template"
    if differs:
        text += f", except {', '.join(_NAMES[part] for part in differs)}"
    return text + (f"; {', '.join(alike)} would write the same" if alike else "")


def _written(texts: list[str | None]) -> Written | None:
    """None when a text of the conversation is not in what was written."""
    alone, with_system, talk, ended, tools = texts
    if alone is None or QUESTION not in alone or talk is None:
        return None
    after, answer, second = (talk.partition(word)[2] for word in (QUESTION, ANSWER, SECOND))
    if ANSWER not in talk or SECOND not in talk:
        return None
    return Written(
        alone.partition(QUESTION)[0],
        with_system.partition(QUESTION)[0] if with_system else None,
        second,
        answer.partition(SECOND)[0] + after.partition(ANSWER)[0].join(("|", "|")),
        ended.partition(ANSWER)[2] if ended else None,
        tools,
    )
