"""Which torch is advised for which hardware, and with which commands."""

import shlex
from pathlib import Path

import pytest

from iisft.llamafactory.torch_sets import install_commands

TRIO = (
    "pip install torch=={0}+{2} torchvision=={1}+{2} torchaudio=={0}+{2} --index-url "
    "https://download.pytorch.org/whl/{2}"
)
ROOT = Path(__file__).parents[2]
BESIDE_TORCH = f"pip install 'iisft[train]' -c {shlex.quote(str(ROOT / 'constraints.txt'))}"
INSTALL = f"{BESIDE_TORCH} -c {shlex.quote(str(ROOT / 'constraints-torch.txt'))}"


@pytest.mark.parametrize(
    ("arch", "driver", "trio"),
    [
        ("gfx906", None, ("2.7.1", "0.22.1", "rocm6.3")),
        ("gfx900", None, ("2.7.1", "0.22.1", "rocm6.3")),
        ("gfx1030", None, ("2.7.1", "0.22.1", "rocm6.3")),
        ("gfx908", None, ("2.9.1", "0.24.1", "rocm6.4")),
        ("gfx90a", None, ("2.9.1", "0.24.1", "rocm6.4")),
        ("gfx942", None, ("2.9.1", "0.24.1", "rocm6.4")),
        ("gfx1100", None, ("2.9.1", "0.24.1", "rocm6.4")),
        ("gfx1201", None, ("2.9.1", "0.24.1", "rocm6.4")),
        ("sm_60", 580, ("2.9.1", "0.24.1", "cu126")),
        ("sm_61", None, ("2.9.1", "0.24.1", "cu126")),
        ("sm_70", 580, ("2.9.1", "0.24.1", "cu126")),
        ("sm_86", 550, ("2.9.1", "0.24.1", "cu126")),
        ("cpu", None, ("2.9.1", "0.24.1", "cpu")),
    ],
)
def test_torch_comes_first_and_nothing_replaces_it(
    arch: str, driver: int | None, trio: tuple[str, str, str]
) -> None:
    assert install_commands(arch, driver) == (TRIO.format(*trio), BESIDE_TORCH)


@pytest.mark.parametrize(
    ("arch", "driver"), [("sm_75", 580), ("sm_90", 590), ("sm_120", None), ("", None)]
)
def test_newer_cards_take_the_tested_set(arch: str, driver: int | None) -> None:
    assert install_commands(arch, driver) == (INSTALL,)
