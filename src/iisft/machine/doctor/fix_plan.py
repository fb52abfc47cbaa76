"""The fixes of a diagnosis as one shell script to read, change and run: in order, with what needs
root or a reboot.
"""

from collections.abc import Iterable, Sequence

from iisft.machine.doctor.engine import Diagnosis
from iisft.machine.doctor.fixes import Stage
from iisft.machine.facts.machine import Machine
from iisft.quoting import shell_comment, shell_word

_STAGES: tuple[tuple[Stage, str], ...] = (
    ("hands", "By hand (no command can do it)"),
    ("container", "Outside: start the container anew"),
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


def render(diagnoses: Sequence[Diagnosis], machine: Machine) -> str:
    """The script. Nothing in it runs by itself: iisft never executes it.

    Errors and warnings only.
    """
    wanted = [one for one in diagnoses if one.seen.severity != "info"]
    python = str(machine.interpreter.path) if machine.interpreter else "python"
    lines = [
        "#!/usr/bin/env bash",
        "# Written by iisft env-check --fix-plan. Read it first; nothing has been changed yet.",
        "set -euo pipefail",
    ]
    if not wanted:
        return "\n".join([*lines, "", "# Nothing to fix."]) + "\n"
    if any(one.seen.fix.stage in ("python", "packages") for one in wanted):
        lines += ["", f"PYTHON={shell_word(python)}"]
    typed: set[str] = set()
    for number, (stage, title) in enumerate((s for s in _STAGES if _of(wanted, s[0])), 1):
        lines += ["", f"# {number}. {title}"]
        for one in _of(wanted, stage):
            lines += ["", *shell_comment(f"{one.rule.id} {one.seen.message}")]
            commands = list(_commands(one, typed))
            lines += _until_reboot(commands, one.seen.fix.done) if stage == "reboot" else commands
        if stage == "login":
            lines += ["", "echo 'Log out and in again before you train.'"]
    return "\n".join(lines) + "\n"


def _of(diagnoses: Iterable[Diagnosis], stage: Stage) -> list[Diagnosis]:
    return [one for one in diagnoses if one.seen.fix.stage == stage]


def _until_reboot(commands: list[str], done: str) -> list[str]:
    """What a reboot must follow: not done again after it, and nothing else is done before it."""
    last = "  echo 'Reboot now (sudo reboot), then run this script again.'"
    return [f"if ! {done}; then", *(f"  {command}" for command in commands), last, "  exit", "fi"]


def _commands(one: Diagnosis, typed: set[str]) -> Iterable[str]:
    """Each command once, whatever number of findings it mends."""
    if not one.seen.fix.commands:
        yield from shell_comment(f"-> {one.seen.fix.text or 'nothing to type'}")
        return
    new = [command for command in one.seen.fix.commands if command not in typed]
    typed.update(new)
    if not new:
        yield "# -> mended by a command above"
    if one.seen.fix.stage == "shell":
        new = [f"echo {shell_word(command)}" for command in new]
    for command in new:
        if command.startswith("#"):
            yield from shell_comment(command.lstrip("# "))
        else:
            yield f'"$PYTHON" -m {command}' if command.startswith("pip ") else command
