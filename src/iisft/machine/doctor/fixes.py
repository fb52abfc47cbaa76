"""The fixes of machines: a sentence for people, and lines of shell for --fix-plan."""

from iisft.llamafactory.torch_sets import install_commands
from iisft.machine.facts.host import Host
from iisft.quoting import is_name, is_variable, shell_word, visible_line
from iisft.rules import Fix


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
