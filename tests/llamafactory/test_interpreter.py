"""What keeps an interpreter from training, each with the command that mends it.

And what it says about itself.
"""

import shlex
from pathlib import Path

import pytest

from iisft.llamafactory import interpreter
from iisft.llamafactory.interpreter import Interpreter
from iisft.machine.doctor import inspect

SOUND = {"llamafactory": "0.9.5", "torch": "2.11.0"}


def make(tmp_path: Path, packages: dict[str, str], *, cli: bool = True) -> Interpreter:
    if cli:
        (tmp_path / "llamafactory-cli").touch()
    return Interpreter(tmp_path / "python", "3.11.7", packages, Path("/lib/launcher.py"))


def test_a_sound_interpreter_has_no_errors(tmp_path: Path) -> None:
    assert inspect.interpreter_errors(make(tmp_path, SOUND)) == []


def test_an_empty_interpreter_is_told_what_to_install(tmp_path: Path) -> None:
    [finding] = inspect.interpreter_errors(make(tmp_path, {}))
    assert (finding.id, finding.message) == (
        "llamafactory-missing",
        f"llamafactory and torch not installed for {tmp_path}/python",
    )
    words = shlex.split(finding.fix)
    assert words[:4] == ["pip", "install", "iisft[train]", "-c"]
    assert [Path(words[4]).name, words[5], Path(words[6]).name, *words[7:]] == [
        "constraints.txt",
        "-c",
        "constraints-torch.txt",
    ]
    assert Path(words[4]).is_file()
    assert Path(words[6]).is_file()


def test_a_command_that_is_missing_beside_the_interpreter(tmp_path: Path) -> None:
    [finding] = inspect.interpreter_errors(make(tmp_path, SOUND, cli=False))
    assert (finding.id, finding.where) == (
        "llamafactory-cli-missing",
        str(tmp_path / "llamafactory-cli"),
    )


def test_the_interpreter_of_the_tests_reports_itself_alike_from_inside_and_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = interpreter.inspect(interpreter.training_interpreter())
    monkeypatch.setattr("sys.executable", "/another/python")
    assert interpreter.inspect(here.path) == here
