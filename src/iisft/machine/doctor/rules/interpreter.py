"""The training interpreter: what it is, what it lacks, what it can't import."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.llamafactory.arguments import needed_packages
from iisft.llamafactory.interpreter import TESTED_VERSION
from iisft.llamafactory.torch_sets import install
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import bitsandbytes_for, by_hand, line, pip, torch_for
from iisft.quoting import is_count
from iisft.rules import Fix, rule, seen


def torch_fix(case: Case) -> Fix:
    """The install commands for the GPUs that would train, else for the preset's, else for any."""
    wanted = case.preset.hardware if case.preset and not case.gpus and not case.on_cpu else None
    arch = case.gpus[0].arch or case.gpus[0].vendor if case.gpus else wanted.arch if wanted else ""
    return torch_for(arch, case.machine.host)


def _where(case: Case) -> str:
    return str(case.machine.interpreter.path) if case.machine.interpreter else ""


@rule("llamafactory-missing", applies="the training interpreter", source="package metadata")
def llamafactory_missing(case: Case) -> Iterator[Finding]:
    """The interpreter that is to train lacks torch or LLaMA-Factory."""
    found = case.machine.interpreter
    missing = [name for name in ("llamafactory", "torch") if found and name not in found.packages]
    if found and missing:
        yield seen(
            f"{' and '.join(missing)} not installed for {found.path}",
            str(found.path),
            torch_fix(case),
        )


@rule(
    "llamafactory-cli-missing",
    applies="the training interpreter",
    source="files beside the interpreter",
)
def cli_missing(case: Case) -> Iterator[Finding]:
    """The package is there and its command is not: an installation cut short, or a moved
    environment.
    """
    found = case.machine.interpreter
    if found and "llamafactory" in found.packages and not case.machine.launcher_present:
        yield seen(
            "llamafactory is installed, but its command is not beside the interpreter",
            str(found.cli),
            pip(f"pip install --force-reinstall --no-deps llamafactory=={TESTED_VERSION}"),
        )


@rule(
    "launcher-path-spaces",
    applies="several ranks",
    source="LLaMA-Factory launcher.py splits at spaces",
)
def spaces_in_path(case: Case) -> Iterator[Finding]:
    """LLaMA-Factory builds its torchrun command as text and splits it at spaces."""
    found = case.machine.interpreter
    several = case.ranks * case.nodes > 1 or case.several
    if found and several and any(letter.isspace() for letter in str(found.launcher or "")):
        yield seen(
            "LLaMA-Factory splits its torchrun command at spaces, and its own path has one: more "
            "than one rank can't "
            "start",
            str(found.launcher),
            by_hand(
                "make the virtual environment in a folder without spaces and set IISFT_PYTHON to "
                "its python"
            ),
        )


@rule(
    "package-missing",
    applies="presets that need more than LLaMA-Factory",
    source="LLaMA-Factory parser.py",
)
def package_missing(case: Case) -> Iterator[Finding]:
    """nf4 weights need bitsandbytes, zero2 and zero3 need DeepSpeed."""
    found = case.machine.interpreter
    if case.preset and found and "llamafactory" in found.packages:
        for name in needed_packages(case.preset):
            if name not in found.packages:
                wanted = "'deepspeed>=0.10.0,<=0.18.4'" if name == "deepspeed" else name
                yield seen(
                    f"this preset needs {name}, which is not installed for {found.path}",
                    str(found.path),
                    bitsandbytes_for("gfx906")
                    if name == "bitsandbytes" and "gfx906" in case.archs
                    else pip(f"pip install {wanted}"),
                )


@rule(
    "llamafactory-version",
    applies="the training interpreter",
    source="the version that iisft is tested with",
)
def other_version(case: Case) -> Iterator[Finding]:
    """Another LLaMA-Factory than the tested one: arguments, logs and the loading of weights differ
    between versions.
    """
    version = case.packages.get("llamafactory")
    if version and version != TESTED_VERSION:
        yield seen(
            f"LLaMA-Factory {version} is installed; iisft is tested with {TESTED_VERSION}",
            _where(case),
            pip(install(with_torch=False)),
            "warn",
        )


@rule(
    "import-died",
    applies="the training interpreter",
    source="a child process that imports what training imports",
)
def import_died(case: Case) -> Iterator[Finding]:
    """Importing a package ends the process (a signal) or never comes back.

    No Python error can be caught for that.
    """
    died = case.machine.capabilities.died if case.machine.capabilities else None
    if died is None:
        return
    step = "starting it" if died.step == "start" else f"importing {died.step}"
    if died.step == "devices":
        step = "asking torch for its GPUs"
    hint = (
        "the GPU driver hangs: reboot, see dmesg"
        if died.how == "did not return" and died.step == "devices"
        else ""
    )
    said = f": {died.said}" if died.said else ""
    how = died.how if died.how in ("did not return", "did not start") else f"ends with {died.how}"
    yield seen(
        f"{step} in the training interpreter {how}{said}",
        _where(case),
        by_hand(hint) if hint else torch_fix(case),
    )


@rule(
    "import-failed",
    applies="the training interpreter",
    source="a child process that imports what training imports",
)
def import_failed(case: Case) -> Iterator[Finding]:
    """A package that training needs raises at its import.

    LLaMA-Factory's own failure is told if it is the only one.
    """
    errors = dict(case.machine.capabilities.errors) if case.machine.capabilities else {}
    needed = set(needed_packages(case.preset)) if case.preset else set()
    for name in ("bitsandbytes", "deepspeed"):
        if name in errors and name not in needed:
            del errors[name]  # nothing of this run needs it
    if len(errors) > 1:
        errors.pop("llamafactory", None)
    for name, error in errors.items():
        if name == "torchaudio":
            continue  # R11
        if name in ("torch", "torchvision", "devices"):
            fix = torch_fix(case)
        else:  # without --no-deps pip would fetch another torch
            wanted = (name, case.packages[name]) if name in case.packages else (name,)
            words = "{}=={}" if len(wanted) == 2 else "{}"
            fix = pip(line(f"pip install --force-reinstall --no-deps {words}", *wanted))
        yield seen(f"{name} can't be imported: {error}", _where(case), fix)


@rule("R31", "python-version", applies="LLaMA-Factory 0.9.5", source="LLaMA-Factory pyproject.toml")
def old_python(case: Case) -> Iterator[Finding]:
    """LLaMA-Factory 0.9.5 needs Python 3.11; Ubuntu 22.04 has 3.10."""
    found = case.machine.interpreter
    version = (
        tuple(int(part) for part in found.python.split(".")[:2] if is_count(part)) if found else ()
    )
    if found and version and version < (3, 11):
        yield seen(
            f"Python {found.python}: LLaMA-Factory {TESTED_VERSION} needs 3.11 or newer",
            str(found.path),
            Fix(
                commands=(
                    "conda create -n iisft -c conda-forge --override-channels python=3.11 -y",
                    "PYTHON=\"$(conda run -n iisft python -c 'import sys; "
                    "print(sys.executable)')\"",
                ),
                stage="python",
                text="make an environment with Python 3.11: conda create -n iisft -c conda-forge "
                "--override-channels "
                "python=3.11 -y (or uv venv --seed --python 3.11), and install into it",
            ),
        )


@rule("no-pip", applies="the training interpreter", source="uv venv without --seed makes none")
def no_pip(case: Case) -> Iterator[Finding]:
    """An environment without pip: the install commands would reach another Python's."""
    report = case.machine.capabilities
    if report and "packages" in report.steps and "pip" not in report.versions:
        yield seen(
            "this environment has no pip: `pip install` would install into another one",
            _where(case),
            pip(
                '"$PYTHON" -m ensurepip', text=f"{_where(case)} -m ensurepip, or use uv pip install"
            ),
            "info",
        )
