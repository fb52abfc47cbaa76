"""Checks of ShareGPT and OpenAI rows, and their staged form: messages whose roles alternate, a
system text, tools.

Rules of LLaMA-Factory 0.9.5 (data/converter.py): a system message only first; then user or
observation and assistant or function_call in turn; an even number of them. It drops any other row
with a warning. Results of several calls in a row are one turn in OpenAI rows, and drop a ShareGPT
row. A call is JSON with `name` and `arguments`, alone, after a thought, or between call words with
text beside it (data/formatter.py, FunctionFormatter). tests/data/test_rules_equal.py has both judge
the same rows.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from iisft.data.check.findings import THE_FILE, RowFinding, excerpt, flaw, type_name
from iisft.data.check.inner_json import (
    call_problems,
    calls_as_text,
    keys_twice,
    may_repeat_a_key,
    to_the_digit,
)
from iisft.data.check.rowchecks import (
    Checked,
    Checker,
    answer_problems,
    may_be_odd,
    read_tools,
    text_problems,
    unusable,
    without_ignored,
)
from iisft.data.check.unread import Watch, parts_problem
from iisft.data.read.layouts import Layout
from iisft.data.read.message_keys import MESSAGE_FIELDS
from iisft.data.read.rows import Row
from iisft.llamafactory import tools as tool_forms

_SIDES = (("user", "observation"), ("assistant", "function_call"))
# Keys of an OpenAI message that are either read or mean nothing for training.
_KNOWN_KEYS = {"tool_calls", "function_call", "tool_call_id", "name", "id"}
_CHOSEN = ".[{0}] += [.chosen] | del(.chosen, .rejected)"
_PARSED = ".[{0}] |= fromjson"


def _rewritten(program: str, key: str) -> str:
    """The command that writes every row again."""
    return f"jq -c {shlex.quote(program.format(json.dumps(key)))} {THE_FILE} > rows.jsonl"


def message_checker(layout: Layout) -> Checker:
    """The checker of a file of ShareGPT or OpenAI rows."""
    messages_key = layout.columns["messages"]
    quick = _quick_reader(layout)
    watch = Watch((*layout.columns.values(), layout.completion), layout.ignored)
    of_messages = Watch(
        (layout.columns["role"], layout.columns["content"]), layout.ignored, messages=True
    )

    def check(row: Row) -> Checked:
        value = to_the_digit(row)
        if layout.completion and isinstance(value, dict):
            value = _joined(value, messages_key, layout.completion)
        if (
            type(value) is dict
            and not may_be_odd(row.raw)
            and not may_repeat_a_key(row)
            and not watch.speaking(value)
            and (staged := quick(value))
        ):
            return staged, ()
        if not isinstance(value, dict):
            return None, [unusable(value)]
        if value.get(messages_key) is None:
            state = "null" if messages_key in value else "missing"
            return None, [flaw(messages_key, "field-missing", f"{state}: there are no messages")]
        conversation = _Conversation(layout, of_messages)
        unread = list(watch.problems(value))
        found = [*unread, *conversation.read(value), *keys_twice(row)]
        problems = without_ignored(found, layout)
        if any(one.id == "preference-data" for one in unread):
            problems = [one for one in problems if one.id != "answer-missing"]  # it is in `chosen`
            if isinstance(value.get("chosen"), dict):
                problems[0] = replace(problems[0], fix=_rewritten(_CHOSEN, messages_key))
        if any(problem.severity == "error" for problem in problems):
            return None, problems
        return conversation.staged(), problems

    return check


def _joined(value: dict[str, Any], prompt: str, completion: str) -> dict[str, Any]:
    first, then = value.get(prompt), value.get(completion)
    if isinstance(first, list) and isinstance(then, list):
        return {**value, prompt: first + then}
    return value


def _quick_reader(layout: Layout) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Reads the plain sound row, questions and answers in turn, and gives None for any other."""
    messages_key, role_key, content_key, system_key, tools_key = (
        layout.columns[field] for field in MESSAGE_FIELDS
    )
    users = {name for name, role in layout.roles.items() if role == "user"}
    assistants = {name for name, role in layout.roles.items() if role == "assistant"}

    def read(value: dict[str, Any]) -> dict[str, Any] | None:
        messages = value.get(messages_key)
        if type(messages) is not list or not messages or len(messages) % 2 or value.get(system_key):
            return None
        if value.get(tools_key):
            return None
        turns = []
        for number, message in enumerate(messages):
            if type(message) is not dict or len(message) != 2:
                return None
            spelled, content = message.get(role_key), message.get(content_key)
            if (
                type(spelled) is not str
                or type(content) is not str
                or not content
                or content.isspace()
            ):
                return None
            if spelled not in (assistants if number % 2 else users):
                return None
            turns.append({"role": "assistant" if number % 2 else "user", "content": content})
        return {"messages": turns, "system": "", "tools": ""}

    return read


class _Conversation:
    """Reads one row, message by message."""

    def __init__(self, layout: Layout, watch: Watch) -> None:
        self._layout = layout
        self._watch = watch
        self._role_key, self._content_key = layout.columns["role"], layout.columns["content"]
        self._known_keys = _KNOWN_KEYS | {self._role_key, self._content_key}
        self._system = ""
        self._tools = ""
        self._messages: list[dict[str, str]] = []
        self._in_order = True

    def staged(self) -> dict[str, Any]:
        return {"messages": self._messages, "system": self._system, "tools": self._tools}

    def read(self, value: dict[str, Any]) -> Iterator[RowFinding]:
        columns = self._layout.columns
        messages = value[columns["messages"]]
        if not isinstance(messages, list):
            text = f"a list is expected, not {type_name(messages)}"
            fix = ""
            if isinstance(messages, str) and messages.lstrip().startswith("["):
                fix = _rewritten(_PARSED, columns["messages"])
            yield flaw(columns["messages"], "field-type", text, fix=fix)
            return
        if system := value.get(columns["system"]):
            yield from text_problems(columns["system"], system)
            self._system = system
        self._tools, problems = read_tools(columns["tools"], value.get(columns["tools"]))
        yield from problems
        for number, message in enumerate(messages):
            field = f"{columns['messages']}[{number}]"
            if not isinstance(message, dict):
                yield flaw(
                    field, "message-no-object", f"an object is expected, not {type_name(message)}"
                )
                return
            yield from self._read_message(field, number, message)
        yield from self._end(columns["messages"])

    def _read_message(
        self, field: str, number: int, message: dict[str, Any]
    ) -> Iterator[RowFinding]:
        spelled = message.get(self._role_key)
        role = self._layout.roles.get(spelled) if isinstance(spelled, str) else None
        if role is None:
            known = ", ".join(self._layout.roles)
            text = (
                f"unknown role {spelled!r}; roles are {known}"
                if spelled is not None
                else "the role is missing"
            )
            yield flaw(f"{field}.{self._role_key}", "role-unknown", text)
        content = message.get(self._content_key)
        calls = message.get("tool_calls") or message.get("function_call")
        content_field = f"{field}.{self._content_key}"
        if calls and role == "assistant":
            role, beside = "function_call", content
            content, problem = calls_as_text(calls)
            if problem:
                yield flaw(f"{field}.tool_calls", "tool-call-shape", problem, excerpt(calls))
            yield from text_problems(f"{field}.tool_calls", content)
            if beside:
                yield from text_problems(content_field, beside)
                content = f"{beside}\n{content.join(tool_forms.CALL_WORDS)}"
                if isinstance(beside, str) and tool_forms.CALL_WORDS[0] in beside:
                    text = f"the text beside a call has {tool_forms.CALL_WORDS[0]} in it"
                    yield flaw(content_field, "tool-call-text", text, excerpt(beside))
        elif content is None:
            yield flaw(
                content_field,
                "field-missing",
                "null" if self._content_key in message else "missing",
            )
        elif parts := parts_problem(content_field, content, self._layout.columns):
            yield parts
        else:
            yield from text_problems(content_field, content)
            if role in _SIDES[1]:
                yield from answer_problems(content_field, content)
            if role == "function_call" and isinstance(content, str):
                yield from call_problems(content_field, content)
        yield from self._other_keys(field, role, message)
        yield from self._place(field, number, role, spelled, content)

    def _place(
        self, field: str, number: int, role: str | None, spelled: Any, content: Any
    ) -> Iterator[RowFinding]:
        """Take the message up, or say why it may not stand here."""
        if role == "system" and number == 0:
            if self._system and self._system != content:
                yield flaw(
                    field,
                    "system-twice",
                    "a system message beside another system text",
                    excerpt(content),
                )
            self._system = content or ""
            return
        joins = self._layout.name == "openai" and isinstance(content, str)
        if role == "observation" and joins and self._ends_with_result():
            self._messages[-1]["content"] += tool_forms.BETWEEN_RESULTS + content
            return
        side = len(self._messages) % 2
        if role is not None and role not in _SIDES[side] and self._in_order:
            self._in_order = False  # one wrong turn shifts all that follow
            wanted = " or ".join(
                name for name, meant in self._layout.roles.items() if meant in _SIDES[side]
            )
            text = f"{spelled} where {wanted} is expected"
            if role == "observation" and self._ends_with_result():
                text = (
                    "several tool results in a row: in ShareGPT rows LLaMA-Factory holds one "
                    "message between two answers"
                )
            yield flaw(f"{field}.{self._role_key}", "role-order", text)
        if not content and side == 0 and role in _SIDES[0] and content is not None:
            yield flaw(f"{field}.{self._content_key}", "prompt-empty", "the prompt is empty")
        self._messages.append({"role": role or _SIDES[side][0], "content": content})

    def _ends_with_result(self) -> bool:
        return bool(self._messages) and self._messages[-1]["role"] == "observation"

    def _other_keys(
        self, field: str, role: str | None, message: dict[str, Any]
    ) -> Iterator[RowFinding]:
        if len(message) == 2:
            return
        for problem in self._watch.problems(message, field):
            if problem.id != "loss-flag" or role in _SIDES[1]:  # a prompt is never trained on
                yield problem
        for key, value in message.items():
            if value and key not in self._known_keys and not self._watch.knows(key):
                yield flaw(
                    f"{field}.{key}", "message-key", "is not trained on", excerpt(value), "warn"
                )

    def _end(self, field: str) -> Iterator[RowFinding]:
        if not self._messages:
            yield flaw(field, "messages-empty", "there is no message to answer")
        elif len(self._messages) % 2 and self._messages[-1]["role"] in _SIDES[0]:
            yield flaw(field, "answer-missing", "the last message is no answer")
