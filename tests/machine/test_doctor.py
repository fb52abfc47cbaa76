"""Each rule fires on one machine and is silent on another, found by the same discovery as the
doctor's own.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_machines import (
    FIRST_USER,
    MI50,
    P40_AND_3090,
    ROCM63,
    ROCM64,
    TWO_MI50,
    Fake,
    expected,
    seen,
)
from rule_cases import CASES, IOMMU_ON, Scene, amd, deep, failing, packages, shell

from iisft.errors import Finding
from iisft.machine.doctor import bundle, engine, fixes
from iisft.machine.doctor.engine import Case, all_rules
from iisft.presets import checking, documents
from iisft.rules import Rule
from iisft.workspace import Workspace


def case_of(scene: Scene, root: Path) -> Case:
    machine = bundle.unpack(scene.machine.build(root / "一台 machine"))
    if scene.preset is None:
        return Case(None, scene.ranks, scene.on_cpu, scene.model, machine=machine)
    document = documents.read_document(scene.preset, Workspace.current())
    for text in scene.sets:
        document.override(*documents.parse_override(text), "--set")
    # The preset's own rules are not asked: some scenes are what they refuse.
    preset = checking.Preset.model_validate(document.values)
    return Case(preset, scene.ranks, scene.on_cpu, scene.model, machine=machine)


def findings(machine: Fake, root: Path, rule_id: str = "") -> list[Finding]:
    found = engine.diagnose(case_of(Scene(machine), root))
    return [one for one in found if rule_id in ("", one.id)]


def test_every_rule_has_its_cases() -> None:
    assert set(CASES) == {rule.id for rule in all_rules()}


def test_the_references_rules_are_all_there() -> None:
    assert {f"R{number:02}" for number in range(1, 53)} <= {rule.id for rule in all_rules()}


@pytest.mark.parametrize("rule_id", CASES)
def test_a_rule_fires_and_is_silent(rule_id: str, tmp_path: Path) -> None:
    fires, silent = CASES[rule_id]
    [rule] = [rule for rule in all_rules() if rule.id == rule_id]
    seen = list(rule.look(case_of(fires, tmp_path / "fires")))
    assert len(seen) == 1
    assert seen[0].message
    assert list(rule.look(case_of(silent, tmp_path / "silent"))) == []


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.id)
def test_a_rule_says_what_it_is_about(rule: Rule, tmp_path: Path) -> None:
    assert rule.explanation
    assert rule.applies
    assert rule.source
    seen = next(iter(rule.look(case_of(CASES[rule.id][0], tmp_path))))
    assert seen.fix or seen.severity == "warn"
    if rule.basis == "inferred":
        assert seen.severity == "info"


def test_an_all_reduce_that_came_through_settles_the_iommu(tmp_path: Path) -> None:
    assert [one.severity for one in findings(IOMMU_ON, tmp_path / "1", "R08")] == ["error"]
    proven = deep(IOMMU_ON, "all-reduce", backend="nccl", world=2, gbps=5.1, gpus=True)
    assert findings(proven, tmp_path / "2", "R08") == []


def test_going_around_p2p_makes_the_iommu_a_matter_of_speed(tmp_path: Path) -> None:
    around = shell(IOMMU_ON, NCCL_P2P_DISABLE="1")
    assert [one.severity for one in findings(around, tmp_path, "R08")] == ["warn"]


def test_a_hang_is_named_with_this_machines_causes(tmp_path: Path) -> None:
    hung = {"backend": "nccl", "world": 2, "died": "did not return within 60 s", "said": ""}
    [told] = findings(deep(FIRST_USER, "all-reduce", **hung), tmp_path / "1", "R17")
    assert (
        "did not return within 60 s. Probable causes here: R08 the IOMMU translates" in told.message
    )
    assert told.fix.startswith("add iommu=pt to GRUB_CMDLINE_LINUX_DEFAULT")
    [told] = findings(deep(TWO_MI50, "all-reduce", **hung), tmp_path / "2", "R17")
    assert "None of the known causes shows on this machine" in told.message


def test_the_iommu_without_groups_is_judged_by_the_command_line(tmp_path: Path) -> None:
    old = replace(amd(TWO_MI50, iommu=""), iommus=("dmar0",), cmdline="quiet intel_iommu=on")
    assert len(findings(old, tmp_path / "1", "R08")) == 1
    assert findings(replace(old, cmdline="quiet intel_iommu=off"), tmp_path / "2", "R08") == []


def test_the_fix_plan_is_one_script_in_order(tmp_path: Path) -> None:
    case = case_of(Scene(FIRST_USER), tmp_path)
    script = fixes.render(engine.diagnose(case), case.machine)
    assert script == expected("first-user-fix-plan.sh")


def test_a_healthy_machine_has_nothing_to_fix(tmp_path: Path) -> None:
    case = case_of(Scene(TWO_MI50), tmp_path)
    assert fixes.render(engine.diagnose(case), case.machine).endswith("\n# Nothing to fix.\n")


def test_products_that_were_computed_settle_what_versions_say(tmp_path: Path) -> None:
    """A torch that lists nothing of the card, in an image of a later release, and yet it works."""
    torch = replace(ROCM64, archs=("gfx90a",), blas=("gfx90a",))
    doubted = replace(MI50, torch=torch, rocm="5.6.0", container=True, image_blas=("gfx90a",))
    ids = {one.id for one in findings(doubted, tmp_path / "a")}
    assert {"R02", "R03", "R14", "R52"} <= ids
    done = tuple(
        {"check": "matmul", "device": "cuda:0", "dtype": dtype, "tflops": 9.0}
        for dtype in ("float32", "float16", "bfloat16")
    )
    settled = {one.id for one in findings(replace(doubted, deep=done), tmp_path / "b")}
    assert settled.isdisjoint({"R02", "R03", "R04", "R14", "R52"})
    failed = (*done[1:], {**done[0], "tflops": None, "died": "SIGABRT"})
    assert {"R02", "R04"} <= {
        one.id for one in findings(replace(doubted, deep=failed), tmp_path / "c")
    }


@pytest.mark.parametrize(
    ("rocm", "hip", "far"),
    [("7.2.0", "7.14.1", True), ("7.12.0", "7.14.1", False), ("7.15.0", "10.1.0", False),
     ("6.3.1", "10.1.0", True)],
)  # fmt: skip
def test_releases_beyond_the_known_ones_have_their_place(
    tmp_path: Path, rocm: str, hip: str, far: bool
) -> None:
    machine = replace(MI50, rocm=rocm, torch=replace(ROCM63, hip=hip))
    assert bool(findings(machine, tmp_path, "R14")) == far


def test_a_presets_own_variables_choose_the_gpus(tmp_path: Path) -> None:
    sees = seen(("Tesla P40", "sm_61", 23.9), ("NVIDIA GeForce RTX 3090", "sm_86", 23.69))
    machine = replace(P40_AND_3090, steps=sees)
    for value, arch in (("1", ["sm_86"]), ("GPU-00000000", ["sm_61"]), ("-1", [])):
        scene = Scene(machine, "ampere", (f"env.CUDA_VISIBLE_DEVICES={value}",))
        gpus = case_of(scene, tmp_path / value).gpus
        assert [gpu.arch for gpu in gpus] == arch
        assert all(gpu.memory_gib < 24 for gpu in gpus)  # torch's figure


def test_bitsandbytes_for_an_mi50_is_built_and_not_fetched(tmp_path: Path) -> None:
    scene = Scene(MI50, "mi50-fp16", ("weights=nf4", "train.gradient_checkpointing=true"))
    [missing] = [one for one in engine.diagnose(case_of(scene, tmp_path))
                 if one.id == "package-missing"]  # fmt: skip
    assert "-DBNB_ROCM_ARCH=gfx906" in missing.fix and "pip install bitsandbytes" not in missing.fix


def test_emulated_bf16_is_shown_with_what_was_measured(tmp_path: Path) -> None:
    results = tuple(
        {"check": "matmul", "device": "cuda:0", "dtype": dtype, "tflops": rate}
        for dtype, rate in (("float32", 11.0), ("float16", 21.5), ("bfloat16", 3.25))
    )
    [told] = findings(replace(TWO_MI50, deep=results), tmp_path, "R06")
    assert told.where == "measured 3.25 TFLOP/s in bf16, 21.5 in fp16"


def test_a_smaller_gpu_is_a_warning_where_the_plan_fits(tmp_path: Path) -> None:
    case = case_of(CASES["gpu-memory"][0], tmp_path)
    for fits, severity in {None: "error", "no": "error", "tight": "warn", "yes": "warn"}.items():
        found = {one.id: one.severity for one in engine.diagnose(replace(case, fits=fits))}
        assert found["gpu-memory"] == severity


def test_a_newer_torchaudio_that_can_be_imported_is_a_warning(tmp_path: Path) -> None:
    newer = packages(TWO_MI50, torchaudio="2.8.0+rocm6.3")
    [told] = findings(newer, tmp_path / "1", "R11")
    assert told.severity == "warn"
    [told] = findings(
        failing(newer, "torchaudio", "OSError: undefined symbol"), tmp_path / "2", "R11"
    )
    assert told.severity == "error"


def test_no_command_lets_pip_fetch_another_torch(tmp_path: Path) -> None:
    for rule_id, (scene, _) in CASES.items():
        for one in engine.diagnose(case_of(scene, tmp_path / rule_id)):
            for command in getattr(one.fix, "commands", ()):
                if "--force-reinstall" in command:
                    assert "--no-deps" in command
                assert "pip install 'torch" not in command and "pip install torch>" not in command


def settings_of(fix: str) -> list[tuple[str, ...]]:
    """The alternatives of a fix that can be typed: each some `key=value`."""
    found = []
    for part in re.split(r", or |; | or (?=--set)", fix):
        typed = re.findall(r"--set '?([\w.]+=[^\s',]+)", part)
        if line := re.match(r"([a-z_.]+): ([\w.]+)$", part):
            typed = ["=".join(line.groups())]
        found += [tuple(typed)] if typed else []
    return found


SETTABLE = [
    rule.id
    for rule in all_rules()
    if rule.id in CASES and CASES[rule.id][0].preset and rule.id not in ("gpu-memory",)
]


@pytest.mark.parametrize("rule_id", SETTABLE)
def test_a_fix_that_is_a_setting_silences_its_rule(rule_id: str, tmp_path: Path) -> None:
    scene = CASES[rule_id][0]
    [rule] = [rule for rule in all_rules() if rule.id == rule_id]
    [seen] = rule.look(case_of(scene, tmp_path / "before"))
    for number, settings in enumerate(settings_of(seen.fix)):
        kept = tuple(one for one in scene.sets if not _unset(one, settings))
        case = case_of(replace(scene, sets=(*kept, *settings)), tmp_path / str(number))
        assert seen.message not in [one.message for one in rule.look(case)], settings


def _unset(one: str, settings: tuple[str, ...]) -> bool:
    """weights nf4 takes the place of LLaMA-Factory's own argument."""
    return "weights=nf4" in settings and one.startswith("llamafactory.quantization_bit")


def test_most_fixes_of_presets_can_be_typed(tmp_path: Path) -> None:
    typed = 0
    for rule_id in SETTABLE:
        [rule] = [rule for rule in all_rules() if rule.id == rule_id]
        [seen] = rule.look(case_of(CASES[rule_id][0], tmp_path / rule_id))
        typed += bool(settings_of(seen.fix))
    assert typed > 15
