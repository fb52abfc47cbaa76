"""A chat template in Jinja, written from LLaMA-Factory's template."""

import json
from collections.abc import Mapping

from iisft.llamafactory import as_trained
from iisft.llamafactory import tools as tool_forms
from iisft.llamafactory.templates import CONTENT, Slots, Special, Template
from iisft.llamafactory.tools import BETWEEN_RESULTS, Unrenderable
from iisft.llamafactory.turns import Options, tools_as_text

_INDEX = "{{idx}}"


def jinja(template: Template, options: Options, tokens: Mapping[str, str]) -> str:
    """A chat template that writes what this template of LLaMA-Factory does.

    With tools it does so if their form can be read off two examples (_Tools).
    """
    tools = _Tools(template)

    def filled(slots: Slots, name: str) -> str:
        return _expression(slots, name, template, tokens)

    default = template.default_system if options.default_system is None else options.default_system
    system = filled(template.system, "system_message")
    parts = []
    if template.prefix and (prefix := filled(template.prefix, "")):
        parts.append(f"{{{{ {prefix} }}}}")
    parts.append(
        f"{{% set system_message = {jinja_text(default)} %}}{{% set loop_messages = messages %}}"
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% if messages[0]['content'] %}{% set system_message = messages[0]['content'] %}"
        "{% endif %}{% endif %}"
    )
    parts.append(tools.described)
    if not template.system_in_user:
        parts.append(f"{{% if system_message %}}{{{{ {system} }}}}{{% endif %}}")
    parts.append(
        "{% for message in loop_messages %}{% set content = message['content'] or '' %}"
        "{% if message['role'] == 'user' %}"
    )
    if template.system_in_user:
        parts.append(
            "{% if loop.first and system_message %}"
            f"{{% set content = {system} + content %}}{{% endif %}}"
        )
    thoughts = _Thoughts(template, options)
    parts.append(f"{{{{ {filled(template.user, 'content')} }}}}{thoughts.after_question}")
    if tools.called:
        parts.append(tools.results(filled(template.observation, "content"), thoughts))
    parts.append(f"{{% elif message['role'] == 'assistant' %}}{thoughts.before_answer}")
    answer = f"{{{{ {filled(template.assistant, 'content')} }}}}"
    if tools.called:
        call = f"{{{{ {filled(template.function, 'content')} }}}}"
        answer = (
            f"{{% if message.tool_calls %}}{tools.called}{call}{{% else %}}{answer}{{% endif %}}"
        )
    parts.append(answer)
    parts.append(
        "{% else %}{{ raise_exception('no conversation of this model\\'s training has the role ' "
        "+ message['role']) }}{% endif %}{% endfor %}"
    )
    return "".join(parts)


class _Thoughts:
    """What ReasoningTemplate.encode_multiturn() does to answers, in Jinja."""

    def __init__(self, template: Template, options: Options) -> None:
        self.after_question = self.before_answer = ""
        if not template.reasons:
            return
        opening, closing = map(jinja_text, template.thought_words)
        empty = f"{{{{ {jinja_text(template.empty_thought)} }}}}"
        words = " and ".join(
            f"{jinja_text(word.strip())} not in TEXT" for word in template.thought_words
        )
        discarding = options.discards_thoughts
        removed = (
            f"{{% if {opening} in content and {closing} in content %}}{{% set content = "
            f"content.split({opening})[0] + content.split({closing})[-1] %}}"
            "{% endif %}{% set content = content.lstrip('\\n') %}"
        )
        if options.enable_thinking is False:
            self.before_answer = removed
        elif discarding:
            self.before_answer = f"{{% if not loop.last %}}{removed}{{% endif %}}"
        if options.enable_thinking:
            condition = words.replace("TEXT", "content")
            condition += " and loop.last" if discarding else ""
            self.before_answer += f"{{% if {condition} %}}{empty}{{% endif %}}"
            return
        conditions = ["loop.revindex <= 2"] if discarding else []
        if options.enable_thinking is None:
            following = words.replace("TEXT", "loop.nextitem['content']")
            conditions.append(f"(loop.last or {following})")
        self.after_question = (
            f"{{% if {' and '.join(conditions)} %}}{empty}{{% endif %}}" if conditions else empty
        )


class _Tools:
    """A template's form of tools, where it is a frame around JSON; otherwise empty.

    The frame is read off two tools and two calls. `described` extends the system text, `called`
    the text of an answer.
    """

    def __init__(self, template: Template) -> None:
        self.described = self.called = ""
        try:
            description, calls = self._description(template), self._calls(template)
        except (Unrenderable, ValueError):
            return
        head, one, between, foot = description
        self.described = (
            "{% set ns = namespace(text='', results=[]) %}{% if tools %}"
            f"{{% set ns.text = system_message + {jinja_text(head)} %}}{{% for tool in tools %}}"
            f"{{% set ns.text = ns.text + ({jinja_text(between)} if not loop.first else '') + "
            f"({one}) %}}{{% endfor %}}"
            f"{{% set system_message = ns.text + {jinja_text(foot)} %}}{{% endif %}}"
        )
        head, middle, between, foot = calls
        self.called = (
            "{% set ns.text = content %}{% for call in message.tool_calls %}"
            "{% set call = call.function if call.function else call %}"
            f"{{% set ns.text = ns.text + ({jinja_text(between)} if not loop.first else '') + "
            f"{jinja_text(head)} + call.name + {jinja_text(middle)} + (call.arguments if "
            "call.arguments is string else call.arguments | tojson) + "
            f"{jinja_text(foot)} %}}{{% endfor %}}{{% set content = ns.text %}}"
        )

    def results(self, observation: str, thoughts: "_Thoughts") -> str:
        """The branch for what tools answered: several results are one turn."""
        return (
            "{% elif message['role'] == 'tool' %}{% set ns.results = ns.results + [content] %}"
            "{% if loop.last or loop.nextitem['role'] != 'tool' %}"
            f"{{% set content = ns.results | join({jinja_text(BETWEEN_RESULTS)}) %}}"
            f"{{% set ns.results = [] %}}{{{{ {observation} }}}}{thoughts.after_question}"
            "{% endif %}"
        )

    def _description(self, template: Template) -> tuple[str, str, str, str]:
        """Text before the tools, how one is written, text between two, and after the last."""
        form = template.tool_format
        if form is None or template.system_in_user:
            raise ValueError

        first, second = _tool("a"), _tool("b")
        alone, both = (
            tool_forms.describe(form, tools_as_text(listed), template.tool_prompts)
            for listed in ([first], [first, second])
        )
        for one in ("tool", "tool.function"):
            for indent in (None, 4):
                spelled = [
                    json.dumps(tool if one == "tool" else tool["function"], indent=indent)
                    for tool in (first, second)
                ]
                if spelled[0] in alone and spelled[1] in both:
                    head, _, foot = alone.partition(spelled[0])
                    between = both[len(head) + len(spelled[0]) :].partition(spelled[1])[0]
                    how = f"tojson(indent={indent})" if indent else "tojson"
                    return head, f"{one} | {how}", between, foot
        raise ValueError

    def _calls(self, template: Template) -> tuple[str, str, str, str]:
        """Text before a call's name, before its arguments, between two calls, and after one."""
        name, arguments = "IISFTNAME", {"IISFT": "ARGUMENT"}
        call = {"name": name, "arguments": arguments}
        alone, both = (
            tool_forms.call(template.call_format, json.dumps(calls))
            for calls in ([call], [call] * 2)
        )
        head, found, rest = alone.partition(name)
        middle, also_found, foot = rest.partition(json.dumps(arguments))
        if not (found and also_found) or both.count(alone) != 2:
            raise ValueError
        return head, middle, both.removeprefix(alone).removesuffix(alone), foot


def _tool(name: str) -> dict[str, object]:
    parameters = {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": name, "description": "d", "parameters": parameters},
    }


def _expression(slots: Slots, name: str, template: Template, tokens: Mapping[str, str]) -> str:
    """Slots as a sum of texts and the variable `name`."""
    items: list[str] = []
    for slot in slots:
        if isinstance(slot, Special):
            items.append(jinja_text(as_trained.text_of(slot, template, tokens)))
            continue
        before, found, after = slot.partition(CONTENT)
        items += _with_index(before)
        if found:
            items += [name, *_with_index(after)]
    return " + ".join(item for item in items if item != '""') or '""'


def _with_index(text: str) -> list[str]:
    before, found, after = text.partition(_INDEX)
    index = ["(loop.index0 // 2)|string"] if found else []
    return [jinja_text(before), *index, jinja_text(after)] if found else [jinja_text(text)]


def jinja_text(text: str) -> str:
    """A text as Jinja writes it."""
    return json.dumps(text, ensure_ascii=False)
