"""Each rule has a preset where it fires and one where it is silent, found by the same discovery as
the rules.
"""

from typing import Any

import pytest

from iisft.presets import checking, documents, rules
from iisft.workspace import Workspace

BASE = "v100"
# rule -> (overrides with which it fires, ranks), (overrides with which it is silent, ranks)
CASES: dict[str, tuple[tuple[list[str], int], tuple[list[str], int]]] = {
    "rule_fp16_with_eager": ((["attention=eager"], 1), (["attention=eager", "precision=fp32"], 1)),
    "rule_global_batch": ((["train.global_batch=63"], 1), (["train.global_batch=64"], 1)),
    "rule_sharding_alone": ((["sharding=zero2"], 1), (["sharding=zero2"], 2)),
    "rule_sharding_stored_fp32": (
        (["sharding=fsdp", "precision=fp32"], 2),
        (["sharding=fsdp", "precision=fp32", "weights=fp32"], 2),
    ),
    "rule_fp32_quantised": ((["weights=nf4", "precision=fp32"], 1), (["weights=nf4"], 1)),
    "rule_flash_needs_half": (
        (["attention=flash2", "precision=fp32", "hardware.arch=sm_80"], 1),
        (["attention=flash2", "hardware.arch=sm_80"], 1),
    ),
    "rule_flash_hardware": (
        (["attention=flash2"], 1),
        (["attention=flash2", "hardware.arch=sm_80"], 1),
    ),
    "rule_emulated_bf16": ((["precision=bf16"], 1), (["precision=bf16", "hardware.arch=sm_86"], 1)),
    "rule_unproven_sharding": ((["sharding=zero2"], 2), ([], 2)),
    "rule_precision_of_the_checkpoint": ((["precision=weights"], 1), ([], 1)),
    "rule_cpu_only_without_gpus": (
        (["hardware.gpus=0"], 1),
        (["hardware.gpus=0", "hardware.vendor=cpu"], 1),
    ),
    "rule_evaluation": ((["data.eval=x"], 1), (["save.eval_every_steps=5", "data.eval=x"], 1)),
}


def objections(rule: str, overrides: list[str], ranks: int) -> list[Any]:
    document = documents.read_document(BASE, Workspace.current())
    for text in overrides:
        document.override(*documents.parse_override(text), "--set")
    preset = checking.Preset.model_validate(document.values)
    return list(getattr(rules, rule)(preset, ranks))


def test_every_rule_has_its_cases() -> None:
    assert set(CASES) == {name for name in vars(rules) if name.startswith("rule_")}


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_fires_and_is_silent(rule: str) -> None:
    fires, silent = CASES[rule]
    assert len(objections(rule, *fires)) == 1
    assert objections(rule, *silent) == []


@pytest.mark.parametrize(
    ("arch", "bf16", "flash2"),
    [("gfx906", False, False), ("gfx90a", True, True), ("gfx908", True, False),
     ("gfx1030", False, False), ("gfx1100", True, False), ("sm_61", False, False),
     ("sm_75", False, False), ("sm_86", True, True),
     ("cpu", True, False)],
)  # fmt: skip
def test_what_an_architecture_computes_natively(arch: str, bf16: bool, flash2: bool) -> None:
    assert rules.native_arithmetic(arch) == rules.Arithmetic(bf16=bf16, flash2=flash2)


def test_an_unknown_architecture_is_not_guessed() -> None:
    assert rules.native_arithmetic("xpu") is None
