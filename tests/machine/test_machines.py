"""Whole machines, each with everything that the doctor says about it.

Healthy ones get neither error nor warning.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_machines import MACHINES, expected

from iisft.machine.doctor import deep, engine
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.machine import Machine

CLI = Callable[..., Any]
EXPECTED = Path(__file__).parent / "machines"
COST_HIM = ["R08", "R13", "R31"]
HEALTHY = ("two-mi50-healthy", "rdna3", "t4", "eight-h100", "none", "apu-gtt", "wsl-7900xtx",
           "p40-3090-uuid", "gb10", "amd-and-nvidia")  # fmt: skip

OWN = {
    "gfx1151": "extends: mi50-fp16\nprecision: bf16\n"
    "hardware: {vendor: amd, arch: gfx1151, gpus: 1, memory_gib: 96.0}\n",
    "gfx1100": "extends: mi50-fp16\n"
    "hardware: {vendor: amd, arch: gfx1100, gpus: 1, memory_gib: 24.0}\n",
}


def test_every_machine_has_its_expected_findings() -> None:
    assert {path.stem for path in EXPECTED.glob("*.json")} == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_gets_exactly_its_findings(iisft: CLI, tmp_path: Path, name: str) -> None:
    root = MACHINES[name].build(tmp_path / "一台 machine")
    result = iisft("env-check", "--from", str(root), "--json")
    findings = json.loads(expected(f"machines/{name}.json"))
    document = json.loads(result.out)
    assert document["findings"] == findings
    assert document["ok"] == all(finding["severity"] != "error" for finding in findings)
    assert result.code == (0 if document["ok"] else 4)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_gets_no_alarm(name: str) -> None:
    findings = json.loads((EXPECTED / f"{name}.json").read_text())
    assert {finding["severity"] for finding in findings} <= {"info"}


@pytest.mark.parametrize(
    ("name", "preset", "ids"),
    [
        ("first-user", "mi50-recorded", [*COST_HIM, "R05", "R06", "R10", "R14", "R30",
                                         "llamafactory-version"]),
        ("first-user", "mi50-fp16", [*COST_HIM, "R05", "R14", "R30", "llamafactory-version"]),
        ("two-mi50-healthy", "mi50", []),
        ("two-mi50-healthy", "mi50-fp16", []),
        ("t4", "t4", []),
        ("t4", "v100", ["gpu-memory", "other-gpu"]),
        ("t4", "ampere", ["gpu-memory", "R06", "other-gpu"]),
        ("none", "mi50", ["R01", "too-few-gpus"]),
        ("none", "demo", []),
        ("rdna3", "mi50", ["too-few-gpus", "gpu-memory", "other-gpu"]),
        ("mig-slice", "ampere", ["gpu-memory", "gpus-differ", "other-gpu"]),
        ("p40-3090-index-1", "ampere", ["R06", "gpus-differ", "other-gpu"]),
        ("p40-3090-uuid", "ampere", []),
        ("apu-96-of-which-15", "gfx1151", ["gpu-memory", "gpus-differ"]),
        ("apu-gtt", "gfx1151", []),
        ("wsl-7900xtx", "gfx1100", []),
        ("gb10", "ampere", ["other-gpu"]),
        ("amd-and-nvidia", "ampere", ["gpu-memory", "torch-not-cuda", "other-gpu"]),
        ("t4", "mi50", ["R01", "gpu-memory", "too-few-gpus", "other-gpu"]),
    ],
)  # fmt: skip
def test_a_preset_adds_what_depends_on_it(
    iisft: CLI, tmp_path: Path, name: str, preset: str, ids: list[str]
) -> None:
    root = MACHINES[name].build(tmp_path)
    if preset in OWN:
        file = tmp_path / f"{preset}.yaml"
        file.write_text(OWN[preset])
        preset = str(file)
    document = json.loads(iisft("env-check", "--from", str(root), "--preset", preset, "--json").out)
    assert [one["id"] for one in document["findings"] if one["severity"] != "info"] == ids


def test_a_preset_that_gives_nan_is_told_together_with_what_the_machine_lacks(
    iisft: CLI, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: mi50-fp16\nattention: eager\n")
    root = MACHINES["first-user"].build(tmp_path / "root")
    result = iisft("env-check", "--from", str(root), "--preset", str(file), "--json")
    errors = [one["id"] for one in json.loads(result.out)["findings"] if one["severity"] == "error"]
    assert (result.code, errors) == (4, ["R07", *COST_HIM])


def test_deep_asks_for_the_memory_that_the_plan_says() -> None:
    case = engine.Case(machine=Machine((Gpu("amd", "gfx906", 32.0),)), need_gib=20.5)
    [memory] = [one for one in deep.checks(case) if one["check"] == "memory"]
    assert (memory["device"], memory["wanted_gib"]) == ("cuda:0", 20.5)
    [memory] = [
        one for one in deep.checks(replace(case, need_gib=None)) if one["check"] == "memory"
    ]
    assert memory["wanted_gib"] == 16.0
