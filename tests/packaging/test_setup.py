"""The set-up behind demo.sh and test.sh, against fake Pythons in a checkout whose folder has a
space.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FAKES = Path(__file__).with_name("fakes")
TOOLS = (
    "bash", "basename", "cat", "cp", "cut", "dirname", "env", "flock", "grep", "mkdir", "mv",
    "readlink", "rm", "sed", "sha256sum",
)  # fmt: skip
FOREIGN = {"torch": "2.7.1+rocm6.3", "torchvision": "0.22.1+rocm6.3", "torchaudio": "2.7.1+rocm6.3"}


@dataclass
class Machine:
    """A checkout, and a PATH that holds the tools the scripts may use, no Python, and what the test
    adds.
    """

    checkout: Path
    bin: Path
    calls_file: Path
    settings: dict[str, str] = field(default_factory=dict)

    def add_python(self, name: str, version: str) -> None:
        program = self.bin / name
        program.write_text(
            f'#!/bin/sh\nFAKE_VERSION={version} exec "{self.bin}/fakes/{name}" "$@"\n'
        )
        program.chmod(0o755)
        (self.bin / "fakes").mkdir(exist_ok=True)
        shutil.copy(FAKES / "python.sh", self.bin / "fakes" / name)

    def add_tool(self, name: str, script: str) -> None:
        program = self.bin / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **settings: str
    ) -> tuple[int, str]:
        environment = {
            "PATH": str(self.bin),
            "CALLS": str(self.calls_file),
            "REAL_PYTHON": sys.executable,
            "FAKE_UV": str(FAKES / "uv.sh"),
            "FAKE_VERSION": "3.12",
            **self.settings,
            **settings,
        }
        self.calls_file.write_text("")
        done = subprocess.run(
            [str(self.checkout / "scripts" / script), *arguments],
            cwd=cwd or self.bin,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    @property
    def venv(self) -> Path:
        return self.checkout / ".venv"

    def put_into_venv(self, **versions: str) -> None:
        for name, version in versions.items():
            info = self.venv / "lib/python3.12/site-packages" / f"{name}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )

    def change_pyproject(self) -> None:
        with (self.checkout / "pyproject.toml").open("a") as file:
            file.write("# changed\n")


@pytest.fixture
def machine(checkout: Path, tmp_path: Path) -> Machine:
    copy = tmp_path / "检出 folder"
    copy.mkdir()
    shutil.copytree(checkout / "scripts", copy / "scripts")
    for name in ("pyproject.toml", "constraints.txt", "constraints-torch.txt"):
        shutil.copy(checkout / name, copy)
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (programs / tool).symlink_to(found)
    return Machine(copy, programs, tmp_path / "calls")


@pytest.fixture
def ready(machine: Machine) -> Machine:
    machine.add_python("python3", "3.12")
    code, output = machine.run("setup.sh", "train")
    assert code == 0, output
    return machine


UV_WAY = "uv python install 3.11"
CONDA_WAY = (
    "conda create -y -n iisft -c conda-forge --override-channels python=3.11 && conda "
    "activate iisft"
)
APT_WAY = (
    "sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -y python3.11 "
    "python3.11-venv"
)


@pytest.mark.parametrize(
    ("tools", "way"),
    [((), APT_WAY), (("conda",), CONDA_WAY), (("conda", "uv"), UV_WAY)],
    ids=["apt", "conda", "uv"],
)
@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_unsupported_python_is_told_the_command(
    machine: Machine, version: str, tools: tuple[str, ...], way: str
) -> None:
    machine.add_python("python3", version)
    for tool in tools:
        machine.add_tool(tool, "exit 1")

    code, output = machine.run("demo.sh")

    assert code == 4
    assert f"iisft needs Python 3.11, 3.12 or 3.13; python3 here: {version}." in output
    assert f"Run: {way}\n" in output
    assert all(other in output for other in (UV_WAY, CONDA_WAY, APT_WAY))
    assert not machine.venv.exists()


def test_no_python_at_all(machine: Machine) -> None:
    code, output = machine.run("test.sh")

    assert code == 4
    assert "python3 here: none." in output


def test_python_without_venv_is_told_the_package(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")

    code, output = machine.run("setup.sh", FAKE_ENSUREPIP="None")

    assert code == 4
    assert "Run: sudo apt-get install -y python3.11-venv\n" in output
    assert not machine.venv.exists()


def test_a_python_that_cannot_start_is_passed_over(machine: Machine) -> None:
    machine.add_tool("python3.13", "echo 'command not found' >&2; exit 127")
    machine.add_python("python3.12", "3.12")
    machine.add_python("python3", "3.10")

    code, output = machine.run("setup.sh", "train")

    assert code == 0, output
    assert machine.calls[0] == f"python3.12 -m venv {machine.venv}"


def test_a_python_that_only_uv_knows_is_found(machine: Machine, tmp_path: Path) -> None:
    machine.add_python("hidden-python", "3.11")
    machine.add_tool("uv", f"[ \"$1 $2\" = 'python find' ] && echo '{machine.bin}/hidden-python'")

    code, output = machine.run("setup.sh", "train")

    assert code == 0, output
    assert machine.calls[0] == f"hidden-python -m venv {machine.venv}"


def test_first_call_installs_with_every_constraint(machine: Machine) -> None:
    machine.add_python("python3", "3.12")

    code, output = machine.run("setup.sh", "train")

    assert code == 0, output
    assert machine.calls == [
        f"python3 -m venv {machine.venv}",
        "python -m pip --version",
        "python -m pip install --quiet uv",
        "python -m pip config get global.index-url",
        f"uv pip install --python {machine.venv}/bin/python -e .[train] -c constraints.txt -c "
        "constraints-torch.txt",
    ]


def test_second_call_starts_nothing(ready: Machine) -> None:
    assert ready.run("setup.sh", "train") == (0, "")
    assert ready.calls == []


def test_a_venv_for_the_tests_serves_the_demo_but_not_the_reverse(ready: Machine) -> None:
    code, _ = ready.run("setup.sh", "train,dev")
    assert (code, ready.calls[-1].split(" -e ")[1].split()[0]) == (0, ".[train,dev]")

    ready.run("setup.sh", "train")
    assert ready.calls == []


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "constraints.txt", "constraints-torch.txt", ".venv/pyvenv.cfg"]
)
def test_a_change_installs_again(ready: Machine, name: str) -> None:
    file = ready.checkout / name
    file.write_text(file.read_text().replace("3.12.0", "3.12.1") + "# changed\n")

    assert ready.run("setup.sh", "train")[0] == 0
    assert len(ready.calls) > 0
    assert "venv" not in ready.calls[0].split()

    assert ready.run("setup.sh", "train")[0] == 0
    assert ready.calls == []


def test_pip_stands_in_for_uv(machine: Machine) -> None:
    machine.add_python("python3", "3.12")

    code, output = machine.run("setup.sh", "train", FAKE_NO_UV="1")

    assert code == 0, output
    assert (
        machine.calls[-1]
        == "python -m pip install -e .[train] -c constraints.txt -c constraints-torch.txt"
    )


def test_pip_is_tried_when_uv_fails(machine: Machine) -> None:
    machine.add_python("python3", "3.12")

    code, output = machine.run("setup.sh", "train", FAKE_UV_DOES="fail")

    assert code == 0, output
    assert machine.calls[-1].startswith("python -m pip install -e .[train]")


def test_a_failed_installation_is_said_and_repaired(machine: Machine) -> None:
    machine.add_python("python3", "3.12")

    code, output = machine.run("setup.sh", "train", FAKE_UV_DOES="fail", FAKE_PIP_EXIT="1")
    assert code == 4
    assert "installing failed" in output

    assert machine.run("setup.sh", "train")[0] == 0
    assert machine.run("setup.sh", "train") == (0, "")
    assert machine.calls == []


def test_a_killed_installation_is_made_anew(machine: Machine) -> None:
    machine.add_python("python3", "3.12")
    assert machine.run("setup.sh", "train", FAKE_UV_DOES="die")[0] == -9
    machine.put_into_venv(torch="2.11.0")
    (machine.venv / "half").touch()

    code, output = machine.run("setup.sh", "train")

    assert code == 0, output
    assert not (machine.venv / "half").exists()
    assert machine.calls[0].startswith("python3 -m venv")


@pytest.mark.parametrize("damage", ["python is gone", "python is too old", "checkout was moved"])
def test_a_broken_venv_is_made_anew(ready: Machine, damage: str) -> None:
    break_venv(ready, damage)
    (ready.venv / "half").touch()

    code, output = ready.run("setup.sh", "train")

    assert code == 0, output
    assert not (ready.venv / "half").exists()


@pytest.mark.parametrize("damage", ["python is gone", "python is too old", "checkout was moved"])
def test_a_broken_venv_with_a_torch_from_elsewhere_is_left(ready: Machine, damage: str) -> None:
    ready.put_into_venv(**FOREIGN)
    break_venv(ready, damage)

    code, output = ready.run("setup.sh", "train")

    assert code == 4
    assert f"Delete {ready.venv} yourself" in output
    assert (ready.venv / "lib/python3.12/site-packages/torch-2.7.1+rocm6.3.dist-info").is_dir()


def break_venv(machine: Machine, damage: str) -> None:
    python = machine.venv / "bin/python"
    if damage == "checkout was moved":
        machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
        return
    python.unlink()
    if damage == "python is too old":
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        machine.change_pyproject()


def test_a_torch_from_elsewhere_is_kept(ready: Machine) -> None:
    ready.put_into_venv(**FOREIGN)
    ready.change_pyproject()

    code, output = ready.run("setup.sh", "train")

    assert code == 0, output
    assert ready.calls[-1].endswith("-e .[train] -c constraints.txt -c .venv/.iisft-kept-torch.txt")
    kept = (ready.venv / ".iisft-kept-torch.txt").read_text()
    assert kept == "torch==2.7.1+rocm6.3\ntorchvision==0.22.1+rocm6.3\ntorchaudio==2.7.1+rocm6.3\n"
    assert "keeping torch==2.7.1+rocm6.3, torchvision==0.22.1+rocm6.3" in output


def test_an_interrupted_set_up_around_a_kept_torch_copies_the_rest_again(ready: Machine) -> None:
    ready.put_into_venv(**FOREIGN)
    ready.change_pyproject()
    assert ready.run("setup.sh", "train", FAKE_UV_DOES="die")[0] == -9

    code, output = ready.run("setup.sh", "train")

    assert code == 0, output
    again = {
        word.split("=")[1]
        for word in ready.calls[-1].split()
        if word.startswith("--reinstall-package=")
    }
    assert {"transformers", "numpy", "llamafactory"} <= again
    assert not again & {"torch", "torchvision", "torchaudio", "sympy"}


def test_half_a_set_of_torch_from_elsewhere_is_refused(ready: Machine) -> None:
    ready.put_into_venv(torch=FOREIGN["torch"], torchaudio=FOREIGN["torchaudio"])
    ready.change_pyproject()

    code, output = ready.run("setup.sh", "train")

    assert code == 4
    assert "torch==2.7.1+rocm6.3 is here without torchvision." in output
    assert not [call for call in ready.calls if call.startswith("uv")]


def test_the_torch_that_was_installed_here_follows_its_constraints(ready: Machine) -> None:
    ready.put_into_venv(torch="2.11.0", torchvision="0.26.0", torchaudio="2.11.0")
    ready.change_pyproject()

    assert ready.run("setup.sh", "train")[0] == 0
    assert ready.calls[-1].endswith("-c constraints-torch.txt")


def test_demo_trains_in_the_checkout_and_keeps_the_current_folder(
    ready: Machine, tmp_path: Path
) -> None:
    program = ready.venv / "bin/iisft"
    program.write_text('#!/bin/sh\necho "$IISFT_HOME|$PWD|$*"\n')
    program.chmod(0o755)
    link = tmp_path / "demo"
    link.symlink_to(ready.checkout / "scripts/demo.sh")

    _, output = ready.run("demo.sh", "--name", "first", cwd=tmp_path)
    assert output == f"{ready.checkout}|{tmp_path}|train --preset demo --name first\n"

    _, output = ready.run(str(link), cwd=tmp_path, IISFT_HOME="/elsewhere")
    assert output == f"/elsewhere|{tmp_path}|train --preset demo\n"


CHECKS = [
    "ruff check",
    "ruff format --check",
    "mypy ",
    "lint-imports ",
    "zensical build --strict --clean",
]
WITH_COVERAGE = [
    "coverage run -m pytest -n 3 --dist loadfile --no-loadscope-reorder",
    "coverage combine --quiet",
    "coverage report --skip-covered",
]


@pytest.mark.parametrize(
    ("arguments", "tests"),
    [
        ((), WITH_COVERAGE),
        (
            ("--fast",),
            ["pytest -n 3 --dist loadfile --no-loadscope-reorder -m not matrix and not slow"],
        ),
        (("tests/runs", "-k", "plan"), ["pytest tests/runs -k plan"]),
    ],
)
def test_every_check_runs_and_any_failure_counts(
    arguments: tuple[str, ...], tests: list[str], ready: Machine
) -> None:
    ready.run("setup.sh", "train,dev")
    for name in ("ruff", "mypy", "lint-imports", "zensical", "pytest", "coverage"):
        program = ready.venv / "bin" / name
        fails = 'exit "${MYPY_EXIT:-0}"' if name == "mypy" else ""
        program.write_text(f'#!/bin/sh\necho "$PWD {name} $* offline=$HF_HUB_OFFLINE"\n{fails}\n')
        program.chmod(0o755)
    done = [f"{ready.checkout} {command} offline=1" for command in (*CHECKS, *tests)]

    code, output = ready.run("test.sh", *arguments)
    assert (code, [line for line in output.splitlines() if not line.startswith("==")]) == (0, done)

    code, output = ready.run("test.sh", *arguments, MYPY_EXIT="1")
    assert code == 1
    assert [line for line in output.splitlines() if not line.startswith("==")] == [
        *done,
        "failed: 'mypy'",
    ]


def test_scripts_can_be_run() -> None:
    scripts = Path(__file__).parents[2] / "scripts"
    assert all(os.access(file, os.X_OK) for file in scripts.glob("*.sh"))
