"""The manual says what the code says: generated pages are fresh, and what is named exists."""

import importlib.util
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from iisft.cli.app import app
from iisft.errors import ExitCode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
PAGES = sorted(DOCS.rglob("*.md"))


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("make", ROOT / "scripts" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_reference_is_what_the_code_says() -> None:
    stale = [
        name
        for name, text in generator().pages().items()
        if (DOCS / "reference" / name).read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: .venv/bin/python scripts/make_reference.py"


def test_every_exit_code_has_a_meaning() -> None:
    assert set(generator().EXIT_CODES) == set(ExitCode)


def json_commands(command: Any, path: str = "") -> Iterator[str]:
    if any("--json" in parameter.opts for parameter in command.params):
        yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from json_commands(child, f"{path} {name}".strip())


def test_every_command_that_prints_json_is_described() -> None:
    entries = generator().described_json()
    described = {name.split(" --")[0] for entry in entries for name in entry.split(", ")}
    assert described == set(json_commands(typer.main.get_command(app)))


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(inner)


def test_the_site_shows_every_page_once() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(leaves(nav)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_variable_of_ours_is_in_the_manual() -> None:
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "src" / "iisft").rglob("*.py")
        if path.parent.name != "child"
    )
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(IISFT_[A-Z_]+)\"", sources))
    assert read >= {"IISFT_HOME", "IISFT_DEBUG"}
    assert {name for name in read if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=shown)
def test_every_command_in_a_page_can_be_typed(page: Path) -> None:
    root: Any = typer.main.get_command(app)
    wrong = []
    for line in fenced(page.read_text(encoding="utf-8")):
        typed = re.sub(r"\s#.*", "", line).removeprefix("$ ").split()
        if typed[:1] != ["iisft"] or "COMMAND" in typed:
            continue
        command, words = root, typed[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for option in command.params for name in option.opts}
        options |= {"--help", "-h", "--install-completion"}
        mine = list(itertools.takewhile(lambda word: word not in ("&&", "|", ">", "iisft"), words))
        wrong += [
            f"{line}: {word}" for word in mine if word.startswith("-") and word not in options
        ]
        if command is root and not set(words) & options:
            wrong.append(line)
    assert wrong == []


def fenced(text: str) -> Iterator[str]:
    """The lines of every code block, indented ones too."""
    inside = False
    for line in text.splitlines():
        if line.strip().startswith("```"):
            inside = not inside
        elif inside:
            yield line.strip()


@pytest.mark.parametrize("page", [*READMES, ROOT / "CONTRIBUTING.md"], ids=shown)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", READMES, ids=shown)
def test_a_readme_can_be_read_in_one_go(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 160


def test_every_path_in_the_architecture_exists() -> None:
    text = (DOCS / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.-]+/[\w./-]*|\w+\.(?:py|toml))`", text))
    assert len(named) > 60
    places = (ROOT, ROOT / "src" / "iisft")
    assert [name for name in named if not any((top / name).exists() for top in places)] == []


def test_every_room_is_on_the_map() -> None:
    text = (DOCS / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "src" / "iisft").glob("*/__init__.py")}
    assert {room for room in rooms if f"`{room}/" not in text} == set()
