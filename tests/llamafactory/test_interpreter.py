"""What keeps an interpreter from training, each with the command that mends it."""

from pathlib import Path

import pytest

from iisft.llamafactory import interpreter
from iisft.llamafactory.interpreter import Interpreter

SOUND = {"llamafactory": "0.9.5", "torch": "2.11.0"}


def make(
    tmp_path: Path, packages: dict[str, str], *, cli: bool = True, launcher: str = "/lib/launcher.py"
) -> Interpreter:
    if cli:
        (tmp_path / "llamafactory-cli").touch()
    return Interpreter(tmp_path / "python", "3.11.7", packages, Path(launcher))


def ids(found: Interpreter, vendor: str = "cpu", ranks: int = 1, needs: tuple[str, ...] = ()) -> list[str]:
    return [finding.id for finding in interpreter.findings(found, vendor, ranks, needs)]


def test_a_sound_interpreter_has_none(tmp_path: Path) -> None:
    assert ids(make(tmp_path, SOUND), ranks=2) == []
    assert ids(make(tmp_path, {**SOUND, "torch": "2.7.1+rocm6.3"}), "amd") == []


@pytest.mark.parametrize(
    ("vendor", "fix"),
    [
        ("amd", "pip install torch==2.7.1 torchvision==0.22.1 torchaudio==2.7.1 --index-url"),
        ("nvidia", "pip install 'iisft[train]' -c constraints.txt -c constraints-torch.txt"),
        ("cpu", "pip install 'iisft[train]' -c constraints.txt -c constraints-torch.txt"),
    ],
)
def test_the_install_command_is_that_of_the_hardware(tmp_path: Path, vendor: str, fix: str) -> None:
    [finding] = interpreter.findings(make(tmp_path, {}), vendor, 1)
    assert finding.message.startswith("llamafactory and torch not installed")
    assert finding.fix.startswith(fix)


def test_each_fault_is_named(tmp_path: Path) -> None:
    assert ids(make(tmp_path / "none", SOUND, cli=False)) == ["llamafactory-cli-missing"]
    assert ids(make(tmp_path, SOUND, launcher="/a b/launcher.py"), ranks=2) == ["launcher-path-spaces"]
    assert ids(make(tmp_path, SOUND, launcher="/a b/launcher.py"), ranks=1) == []
    assert ids(make(tmp_path, SOUND), "amd") == ["torch-not-rocm"]
    assert ids(make(tmp_path, SOUND), needs=("bitsandbytes",)) == ["package-missing"]
    assert ids(make(tmp_path, {**SOUND, "llamafactory": "0.9.3"})) == ["llamafactory-version"]


def test_the_interpreter_of_the_tests_reports_itself_alike_from_inside_and_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = interpreter.inspect(interpreter.training_interpreter())
    monkeypatch.setattr("sys.executable", "/another/python")
    assert interpreter.inspect(here.path) == here
