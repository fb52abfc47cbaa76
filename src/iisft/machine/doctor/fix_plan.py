"""The fixes of findings as one shell script to read, change and run: in order, with what needs
root or a reboot.
"""

from collections.abc import Iterable, Sequence

from iisft.errors import Finding
from iisft.machine.facts.machine import Machine
from iisft.quoting import shell_comment, shell_word
from iisft.rules import Fix, Stage

_STAGES: tuple[tuple[Stage, str], ...] = (
    ("hands", "By hand (no command can do it)"),
    ("container", "Outside: start the container again"),
    ("root", "As root"),
    ("login", "As root; counts from the next login on"),
    ("reboot", "As root, and a reboot after it"),
    ("python", "A Python for the training interpreter"),
    ("packages", "Packages of the training interpreter"),
    (
        "shell",
        "Variables: a script can't set them for you; type them, and change ~/.bashrc or the "
        "preset's env",
    ),
    ("preset", "Changes to the preset or the command"),
)


def render(findings: Sequence[Finding], machine: Machine) -> str:
    """The script. Nothing in it runs by itself: iisft never executes it.

    Errors and warnings only.
    """
    wanted = [one for one in findings if one.severity != "info"]
    python = str(machine.interpreter.path) if machine.interpreter else "python"
    lines = [
        "#!/usr/bin/env bash",
        "# Written by iisft env-check --fix-plan. Read it first; nothing has been changed yet.",
        "set -euo pipefail",
    ]
    if not wanted:
        return "\n".join([*lines, "", "# Nothing to fix."]) + "\n"
    if any(_fix(one).stage in ("python", "packages") for one in wanted):
        lines += ["", f"PYTHON={shell_word(python)}"]
    typed: set[str] = set()
    for number, (stage, title) in enumerate((s for s in _STAGES if _of(wanted, s[0])), 1):
        lines += ["", f"# {number}. {title}"]
        for one in _of(wanted, stage):
            lines += ["", *shell_comment(f"{one.id} {one.message}")]
            commands = list(_commands(one, typed))
            lines += _until_reboot(commands, _fix(one).done) if stage == "reboot" else commands
        if stage == "login":
            lines += ["", "echo 'Log out and in again before you train.'"]
    return "\n".join(lines) + "\n"


def _of(findings: Iterable[Finding], stage: Stage) -> list[Finding]:
    return [one for one in findings if _fix(one).stage == stage]


def _fix(one: Finding) -> Fix:
    return one.fix if isinstance(one.fix, Fix) else Fix(one.fix)


def _until_reboot(commands: list[str], done: str) -> list[str]:
    """What a reboot must follow: not done again after it, and nothing else is done before it."""
    last = "  echo 'Reboot now (sudo reboot), then run this script again.'"
    return [f"if ! {done}; then", *(f"  {command}" for command in commands), last, "  exit", "fi"]


def _commands(one: Finding, typed: set[str]) -> Iterable[str]:
    """Each command once, however many findings it fixes."""
    if not _fix(one).commands:
        yield from shell_comment(f"-> {one.fix or 'nothing to type'}")
        return
    new = [command for command in _fix(one).commands if command not in typed]
    typed.update(new)
    if not new:
        yield "# -> fixed by a command above"
    if _fix(one).stage == "shell":
        new = [f"echo {shell_word(command)}" for command in new]
    for command in new:
        if command.startswith("#"):
            yield from shell_comment(command.lstrip("# "))
        else:
            yield f'"$PYTHON" -m {command}' if command.startswith("pip ") else command
