"""Which keys of a row hold its messages, and of a message its role and its text."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from iisft.errors import InputError

LayoutName = Literal["alpaca", "sharegpt", "openai"]


MESSAGE_FIELDS = ("messages", "role", "content", "system", "tools")


SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "observation": "observation",
    "function_call": "function_call",
}


OPENAI_ROLES = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "observation",
    "observation": "observation",
    "function": "observation",
    "function_call": "function_call",
}


def message_keys(
    objects: list[dict[str, Any]], columns: Mapping[str, str]
) -> tuple[str, str, str] | None:
    """Keys of the list of messages, of a message's role and of its content, by what the first rows
    hold.
    """
    for row in objects:
        for key, value in row.items():
            if columns.get("messages", key) != key or not isinstance(value, list) or not value:
                continue
            first = value[0]
            if not isinstance(first, dict):
                continue
            for role, content in (
                ("from", "value"),
                ("role", "content"),
                ("role", "value"),
                ("from", "content"),
            ):
                role, content = columns.get("role", role), columns.get("content", content)
                if role in first and (content in first or "tool_calls" in first):
                    return key, role, content
    return None


def told_message_keys(
    name: LayoutName | None, columns: Mapping[str, str], keys: Counter[str], where: str
) -> tuple[str, str, str]:
    """The keys where no row shows them (every row is broken): what was said, else the
    format's own.
    """
    defaults = (
        ("conversations", "from", "value")
        if name == "sharegpt"
        else ("messages", "role", "content")
    )
    told = tuple(
        columns.get(field, default)
        for field, default in zip(MESSAGE_FIELDS, defaults, strict=False)
    )
    if keys and told[0] not in keys:
        seen = ", ".join(list(keys)[:12])
        fix = "--columns messages=KEY, or another --format"
        raise InputError(
            "data-columns",
            f"no {told[0]} in these rows; their keys are {seen}",
            where=where,
            fix=fix,
        )
    return told[0], told[1], told[2]


def roles_of(
    objects: list[dict[str, Any]], columns: Mapping[str, str], name: LayoutName
) -> Mapping[str, str]:
    """The names of the roles: those of the format, unless nearly all messages use the other
    format's.
    """
    votes: Counter[str] = Counter()
    for row in objects:
        messages = row.get(columns["messages"])
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and isinstance(role := message.get(columns["role"]), str):
                votes[
                    "sharegpt"
                    if role in ("human", "gpt")
                    else "openai"
                    if role in ("user", "assistant")
                    else ""
                ] += 1
    own, other = ("sharegpt", "openai") if name == "sharegpt" else ("openai", "sharegpt")
    chosen = other if votes[other] > 2 * votes[own] else own
    return SHAREGPT_ROLES if chosen == "sharegpt" else OPENAI_ROLES
