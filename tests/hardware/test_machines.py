"""Whole machines, each with everything that the doctor says about it; healthy ones get neither error nor warning."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_machines import MACHINES

CLI = Callable[..., Any]
EXPECTED = Path(__file__).parent / "machines"
COST_HIM = ["R08", "R13", "R31"]
HEALTHY = ("two-mi50-healthy", "rdna3", "t4", "eight-h100", "none")


def test_every_machine_has_its_expected_findings() -> None:
    assert {path.stem for path in EXPECTED.glob("*.json")} == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_gets_exactly_its_findings(iisft: CLI, tmp_path: Path, name: str) -> None:
    root = MACHINES[name].build(tmp_path / "一台 machine")
    result = iisft("env-check", "--from", str(root), "--json")
    expected = json.loads((EXPECTED / f"{name}.json").read_text())
    document = json.loads(result.out)
    assert document["findings"] == expected
    assert document["ok"] == all(finding["severity"] != "error" for finding in expected)
    assert result.code == (0 if document["ok"] else 4)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_gets_no_alarm(name: str) -> None:
    findings = json.loads((EXPECTED / f"{name}.json").read_text())
    assert {finding["severity"] for finding in findings} <= {"info"}


@pytest.mark.parametrize(
    ("name", "preset", "expected"),
    [
        ("first-user", "mi50-recorded", [*COST_HIM, "R05", "R06", "R10", "R14", "R30", "llamafactory-version"]),
        ("first-user", "mi50-fp16", [*COST_HIM, "R05", "R14", "R30", "llamafactory-version"]),
        ("two-mi50-healthy", "mi50", []),
        ("two-mi50-healthy", "mi50-fp16", []),
        ("t4", "t4", []),
        ("t4", "v100", ["gpu-memory", "other-gpu"]),
        ("t4", "ampere", ["gpu-memory", "R06", "other-gpu"]),
        ("none", "mi50", ["R01", "too-few-gpus"]),
        ("none", "demo", []),
        ("rdna3", "mi50", ["gpu-memory", "too-few-gpus", "other-gpu"]),
    ],
)  # fmt: skip
def test_a_preset_adds_what_depends_on_it(
    iisft: CLI, tmp_path: Path, name: str, preset: str, expected: list[str]
) -> None:
    root = MACHINES[name].build(tmp_path)
    document = json.loads(iisft("env-check", "--from", str(root), "--preset", preset, "--json").out)
    assert [one["id"] for one in document["findings"] if one["severity"] != "info"] == expected
