"""The fixes of machines: a sentence for people, and lines of shell; --fix-plan is one script of
them to read, change and run: in order, with what needs root or a reboot.
"""

from collections.abc import Iterable, Sequence

from iisft.errors import Finding
from iisft.llamafactory.torch_sets import install_commands
from iisft.machine.facts.host import Host
from iisft.machine.facts.machine import Machine
from iisft.quoting import is_name, is_variable, shell_comment, shell_word, visible_line
from iisft.rules import Fix, Stage


def by_hand(text: str) -> Fix:
    """Something that a person does to the machine."""
    return Fix(text)


def as_root(*commands: str, text: str = "") -> Fix:
    return Fix(text or " && ".join(commands), commands, "root")


def at_login(*commands: str, text: str) -> Fix:
    """As root, and it counts from the next login on."""
    return Fix(text, commands, "login")


def container(options: str) -> Fix:
    return Fix(f"start the container with {options}", (f"# docker run {options} ...",), "container")


def pip(*commands: str, text: str = "") -> Fix:
    return Fix(text or " && ".join(commands), commands, "packages")


def line(template: str, *values: str) -> str:
    """A line of shell. Each {} stands for a value that was read from a machine.

    One that doesn't look like a name is never typed: the line is then a comment that says so.
    """
    strange = [value for value in values if not is_name(value)]
    if not strange:
        return template.format(*map(shell_word, values))
    shown = ", ".join(visible_line(repr(value)) for value in strange)
    return f"# left out, for this does not look like a name: {shown}"


def export(*assignments: str, text: str = "") -> Fix:
    words = []
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        assert is_variable(name), name  # rules name what they set
        words.append(f"{name}={shell_word(value)}")
    command = f"export {' '.join(words)}"
    return Fix(text or command, (command,), "shell")


def unset(*names: str, text: str = "") -> Fix:
    wrong = [name for name in names if not is_variable(name)]
    if wrong:
        return by_hand(f"take {' and '.join(map(visible_line, wrong))} out of the environment")
    command = f"unset {' '.join(names)}"
    return Fix(text or f"{command} (and take it out of ~/.bashrc)", (command,), "shell")


def torch_for(arch: str, host: Host) -> Fix:
    """Install torch, torchvision and torchaudio that work on this hardware, then iisft
    beside them. The old torch goes when pip has the new one.
    """
    return pip(*install_commands(arch, host.nvidia_major))


def bitsandbytes_for(arch: str) -> Fix:
    """Build bitsandbytes for an AMD card that its wheels have no kernels for.

    NF4 on an MI50 was trained with such a build: mi50-gfx906-unsloth-bnb4bit-lab.
    """
    build = f"cmake -DCOMPUTE_BACKEND=hip -DBNB_ROCM_ARCH={arch} -S . && make && pip install ."
    clone = "git clone https://github.com/bitsandbytes-foundation/bitsandbytes"
    return pip(
        clone,
        f"(cd bitsandbytes && {build})",
        text=f"build it for {arch} (its wheels are not): {clone} && cd bitsandbytes && {build}; or "
        "--set weights=stored",
    )


def kernel_parameter(parameters: str, host: Host, more: str = "") -> Fix:
    """Put words on the kernel's command line, in the distribution's way, once."""
    last = parameters.split()[-1]
    if any(name in host.os_family for name in ("fedora", "rhel", "centos")):
        commands: tuple[str, ...] = (f'sudo grubby --update-kernel=ALL --args="{parameters}"',)
        text = f"{commands[0]} && sudo reboot"
    else:
        commands = (
            f"grep -q '{last}' /etc/default/grub || sudo sed -i.iisft-backup "
            '\'s/^GRUB_CMDLINE_LINUX_DEFAULT="\\(.*\\)"/GRUB_CMDLINE_LINUX_DEFAULT="\\1 '
            f"{parameters}\"/' "
            "/etc/default/grub",
            "sudo update-grub",
        )
        text = (
            f"add {parameters} to GRUB_CMDLINE_LINUX_DEFAULT in /etc/default/grub, then sudo "
            "update-grub && sudo reboot"
        )
    return Fix(f"{text}{more}", commands, "reboot", f"grep -qw '{last}' /proc/cmdline")


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
