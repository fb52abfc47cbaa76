"""What the rules say about a preset before a machine is looked at.

Each rule's own pair of cases is in tests/machine/rule_cases.py.
"""

from typing import Any

import pytest

from iisft.errors import ExitCode, Finding
from iisft.gpu_table import DEVICES, Device, architecture
from iisft.presets import documents
from iisft.presets.case import Case
from iisft.presets.checking import Preset, judge_preset
from iisft.workspace import Workspace


def findings(*overrides: str, ranks: int = 1) -> list[Finding]:
    document = documents.read_document("v100", Workspace.current())
    for text in overrides:
        document.override(*documents.parse_override(text), "--set")
    return judge_preset(Case(Preset.model_validate(document.values), ranks, document=document))


@pytest.mark.parametrize(
    ("overrides", "ids"),
    [
        ([], []),
        (["attention=eager"], ["fp16-eager-nan"]),
        (["attention=flash2"], ["flash2-hardware"]),
        (["attention=flash2", "hardware.arch=sm_80"], []),
        (["precision=bf16"], ["bf16-emulated"]),
        (["precision=weights"], ["precision-weights"]),
        (["train.global_batch=63", "sharding=zero2"],
         ["fit-unverified", "global-batch", "sharding-one-gpu", "sharding-unverified"]),
        (["precision=bf16", "hardware.arch=sm_80", "weights=nf4"], ["fit-unverified"]),
        (["data.eval=x"], ["eval-never"]),
        (["train.packing=true", "train.cutoff_len=1001", "attention=flash2",
          "hardware.arch=sm_80"], ["packing-wrong"] * 2),
        (["save.best=true"], ["save-best"]),
        (["save.best=true", "data.eval=x", "save.eval_every_steps=75", "save.keep=1",
          "llamafactory.eval_on_each_dataset=true"], ["save-best"] * 3),
    ],
)  # fmt: skip
def test_a_preset_alone_is_judged_by_its_own_hardware(overrides: list[str], ids: list[str]) -> None:
    found = findings(*overrides)
    assert [finding.id for finding in found] == ids
    assert {finding.exit_code for finding in found} <= {ExitCode.INPUT}


def test_a_finding_names_the_line_that_it_is_about() -> None:
    [found] = findings("attention=eager")
    assert found.where == "--set (attention)"


@pytest.mark.parametrize(
    ("arch", "bf16", "flash2"),
    [("gfx906", False, False), ("gfx90a", True, True), ("gfx908", True, False),
     ("gfx1030", False, False), ("gfx1100", True, False), ("sm_61", False, False),
     ("sm_75", False, False), ("sm_86", True, True),
     ("cpu", True, False)],
)  # fmt: skip
def test_what_an_architecture_computes_natively(arch: str, bf16: bool, flash2: bool) -> None:
    assert (found := architecture(arch)) is not None and (found.bf16, found.flash2) == (
        bf16,
        flash2,
    )


def test_an_unknown_architecture_is_not_guessed() -> None:
    assert architecture("xpu") is None


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)
def test_a_device_has_bf16_units_where_its_architecture_has(device: Device) -> None:
    known = architecture(device.arch)
    assert known is not None
    assert (device.bf16 is not None) == known.bf16


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ({"sliding_window": 4096}, True),
        ({"layer_types": ["sliding_attention", "full_attention"]}, True),
        ({"sliding_window": 131072, "use_sliding_window": False}, False),
        ({"sliding_window": 512, "layer_types": ["full_attention"]}, False),
        ({}, False),
    ],
)
def test_packing_is_refused_where_layers_see_a_window(model: dict[str, Any], refused: bool) -> None:
    document = documents.read_document("mi50", Workspace.current())
    document.change(["train.packing=true"])
    case = Case(Preset.model_validate(document.values), 2, document=document, model=model)
    assert [found.id for found in judge_preset(case)] == ["packing-wrong"] * refused


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ({"model_type": "falcon_h1", "mamba_d_ssm": 64}, True),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, True),
        ({"model_type": "minimax", "layer_types": ["linear_attention", "full_attention"]}, True),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention"]}, False),
    ],
)
def test_packing_is_refused_where_layers_carry_a_state(
    model: dict[str, Any], refused: bool
) -> None:
    document = documents.read_document("mi50", Workspace.current())
    document.change(["train.packing=true"])
    case = Case(Preset.model_validate(document.values), 2, document=document, model=model)
    assert ("delta-rule-packing" in {found.id for found in judge_preset(case)}) == refused
