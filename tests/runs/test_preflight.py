"""`train` asks the doctor before it starts: its errors stop the run, and what took long to find out
is remembered.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import train_argv
from iisft.machine.doctor import inspect
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.host import Host
from iisft.machine.facts.live import Answers
from iisft.machine.facts.machine import Machine
from iisft.machine.facts.pci import Card
from iisft.runs.plan import building

CLI = Callable[..., Any]
STEPS = (
    '{"step": "packages", "versions": {"pip": "25.0"}}',
    '{"step": "torch", "version": "2.7.1+rocm6.3", "hip": "6.3.42131", "cuda": null, "arch_list": '
    '["gfx906"]}',
    '{"end": true}',
)


def two_mi50(iommu: str = "identity", **environment: str) -> Machine:
    gpus = tuple(Gpu("amd", "gfx906", 32.0, bus=f"0000:{bus}:00.0") for bus in ("03", "83"))
    cards = tuple(Card("amd", gpu.bus, iommu=iommu, iommu_group="17") for gpu in gpus)
    return Machine(
        gpus, cards, Host(cpu_vendor="GenuineIntel", amdgpu="6.10.5"), Answers(environment)
    )


@pytest.fixture
def train(
    iisft: CLI, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """A dry run on a given machine, with a training interpreter for ROCm that counts how often it
    is examined.
    """
    binaries = tmp_path / "fake env" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "llamafactory-cli").touch()
    packages = {"llamafactory": "0.9.5", "torch": "2.7.1+rocm6.3", "transformers": "5.5.4"}
    told = json.dumps({"python": "3.11.7", "packages": packages, "launcher": "/lib/launcher.py"})
    devices = tmp_path / "devices.json"  # a step that says which GPUs torch sees
    lines = " ".join(f"'{line}'" for line in STEPS)
    python = binaries / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$1" in *trainer_report.py) echo x >> "{tmp_path}/examined"; '
        f'if [ -e "{devices}" ]; then cat "{devices}"; fi; printf "%s\\n" '
        f"{lines};;\n"
        "*build_model.py) printf '{\"warnings\": []}';;\n"
        f"*) printf '%s' '{told}';; esac\n"
    )
    python.chmod(0o755)
    monkeypatch.setenv("IISFT_PYTHON", str(python))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0

    def run(machine: Machine, *more: str, preset: str = "mi50") -> dict[str, Any]:
        monkeypatch.setattr(inspect, "this_machine", lambda *_: machine)
        result = iisft(*train_argv(model, "--dry-run", "--json", *more, preset=preset))
        examined = tmp_path / "examined"
        return {
            "code": result.code,
            "said": result.err,
            "findings": [
                (one["id"], one["severity"]) for one in json.loads(result.out)["findings"]
            ],
            "examined": len(examined.read_text().splitlines()) if examined.exists() else 0,
        }

    return run


def test_a_sound_machine_is_found_sound_and_examined_once(train: CLI) -> None:
    first, second = train(two_mi50()), train(two_mi50())
    assert (first["code"], first["findings"], first["examined"]) == (0, [], 1)
    assert "importing what trains" in first["said"]
    assert (second["code"], second["findings"], second["examined"]) == (0, [], 1)
    assert second["said"] == ""


def test_another_shell_is_another_answer(train: CLI) -> None:
    train(two_mi50())
    assert train(two_mi50(NCCL_DEBUG="INFO"))["examined"] == 1
    assert train(two_mi50(HSA_OVERRIDE_GFX_VERSION="9.0.6"))["examined"] == 2


def test_what_would_hang_is_refused(train: CLI) -> None:
    refused = train(two_mi50("DMA-FQ"))
    assert (refused["code"], refused["findings"]) == (4, [("R08", "error")])
    assert "iommu=pt" in refused["said"]


def test_one_gpu_of_such_a_machine_trains(train: CLI) -> None:
    alone = train(two_mi50("DMA-FQ"), "--gpus", "1")
    assert (alone["code"], alone["findings"]) == (0, [("accumulation-rescaled", "info")])


def test_a_preset_that_goes_around_the_hang_is_warned_of_its_speed(train: CLI) -> None:
    around = train(two_mi50("DMA-FQ"), "--set", "env.NCCL_P2P_DISABLE=1")
    assert (around["code"], around["findings"]) == (0, [("R08", "warn")])


def test_a_rule_that_knows_the_machine_replaces_the_presets_own_objection(train: CLI) -> None:
    assert train(two_mi50(), preset="mi50-recorded")["findings"] == [
        ("R06", "warn"),
        ("R10", "warn"),
    ]


def test_a_deep_check_of_this_boot_is_remembered(train: CLI) -> None:
    machine = two_mi50("DMA-FQ")
    assert train(machine)["code"] == 4
    examined, _ = inspect.inspected(machine, lambda _: None)
    results = [{"check": "all-reduce", "backend": "nccl", "world": 2, "gbps": 5.0, "gpus": True}]
    inspect.remember_deep(examined, {"results": results})
    assert (train(machine)["code"], train(machine)["findings"]) == (0, [])


def test_a_card_below_windows_that_only_torch_sees_is_trained_on(
    train: CLI, tmp_path: Path
) -> None:
    card = {"name": "AMD Instinct MI50", "arch": "gfx906", "memory_gib": 31.98}
    step = {"step": "devices", "available": True, "devices": [card, card]}
    (tmp_path / "devices.json").write_text(json.dumps(step) + "\n")
    below_windows = Machine(answers=Answers({"HSA_ENABLE_DXG_DETECTION": "1"}))
    told = train(below_windows, "--gpus", "2")
    assert (told["code"], told["findings"]) == (0, [])


def test_qwen2_under_another_name_overflows_too(train: CLI, model: Path) -> None:
    other = str(model.rename(model.parent / "local"))
    changes = ("--set", "attention=eager", "--set", "model.template=llama3", "--model", other)
    told = train(two_mi50(), *changes, preset="mi50-fp16")
    assert (told["code"], told["findings"]) == (3, [("R07", "error")])


@pytest.mark.parametrize(
    ("tools", "found"),
    [
        ("", []),
        (
            '[{"name": "f"}]',
            [
                "no chat template writes tools as template llama3 trains them: an exported model "
                "will refuse conversations with tools"
            ],
        ),
    ],
)
def test_an_export_that_would_refuse_tools_is_told_before_the_training(
    tmp_path: Path, tools: str, found: list[str]
) -> None:
    model = tmp_path / "模型"
    model.mkdir()
    (model / "tokenizer_config.json").write_text('{"eos_token": "<|eot_id|>"}')
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(json.dumps({"messages": [], "tools": tools}, separators=(",", ":")).encode())
    findings = building.export_findings("llama3", {}, model, [rows], {})
    assert [one.message for one in findings] == found


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"tokenizer": None}, ""),
        (
            {"unexportable": "transformers writes no tokenizer.json for its tokenizer"},
            "other tools will not read an export of this model: transformers writes no "
            "tokenizer.json for its tokenizer",
        ),
        (
            {"tokenizer": {"tokenizer_class": "TokenizersBackend"}},
            "other tools will not read an export of this model: there is no tokenizer.json, and "
            "PreTrainedTokenizerFast reads nothing else",
        ),
    ],
)
def test_an_export_that_no_tool_would_read_is_told_before_the_training(
    tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    model = tmp_path / "模型"
    model.mkdir()
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    (model / "tokenizer_config.json").write_text(
        json.dumps(config | (facts.get("tokenizer") or {}))
    )
    known = {
        "published": True, "size": 9, "eos": "<|im_end|>", "pad": "<|pad|>", "pad_id": 1,
        "stop_ids": [2], "adds_bos": False, "added": {},
    }  # fmt: skip
    facts = {"tokenizer": known} if "tokenizer" in facts else facts
    findings = building.export_findings("qwen", {}, model, [], facts)
    assert [(one.id, one.severity, one.message) for one in findings] == (
        [("export-unreadable", "warn", said)] if said else []
    )
    assert sorted(path.name for path in model.iterdir()) == ["tokenizer_config.json"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ((), ""),
        (("llamafactory.enable_thinking=false",), ", though thinking is off"),
    ],
)
def test_thoughts_that_the_template_does_not_know_are_told(
    iisft: CLI, model: Path, workspace: Path, tmp_path: Path, sets: tuple[str, ...], said: str
) -> None:
    answers = [
        "<think>hm</think>a", "<think>\nhm\n</think>b", "<think>\nhm\n</think>\n\nc",
        "<think>\n\n</think>\n\nd", "e",
    ]  # fmt: skip
    file = tmp_path / "thoughts.jsonl"
    lines = [json.dumps({"instruction": "<think>问", "output": one}) for one in answers]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert iisft("data", "stage", str(file), "--name", "rows").code == 0
    wanted = ["model.template=qwen3", *sets]
    words = [word for one in wanted for word in ("--set", one)]
    told = iisft(*train_argv(model, "--dry-run", "--json", *words, preset="mi50"))
    found = [one for one in json.loads(told.out)["findings"] if one["id"] == "thought-form"]
    assert [(one["severity"], one["message"]) for one in found] == [
        (
            "warn",
            "2 rows of rows have a thought in another form than template qwen3 writes it: "
            f"LLaMA-Factory trains it as a part of the answer{said}",
        )
    ]
