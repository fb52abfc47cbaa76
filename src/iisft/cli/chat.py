"""iisft chat: talk to a run's model in the terminal, or through a pipe."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console
from iisft.cli.options import (
    BaseModelOption,
    CheckpointOption,
    CpuOption,
    JsonOption,
    MaxTokensOption,
    RunArgument,
)
from iisft.errors import RunFailed, UsageError

if TYPE_CHECKING:
    from iisft.inference.talk import Conversation

_HELP = (
    'a line is a question; """ begins and ends one of several lines; /clear forgets, /help says '
    "this, /exit or Ctrl-D ends"
)
_QUOTES = '"""'


def chat(
    run: RunArgument = None,
    checkpoint: CheckpointOption = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt; default: the template's own.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 = greedy, as predict answers.")] = 0.0,
    max_tokens: MaxTokensOption = None,
    model: BaseModelOption = None,
    cpu: CpuOption = False,
    as_json: JsonOption = False,
) -> None:
    """Talk to a run's model.

    It computes as in training. Questions from a pipe are answered line by line.

    \b
    Examples:
      iisft chat RUN
      echo 'What is LoRA?' | iisft chat RUN
    """
    from iisft.cli.progress import prepare
    from iisft.inference import talk

    if temperature < 0:
        raise UsageError("temperature", f"--temperature must be at least 0, not {temperature:g}")
    ready = prepare(run, checkpoint, model, cpu=cpu, max_tokens=max_tokens)
    console.say("loading the model")
    with talk.conversation(
        ready.source,
        ready.chosen,
        system=system,
        temperature=temperature,
        max_new_tokens=ready.max_new_tokens,
    ) as conversation:
        at_terminal = sys.stdin.isatty()
        if at_terminal:
            console.say(_HELP)
        turns = _answer_all(conversation, quiet=as_json, at_terminal=at_terminal)
    if as_json:
        console.out_json(turns)


def _answer_all(
    conversation: "Conversation", *, quiet: bool, at_terminal: bool
) -> list[dict[str, str]]:
    turns = []
    for question in _questions(at_terminal=at_terminal):
        if question == "/clear":
            conversation.turns.clear()
            continue
        if question.startswith("/") and question[1:].isalpha():  # no question, a slip
            console.say(_HELP if question == "/help" else f"no command {question}: {_HELP}")
            continue
        try:
            answer = ""
            with contextlib.closing(conversation.ask(question)) as parts:
                for text in parts:
                    answer += text
                    if not quiet:
                        console.out_live(text, end="")
            if not quiet:
                console.out()
            turns.append({"question": question, "answer": answer})
        except RunFailed as error:
            if not at_terminal or error.code != "no-answer":
                raise
            console.failure(error)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            console.out()  # the answer is cut off and forgotten; the conversation goes on
    return turns


def _questions(*, at_terminal: bool) -> Iterator[str]:
    while (line := _line("> ", at_terminal=at_terminal)) is not None:
        text = line.strip()
        if text.startswith(_QUOTES):
            text = _block(text.removeprefix(_QUOTES), at_terminal=at_terminal)
        if text == "/exit":
            return
        if text:
            yield text


def _block(first: str, *, at_terminal: bool) -> str:
    """Lines up to the one that ends with three quotes."""
    lines = [first] if first else []
    while not (lines and lines[-1].rstrip().endswith(_QUOTES)):
        if (line := _line(". ", at_terminal=at_terminal)) is None:
            break
        lines.append(line)
    return "\n".join(lines).rstrip().removesuffix(_QUOTES).strip("\n")


def _line(prompt: str, *, at_terminal: bool) -> str | None:
    """The next line; None at the end of the input."""
    if not at_terminal:
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its history and editing
    try:
        return input(prompt)
    except EOFError:
        return None
