"""A row of any format as the turns that LLaMA-Factory trains on.

Source: AlpacaDatasetConverter and SharegptDatasetConverter in LLaMA-Factory 0.9.5,
data/converter.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["user", "assistant", "observation", "function_call"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    User and observation are read by the model, assistant and function_call are what it learns to
    say.
    """

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What LLaMA-Factory makes of one row: turns that alternate, prompt side first, the last one is
    the answer.

    `system` and `tools` are empty where the row has none; the template then puts in its own
    default.
    """

    messages: tuple[Message, ...]
    system: str = ""
    tools: str = ""


def from_alpaca(row: Mapping[str, Any]) -> Conversation:
    """The conversation of a checked Alpaca row (instruction, input, output, and perhaps system,
    history).

    Instruction and input are joined by a line end; either is left out when it is empty, like an
    absent key.
    """
    messages = []
    for question, answer in row.get("history") or ():
        messages += [Message("user", question), Message("assistant", answer)]
    question = "\n".join(part for part in (row.get("instruction"), row.get("input")) if part)
    messages += [Message("user", question), Message("assistant", row["output"])]
    return Conversation(tuple(messages), row.get("system") or "", row.get("tools") or "")


def from_row(row: Mapping[str, Any]) -> Conversation:
    """The conversation of a checked row as it is staged, in either form (Alpaca keys,
    or messages).
    """
    if "messages" not in row:
        return from_alpaca(row)
    messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
    return Conversation(messages, row.get("system") or "", row.get("tools") or "")
