"""Which keys of a row hold prompt and answer: Alpaca, ShareGPT or OpenAI, found in the rows or told
by the user.
"""

import difflib
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iisft.data.read import container
from iisft.data.read.message_keys import (
    MESSAGE_FIELDS,
    OPENAI_ROLES,
    LayoutName,
    message_keys,
    roles_of,
    told_message_keys,
)
from iisft.errors import InputError, UsageError

NAMES: tuple[LayoutName, ...] = ("alpaca", "sharegpt", "openai")

ALPACA_FIELDS = ("instruction", "input", "output", "system", "history", "tools")
# What people call these fields on the command line.
_ALIASES = {
    "prompt": "instruction",
    "query": "input",
    "answer": "output",
    "response": "output",
    "conversations": "messages",
}
_ALIASES |= {"from": "role", "value": "content"}

_TOLD_ROLES = ("user", "assistant", "system", "tool", "function_call")
# Columns that often hold the prompt or the answer, for a suggestion only: which one is meant is the
# user's to say.
_LIKELY = {
    "instruction": ("prompt", "question", "query", "text", "问题", "提问", "指令", "提示", "输入"),
    "output": (
        "answer",
        "response",
        "completion",
        "ground_truth",
        "target",
        "label",
        "chosen",
        "reply",
        "回答",
        "答案",
        "答复",
        "回复",
        "输出",
    ),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """`columns`: the key of each field (a field that no row has keeps its own name). `roles`: a
    role -> staged role.

    `unused` are the keys of the file that nothing reads, `ignored` those that --ignore names: they
    may be left out though they mean something. `completion` is the key of messages that go on after
    the first ones (TRL's prompt and completion).
    """

    name: LayoutName
    columns: Mapping[str, str]
    roles: Mapping[str, str]
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    completion: str = ""

    @property
    def answer_field(self) -> str:
        return self.columns["output" if self.name == "alpaca" else "messages"]

    def describe(self) -> str:
        """For people: the layout and the keys that it reads."""
        if self.name == "alpaca":
            shown = [
                field if key == field else f"{field}={key}"
                for field, key in self.columns.items()
                if field in ("instruction", "input", "output")
            ]
            return f"Alpaca ({', '.join(shown)})"
        keys = "/".join(self.columns[field] for field in ("messages", "role", "content"))
        if self.completion:
            keys = keys.replace("/", f" + {self.completion}/", 1)
        return f"{'ShareGPT' if self.name == 'sharegpt' else 'OpenAI messages'} ({keys})"


def parse_columns(given: Sequence[str]) -> dict[str, str]:
    """{field: key} of `--columns answer=ground_truth,instruction=q`.

    Raises:
        UsageError: no `=`, or an unknown field.
    """
    columns: dict[str, str] = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        field, equals, key = (piece.strip() for piece in part.partition("="))
        field = _ALIASES.get(field, field)
        if not equals or not key or field not in ALPACA_FIELDS + MESSAGE_FIELDS:
            known = (*ALPACA_FIELDS, "answer", *MESSAGE_FIELDS)
            near = difflib.get_close_matches(field, known, n=1)
            hint = (
                f"did you mean {near[0]}={key or 'KEY'}?"
                if near
                else f"fields are {', '.join(dict.fromkeys(known))}"
            )
            raise UsageError("columns", f"--columns takes FIELD=KEY, not {part!r}; {hint}")
        columns[field] = key
    return columns


def parse_roles(given: Sequence[str]) -> dict[str, str]:
    """{name: staged role} of `--roles human=user,bot=assistant`.

    Raises:
        UsageError: no `=`, or an unknown role.
    """
    roles: dict[str, str] = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        name, equals, role = (piece.strip() for piece in part.partition("="))
        if not equals or not name or role not in _TOLD_ROLES:
            text = f"--roles takes NAME=ROLE, not {part!r}; roles are {', '.join(_TOLD_ROLES)}"
            raise UsageError("roles", text)
        roles[name] = OPENAI_ROLES[role]
    return roles


def detect(
    rows: Iterable[Any],
    name: LayoutName | None,
    columns: Mapping[str, str],
    where: str,
    roles: Mapping[str, str] | None = None,
) -> Layout:
    """The layout of a file from its first rows; `name`, `columns` and `roles` are what the user
    said.

    Raises:
        InputError: no layout fits; the message has the keys that were seen, the fix a guess. Or the
        layout that fits has no such field, or no row such a key.
    """
    sample = list(rows)
    layout = _detected(sample, name, columns, where)
    objects = [row for row in sample if isinstance(row, dict)]
    if objects:
        _require_read(layout, objects, columns, where)
    if roles and layout.name == "alpaca":
        text = "--roles names roles of messages, and these are Alpaca rows"
        raise InputError("data-columns", text, where=where, fix="--format openai or sharegpt")
    return replace(layout, roles={**layout.roles, **(roles or {})})


def _require_read(
    layout: Layout, objects: list[dict[str, Any]], columns: Mapping[str, str], where: str
) -> None:
    """What --columns says must be so: else a column that was meant is left out without a word."""
    for field, key in columns.items():
        if field not in layout.columns:
            text = f"--columns {field}={key}: {layout.describe()} has no such field"
            fields = ", ".join(layout.columns)
            fix = f"fields are {fields}; --format says what the rows are"
            raise InputError("data-columns", text, where=where, fix=fix)
        holders = objects
        if field in ("role", "content"):
            lists = (row.get(layout.columns["messages"]) for row in objects)
            holders = [
                one
                for messages in lists
                if isinstance(messages, list)
                for one in messages
                if isinstance(one, dict)
            ]
        if not any(key in holder for holder in holders):
            keys = list(dict.fromkeys(name for holder in holders for name in holder))
            near = difflib.get_close_matches(key, keys, n=1)
            raise InputError(
                "data-columns",
                f"--columns {field}={key}: none of the first {len(objects):,} rows has {key!r}; "
                f"keys are {', '.join(keys[:12])}",
                where=where,
                fix=f"--columns {shlex.quote(f'{field}={near[0]}' if near else f'{field}=KEY')}",
            )


def _detected(
    rows: Iterable[Any], name: LayoutName | None, columns: Mapping[str, str], where: str
) -> Layout:
    """The layout of a file from its first rows; `name` and `columns` are what the user said.

    Raises:
        InputError: no layout fits; the message has the keys that were seen, the fix a guess.
    """
    objects = [row for row in rows if isinstance(row, dict)]
    keys = Counter(key for row in objects for key in row)
    if not objects:
        name = name or "alpaca"
    if name is None and not {"instruction", "output"} & keys.keys():
        told: dict[str, LayoutName] = {"conversations": "sharegpt", "messages": "openai"}
        name = next((layout for key, layout in told.items() if key in keys), None)
    is_alpaca = name == "alpaca" or (name is None and {"instruction", "output"} <= keys.keys())
    found = None if is_alpaca else message_keys(objects, columns)
    if found is None and name in (None, "alpaca"):
        container.refuse_preferences(objects, keys, columns, where)
        container.refuse_gemini(objects, where)
        if name is None and not columns:
            container.refuse_wrapper(objects, where)
        return _alpaca(keys, columns, where)
    messages, role, content = found or told_message_keys(name, columns, keys, where)
    named: LayoutName = name or ("sharegpt" if role == "from" else "openai")
    full = {
        "messages": messages,
        "role": role,
        "content": content,
        "system": "system",
        "tools": "tools",
        **columns,
    }
    roles = roles_of(objects, full, named)
    completion = ""
    if messages == "prompt" and any(isinstance(row.get("completion"), list) for row in objects):
        completion = "completion"
    unused = tuple(key for key in keys if key not in (*full.values(), completion))
    columns_read = {field: full[field] for field in MESSAGE_FIELDS}
    return Layout(named, columns_read, roles, unused, completion=completion)


def _alpaca(keys: Counter[str], columns: Mapping[str, str], where: str) -> Layout:
    full = {field: columns.get(field, field) for field in ALPACA_FIELDS}
    missing = [field for field in ("instruction", "output") if full[field] not in keys]
    if "instruction" in missing and "instruction" not in columns and full["input"] in keys:
        missing.remove("instruction")  # the whole prompt stands in `input`
    if keys and missing:
        guesses = [_guess(field, keys) for field in missing]
        if len(keys) == len(missing) == 2 and not all(guesses):
            guesses = list(keys)  # a question and its answer, in the order of everybody
        if len(missing) == 2 or guesses[0]:  # else each row is told what it lacks
            raise _unknown(keys, [(field, full[field]) for field in missing], guesses, where)
    return Layout("alpaca", full, {}, tuple(key for key in keys if key not in full.values()))


def _unknown(
    keys: Counter[str], missing: list[tuple[str, str]], guesses: list[str], where: str
) -> InputError:
    """`missing`: fields and the keys in which they were looked for."""
    names = {"instruction": "instruction", "output": "answer"}
    spelled = shlex.quote(
        ",".join(
            f"{names[field]}={guess or 'KEY'}"
            for (field, _), guess in zip(missing, guesses, strict=True)
        )
    )
    what = " and ".join(
        f"no {names[field]} ({key})" if key != names[field] else f"no {key}"
        for field, key in missing
    )
    return InputError(
        "data-columns",
        f"{what} in these rows; their keys are {', '.join(list(keys)[:12])}",
        where=where,
        fix=f"--columns {spelled}"
        + (" if that is what is meant" if all(guesses) else " (KEY is one of them)"),
    )


def _guess(field: str, keys: Counter[str]) -> str:
    """A key that may be meant, or ''."""
    near = difflib.get_close_matches(field, keys, n=1, cutoff=0.7)
    return near[0] if near else next((key for key in _LIKELY[field] if key in keys), "")
