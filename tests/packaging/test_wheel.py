"""A wheel built from the checkout works in an environment that holds nothing else."""

import json
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from iisft import __version__

pytestmark = pytest.mark.slow


def output_of(argv: list[str], folder: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _answers(folder: Path, every: int) -> Path:
    """A file of thirty predictions, right in every so-manieth row."""
    file = folder / f"every {every}.jsonl"
    lines = (
        {"reference": f'{{"keep": {row % 3}}}', "prediction": f'{{"keep": {row % every % 3}}}'}
        for row in range(30)
    )
    file.write_text("".join(json.dumps({"prompt": "q"} | line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def wheel(
    checkout: Path, machine_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Built by way of the sdist, so that this has what the wheel needs, too."""
    folder = tmp_path_factory.mktemp("dist")
    argv = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    output_of([*argv, str(checkout)], folder, machine_environment)
    [file] = folder.glob("*.whl")
    return file


@pytest.mark.parametrize(
    ("folder", "files"),
    [("configs", "configs/*"), ("constraints", "constraints*.txt")],
)
def test_wheel_ships_presets_and_constraints_as_they_are(
    wheel: Path, checkout: Path, folder: str, files: str
) -> None:
    prefix = f"iisft/{folder}/"
    with zipfile.ZipFile(wheel) as archive:
        shipped = {
            name.removeprefix(prefix): archive.read(name)
            for name in archive.namelist()
            if name.startswith(prefix)
        }

    assert shipped == {file.name: file.read_bytes() for file in checkout.glob(files)}


def test_wheel_ships_the_package_and_nothing_beside_it(wheel: Path, checkout: Path) -> None:
    source = checkout / "src"
    code = {
        str(file.relative_to(source))
        for file in source.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name
            for name in archive.namelist()
            if not any(part in name for part in (".dist-info/", "/configs/", "/constraints/"))
        }

    assert names == code


def test_wheel_works_in_an_empty_environment(
    wheel: Path,
    uv: Callable[..., str],
    empty_venv: Path,
    checkout: Path,
    machine_environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    uv("pip", "install", "--python", str(empty_venv), str(wheel), "-c", "constraints.txt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments: str) -> str:
        program = str(empty_venv / "bin/iisft")
        return output_of([program, *arguments], elsewhere, machine_environment)

    def run_any(*arguments: str) -> str:
        argv = [str(empty_venv / "bin/iisft"), *arguments]
        return subprocess.run(
            argv,
            cwd=elsewhere,
            env=machine_environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        ).stdout

    assert __version__ in run("--version")
    presets = json.loads(run("preset", "list", "--json"))
    assert {preset["name"] for preset in presets} == {
        file.stem for file in (checkout / "configs").glob("*.yaml")
    }
    assert run("evaluate", str(_answers(tmp_path, 2)), "--json")
    compared = json.loads(
        run("compare", str(_answers(tmp_path, 2)), str(_answers(tmp_path, 3)), "--json")
    )
    assert compared["rows"] == 30
    assert "torch==" not in uv("pip", "freeze", "--python", str(empty_venv))
    assert not list(elsewhere.iterdir()), "listing presets wrote into the workspace"
    # The command that its fix names works here, where no checkout is.
    judged = json.loads(run_any("env-check", "--json"))
    [fix] = [one["fix"] for one in judged["findings"] if one["id"] == "llamafactory-missing"]
    named = [Path(word) for word in shlex.split(fix) if word.endswith(".txt")]
    assert named
    assert all(file.is_relative_to(empty_venv) and file.is_file() for file in named)
