"""On ROCm the person installs torch first, and nothing that iisft installs may replace it."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The set that the README gives for an MI50, with what torch itself brings from the same place.
ROCM = {
    "torch": (
        "2.7.1+rocm6.3",
        ("sympy>=1.13.3", "networkx", "jinja2", "fsspec", "pytorch-triton-rocm==3.3.1"),
    ),
    "torchvision": ("0.22.1+rocm6.3", ("numpy", "torch==2.7.1", "pillow>=5.3.0,!=8.3.*")),
    "torchaudio": ("2.7.1+rocm6.3", ("torch==2.7.1",)),
    "pytorch-triton-rocm": ("3.3.1", ()),
}
# torch 2.6 demands one exact sympy, older than what torch 2.11 wants.
ROCM_2_6 = {
    "torch": (
        "2.6.0+rocm6.2.4",
        ("sympy==1.13.1", "networkx", "jinja2", "fsspec", "pytorch-triton-rocm==3.2.0"),
    ),
    "torchvision": ("0.21.0+rocm6.2.4", ("numpy", "torch==2.6.0", "pillow>=5.3.0,!=8.3.*")),
    "torchaudio": ("2.6.0+rocm6.2.4", ("torch==2.6.0",)),
    "pytorch-triton-rocm": ("3.2.0", ()),
    "sympy": ("1.13.1", ()),
}
# TheRock and the ML-gfx906 images: ahead of the public PyTorch index.
ROCM_2_13 = {
    "torch": ("2.13.0+rocm7.14", ("sympy>=1.13.3", "networkx", "jinja2", "fsspec", "setuptools")),
    "torchvision": ("0.28.0+rocm7.14", ("numpy", "torch==2.13.0", "pillow>=5.3.0,!=8.3.*")),
    "torchaudio": ("2.11.0+rocm7.14", ()),
}
ROCM_2_14 = {
    "torch": ("2.14.1+rocm7.15", ROCM_2_13["torch"][1]),
    "torchvision": ("0.29.1+rocm7.15", ("numpy", "torch==2.14.1", "pillow>=5.3.0,!=8.3.*")),
    "torchaudio": ("2.11.0+rocm7.15", ()),
}
TRIO = ("torch", "torchvision", "torchaudio")

Distributions = dict[str, tuple[str, tuple[str, ...]]]


def stub_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...]) -> Path:
    module = name.replace("-", "_")
    file = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", f'__version__ = "{version}"\n')
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return file


def changes(report: str) -> dict[str, set[str]]:
    """What a dry run would install (+) and remove (-): names with versions."""
    found: dict[str, set[str]] = {"+": set(), "-": set()}
    for sign, what in re.findall(r"^ ([-+]) (\S+)", report, flags=re.MULTILINE):
        found[sign].add(what)
    return found


@pytest.fixture
def install_stubs(
    uv: Callable[..., str], empty_venv: Path, tmp_path: Path
) -> Callable[[Distributions], None]:
    def install(distributions: Distributions) -> None:
        stubs = [stub_wheel(tmp_path, name, *rest) for name, rest in distributions.items()]
        uv("pip", "install", "--python", str(empty_venv), "--no-deps", *map(str, stubs))

    return install


@pytest.fixture
def dry_run(
    uv: Callable[..., str], empty_venv: Path, install_stubs: Callable[[Distributions], None]
) -> Callable[..., str]:
    def run(installed: Distributions, *constraints: str) -> str:
        install_stubs(installed)
        options = [option for file in constraints for option in ("-c", file)]
        return uv("pip", "install", "--dry-run", "--python", str(empty_venv), ".[train]", *options)

    return run


@pytest.mark.parametrize(
    "installed",
    [ROCM, ROCM_2_6, ROCM_2_13, ROCM_2_14],
    ids=lambda trio: f"torch {trio['torch'][0]}",
)
def test_constraints_leave_a_rocm_torch_alone(
    dry_run: Callable[..., str], installed: Distributions
) -> None:
    would = changes(dry_run(installed, "constraints.txt"))

    names = {what.split("==")[0] for what in would["+"]}
    assert {"iisft", "llamafactory", "transformers", "peft"} <= names, (
        "the resolution did not happen"
    )
    assert not would["-"]
    assert not names & {*installed, "triton"}
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


def test_pip_leaves_a_torch_ahead_of_the_index_alone(
    empty_venv: Path,
    install_stubs: Callable[[Distributions], None],
    checkout: Path,
    machine_environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    """Without any constraints: what the extra says is enough."""
    install_stubs(ROCM_2_13)
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "--python", str(empty_venv / "bin/python"), "install"]
    done = subprocess.run(
        [*pip, "--dry-run", "--quiet", "--report", str(report), f"{checkout}[train]"],
        env=machine_environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    would = json.loads(report.read_text())["install"]
    names = {one["metadata"]["name"].lower() for one in would}
    assert {"iisft", "llamafactory", "transformers", "peft"} <= names
    assert not names & {*ROCM_2_13, "triton"}
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("torch", ["", "torch==2.11.0\n"])
def test_the_extra_alone_gives_a_torchaudio_that_can_be_imported(
    uv: Callable[..., str], tmp_path: Path, python: str, torch: str
) -> None:
    """2.11.1 needs symbols that torch 2.11 does not have, though its metadata admits that torch.

    2.11.0 has been imported under torch 2.11.0 and 2.14.1.
    """
    override = tmp_path / "also.txt"
    override.write_text(torch)
    options = ("--python-version", python, "--python-platform", "x86_64-manylinux_2_28")
    resolved = uv(
        "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--extra", "train", *options,
        "-c", str(override), "pyproject.toml",
    )  # fmt: skip
    pins = dict(line.split("==") for line in resolved.splitlines() if re.match(r"torch\w*==", line))
    wanted = torch.strip().removeprefix("torch==") or "2.14.1"
    assert pins["torch"] == wanted
    assert pins["torchaudio"] == "2.11.0"


def test_constraints_for_torch_would_replace_it(dry_run: Callable[..., str]) -> None:
    """The test above can fail: this is what it sees when torch's own set is asked for too."""
    removed = changes(dry_run(ROCM, "constraints.txt", "constraints-torch.txt"))["-"]

    assert removed >= {f"{name}=={ROCM[name][0]}" for name in TRIO}


def test_constraints_hold_names_and_versions_only(checkout: Path) -> None:
    pins = (checkout / "constraints.txt").read_text().splitlines()
    torch_pins = (checkout / "constraints-torch.txt").read_text().splitlines()

    for line in (*pins, *torch_pins):
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?", line), line
        assert "://" not in line
    names = {line.split("==")[0] for line in pins}
    assert not names & {*TRIO, "triton"}
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]
    assert {line.split("==")[0] for line in torch_pins} >= set(TRIO)
