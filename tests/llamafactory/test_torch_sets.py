"""Which torch is advised for which hardware, and with which commands."""

import pytest

from iisft.llamafactory.torch_sets import INSTALL, INSTALL_BESIDE_TORCH, install_commands

TRIO = (
    "pip install torch=={0} torchvision=={1} torchaudio=={0} --index-url "
    "https://download.pytorch.org/whl/{2}"
)


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
    assert install_commands(arch, driver) == (TRIO.format(*trio), INSTALL_BESIDE_TORCH)


@pytest.mark.parametrize(
    ("arch", "driver"), [("sm_75", 580), ("sm_90", 590), ("sm_120", None), ("", None)]
)
def test_newer_cards_take_the_tested_set(arch: str, driver: int | None) -> None:
    assert install_commands(arch, driver) == (INSTALL,)
