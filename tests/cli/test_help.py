"""What `--help` shows, for every command."""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from iisft.cli.app import app

Cli = Callable[..., Any]


def every_command(
    command: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from every_command(child, (*path, name))


COMMANDS = dict(every_command())
PATHS = list(COMMANDS)


def section(text: str, heading: str) -> list[str]:
    lines = itertools.dropwhile(lambda line: line != f"{heading}:", text.splitlines())
    return list(itertools.takewhile(str.strip, itertools.islice(lines, 1, None)))


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_commands_stand_in_the_order_of_work(iisft: Cli) -> None:
    shown = iisft("--help").out
    groups = {
        heading: [line.split()[0] for line in section(shown, heading)]
        for heading in ("Prepare", "Train", "Use")
    }
    assert groups == {
        "Prepare": ["env-check", "download", "models", "plan", "preset", "model", "data"],
        "Train": [
            "rehearse",
            "train",
            "sweep",
            "status",
            "watch",
            "logs",
            "wait",
            "stop",
            "resume",
            "runs",
            "queue",
            "notify",
        ],
        "Use": ["predict", "evaluate", "compare", "report", "chat", "serve", "export"],
    }
    assert "Commands:" not in shown  # every command is in a group


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_has_an_example_that_can_be_typed(iisft: Cli, path: tuple[str, ...]) -> None:
    shown = iisft(*path, "--help")
    assert shown.code == 0
    assert shown.err == ""
    examples = [line.strip() for line in re.split(r"Examples?:\n", shown.out)[1].splitlines()]
    first = next(iter(itertools.takewhile(bool, examples)))
    assert f"iisft {' '.join(path)}".strip() in first
    for example in itertools.takewhile(bool, examples):
        typed = example.split("iisft ", 1)[1].split(" && ")[0].split(" > ")[0].split()
        command = COMMANDS[()]
        while typed and typed[0] in getattr(command, "commands", {}):
            command = command.commands[typed.pop(0)]
        options = {text for parameter in command.params for text in parameter.opts}
        assert {word for word in typed if word.startswith("-")} <= options, example


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_short_help_is_help(iisft: Cli, path: tuple[str, ...]) -> None:
    assert iisft(*path, "-h") == iisft(*path, "--help")


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_eighty_columns_hold_every_line_and_cut_no_summary(
    iisft: Cli, path: tuple[str, ...]
) -> None:
    shown = iisft(*path, "--help").out
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    for heading in ("Prepare", "Train", "Use", "Commands"):
        for line in section(shown, heading):
            name, summary = line.split(maxsplit=1)
            child = COMMANDS[(*path, name)]
            assert summary == child.help.split("\n")[0]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_option_and_argument_has_a_help_text(path: tuple[str, ...]) -> None:
    silent = [p.name for p in COMMANDS[path].params if not getattr(p, "help", None)]
    assert silent == []
