"""A machine with two GPUs for every process of a test: an nvidia-smi that names as computing on a
card whoever has a file of its pid in the card's folder.
"""

import os
import shlex
from pathlib import Path

CARDS = ("GPU-aaaa", "GPU-bbbb")
_NVIDIA_SMI = """#!/bin/sh
cd {cards}
number=0
for card in GPU-*; do
    number=$((number + 1))
    case "$1" in
    *compute-apps*) for pid in $(ls $card); do
        grep -q . /proc/$pid/cmdline 2>/dev/null && echo "$card, $pid"
    done ;;
    *=uuid,*) echo "$card, 3, 0" ;;
    *) echo "RTX 3090, 8.6, 24576, 570.1, 00000000:0$number:00.0, 16, 16, 40, 350, 350, $card" ;;
    esac
done
exit 0
"""


def write_two_cards(folder: Path) -> tuple[Path, dict[str, str]]:
    """The folder of the cards' folders, and the variables that make processes see them."""
    cards, programs = folder / "cards 卡", folder / "programs"
    programs.mkdir()
    for name in CARDS:
        (cards / name).mkdir(parents=True)
    program = programs / "nvidia-smi"
    program.write_text(_NVIDIA_SMI.format(cards=shlex.quote(str(cards))))
    program.chmod(0o755)
    here = f"from iisft.machine.facts import nvidia_smi\nnvidia_smi._FILES = ({str(cards)!r},)\n"
    (programs / "sitecustomize.py").write_text(here)
    return cards, {
        "FAKE_CARDS": str(cards),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(programs),
    }
