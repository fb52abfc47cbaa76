"""Render conversations by a model's own chat template, as transformers does.

python render_chat_template.py JOB.json, which has the text `chat_template`, the special tokens
`variables`, and `conversations` as apply_chat_template() takes them. Prints a list of texts, null
where the template refuses a conversation.

Runs in iisft's own interpreter, as a process of its own because a downloaded template is code: the
sandbox keeps it from the machine, the limits keep it from taking forever or all memory.
Source: _compile_jinja_template() in transformers 5.5, utils/chat_template_utils.py.
"""

import datetime
import json
import resource
import sys
from pathlib import Path
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_CPU_SECONDS = 5
_BYTES = 2**30


class Generation(Extension):
    """transformers' {% generation %} block, which marks an answer and prints it as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads a class variable

    def parse(self, parser: Parser) -> Node | list[Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Any) -> Any:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    found.filters["tojson"] = tojson
    found.globals["raise_exception"] = raise_exception
    found.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return found


def main(job: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    asked = json.loads(job.read_text(encoding="utf-8"))
    template = environment().from_string(asked["chat_template"])
    texts: list[str | None] = []
    for conversation in asked["conversations"]:
        try:
            texts.append(template.render(**asked["variables"], **conversation))
        except Exception:  # a template may do anything, and each model's refuses other things
            texts.append(None)
    sys.stdout.write(json.dumps(texts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
