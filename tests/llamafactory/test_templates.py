"""The templates that iisft ships are those of the LLaMA-Factory that it is made for, and another
version is asked for its own.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from iisft.errors import InputError
from iisft.llamafactory import catalogue, interpreter, turns
from iisft.llamafactory.interpreter import Interpreter

PYTHON = Path(os.environ.get("IISFT_PYTHON") or sys.executable)


@pytest.fixture
def shipped() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(catalogue.SNAPSHOT.read_text(encoding="utf-8"))
    return document


def test_the_snapshot_is_what_the_installed_llamafactory_says(shipped: dict[str, Any]) -> None:
    assert catalogue.ask(PYTHON) == shipped


def test_every_template_is_rendered_as_llamafactory_did() -> None:
    found = catalogue.snapshot()
    assert len(found.templates) == 121
    assert sum(not one.needs_processor for one in found.templates.values()) == 73
    for name, template in found.templates.items():
        assert turns.unlike(template, found.probes, found.rendered[name]) == [], name


def other_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, document: dict[str, Any]
) -> list[Path]:
    """Let the training interpreter have LLaMA-Factory 0.9.6, whose child says this."""
    asked: list[Path] = []

    def ask(python: Path) -> dict[str, Any]:
        asked.append(python)
        return document

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "缓存"))
    fake = Interpreter(tmp_path / "python", "3.11", {"llamafactory": "0.9.6"}, None)
    monkeypatch.setattr(catalogue, "inspect", lambda path: fake)
    monkeypatch.setattr(catalogue, "ask", ask)
    catalogue._asked.cache_clear()
    return asked


def test_another_version_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shipped: dict[str, Any]
) -> None:
    shipped["version"] = "0.9.6"
    shipped["templates"]["new"] = shipped["templates"].pop("yuan")
    shipped["rendered"]["new"] = shipped["rendered"].pop("yuan")
    asked = other_version(monkeypatch, tmp_path, shipped)
    for _ in range(2):
        found = catalogue.catalogue()
        assert found.version == "0.9.6" and found.template("new").user and not found.refused
        catalogue._asked.cache_clear()
    assert len(asked) == 1
    with pytest.raises(InputError, match=r"LLaMA-Factory 0\.9\.6 has no template 'yuan'"):
        found.template("yuan")


def test_a_template_that_another_version_renders_otherwise_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shipped: dict[str, Any]
) -> None:
    shipped["version"] = "0.9.6"
    shipped["rendered"]["qwen"][0] = "something else"
    other_version(monkeypatch, tmp_path, shipped)
    found = catalogue.catalogue()
    assert list(found.refused) == ["qwen"]
    with pytest.raises(InputError, match="in a way that iisft does not know"):
        found.template("qwen")


def test_a_torn_answer_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shipped: dict[str, Any]
) -> None:
    asked = other_version(monkeypatch, tmp_path, shipped)
    catalogue.catalogue()
    [file] = (tmp_path / "缓存" / "iisft").glob("templates-*.json")
    file.write_text(json.dumps({**shipped, "templates": {"qwen": {"class": 1}}}))
    catalogue._asked.cache_clear()
    assert len(catalogue.catalogue().templates) == 121
    assert len(asked) == 2


def test_an_interpreter_that_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        catalogue.ask(tmp_path / "no python")
    assert interpreter.TESTED_VERSION in catalogue.SNAPSHOT.name


def test_a_name_with_a_typo() -> None:
    with pytest.raises(InputError) as caught:
        catalogue.snapshot().template("qwem")
    assert caught.value.code == "template-unknown"
    assert "did you mean qwen?" in caught.value.message
