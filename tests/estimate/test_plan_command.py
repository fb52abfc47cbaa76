"""iisft plan as a person and as a script see it: no GPU, no torch, mostly no model."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.gpu_table import DEVICES
from iisft.machine.facts.gpus import Gpu
from iisft.presets import documents

CLI = Callable[..., Any]
NAMES = sorted(path.stem for path in documents.shipped_presets_folder().glob("*.yaml"))
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def workspace() -> Path:
    return Path(os.environ["IISFT_HOME"])


@pytest.fixture
def plan(iisft: CLI) -> Callable[..., dict[str, Any]]:
    def run(*argv: str) -> dict[str, Any]:
        result = iisft("plan", *argv, "--json")
        assert result.code == 0, result.err
        answer: dict[str, Any] = json.loads(result.out)
        return answer

    return run


def model_folder(workspace: Path, config: Any) -> Path:
    folder = workspace / "models" / "我的 model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def stage(iisft: CLI, workspace: Path, rows: int, text: str = "x") -> None:
    file = workspace / "rows 行.jsonl"
    line = json.dumps({"instruction": text, "input": "", "output": text})
    file.write_text(f"{line}\n" * rows)
    assert iisft("data", "stage", str(file), "--name", "rows").code == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_preset_fits_its_own_hardware(plan: CLI, name: str) -> None:
    found = plan("--preset", name)
    assert (found["fits"], found["suggestions"], found["preset"]) == ("yes", [], name)
    assert found["model_source"] == "facts shipped with iisft; the model is not here"
    assert found["phase"] is not None


def test_the_keys_of_the_design_and_their_arithmetic(plan: CLI) -> None:
    found = plan("--preset", "mi50", "--device", "mi50-32g")
    assert list(found)[:9] == [
        "fits", "gpu_gib", "peak_gib", "phase", "parts", "overhead_gib", "suggestions", "step_s",
        "total_h",
    ]  # fmt: skip
    assert sum(found["parts"].values()) == pytest.approx(found["peak_gib"], abs=1e-6)
    assert sum(found["overhead"].values()) == pytest.approx(found["overhead_gib"], abs=1e-6)
    assert (found["fits"], found["gpu_gib"], found["peak_gib"]) == (
        "yes",
        31.98,
        pytest.approx(29.976, rel=0.002),
    )
    assert (found["layers_kept"], found["logits_chunk"]) == (11, 1024)
    before = ("train.gradient_checkpointing=true", "train.logits=all", "train.cutoff_len=2048")
    traced = plan("--preset", "mi50", *(part for one in before for part in ("--set", one)))
    assert traced["peak_gib"] == pytest.approx(20.88, rel=0.002)
    assert (found["world_size"], found["global_batch"], found["total_h"]) == (2, 64, None)


def test_the_first_users_question_in_one_screen(iisft: CLI) -> None:
    result = iisft("plan", "--preset", "mi50", "--device", "mi50-32g")
    lines = result.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 130
    assert "fits: yes" in result.out
    [ddp] = [line for line in lines if "float32 weights, DDP" in line]
    assert "does not fit" in ddp and "weights 28.4" in ddp
    assert (
        "keeps the weights as stored (bfloat16) and computes each product in float32: the same bits"
        in result.out
    )


def test_float32_weights_under_ddp_do_not_fit_and_the_cheapest_remedy_changes_no_bit(
    plan: CLI,
) -> None:
    found = plan(
        "-p",
        "mi50",
        "--device",
        "mi50-32g",
        "--set",
        "weights=fp32",
        "--set",
        "train.cutoff_len=1024",
        "--set",
        "train.logits=all",
    )
    assert (found["fits"], found["peak_gib"]) == ("no", pytest.approx(32.9, rel=0.02))
    changes = [one["change"] for one in found["suggestions"]]
    assert changes[0] == "--set weights=stored"
    assert not any("sharding=fsdp" in one for one in changes)  # each rank loads all of it
    assert [one["fits"] for one in found["suggestions"]] == ["yes"] * len(changes)
    again = plan(
        "-p",
        "mi50",
        "--device",
        "mi50-32g",
        "--set",
        "weights=stored",
        "--set",
        "train.cutoff_len=1024",
        "--set",
        "train.logits=all",
    )
    assert again["peak_gib"] == pytest.approx(found["suggestions"][0]["peak_gib"], abs=0.01)


def test_several_changes_together_where_one_is_not_enough(plan: CLI) -> None:
    kept = ("--set", "train.batch_size=16", "--set", "train.gradient_checkpointing=false")
    found = plan("-p", "v100", "--device", "v100-16g", *kept)
    assert found["fits"] == "no"
    assert found["suggestions"]
    for one in found["suggestions"]:
        assert one["change"].count("--set") >= 2
        words = one["change"].split()
        assert plan("-p", "v100", "--device", "v100-16g", *kept, *words)["fits"] == "yes"


def test_hours_come_from_the_staged_rows(plan: CLI, iisft: CLI, workspace: Path) -> None:
    stage(iisft, workspace, 1000, "某" * 4000)
    found = plan("-p", "mi50-fp16", "--device", "mi50-32g", "--data", "rows")
    assert found["steps"] == 5 * 16  # 1000 rows over 2 GPUs x 32, rounded up, 5 epochs
    assert found["total_h"] == pytest.approx(found["steps"] * found["step_s"] / 3600, rel=1e-3)
    assert found["total_h_range"][0] < found["total_h"] < found["total_h_range"][1]
    assert found["finish"] > "20"
    full = plan("-p", "mi50-fp16", "--device", "mi50-32g")
    # 6000 tokens a row are cut to cutoff_len
    assert found["step_s"] == pytest.approx(full["step_s"], rel=0.01)
    stage(iisft, workspace, 1000, "short")
    assert (
        plan("-p", "mi50-fp16", "--device", "mi50-32g", "--data", "rows")["step_s"]
        < found["step_s"] / 20
    )


def test_tokens_counted_at_staging_are_used(plan: CLI, iisft: CLI, workspace: Path) -> None:
    stage(iisft, workspace, 100, "short")
    record = workspace / "data" / "rows" / "staged.json"
    value = json.loads(record.read_text())
    record.write_text(json.dumps(value | {"tokens": {"epoch": {"tokens": 100 * 4096}}}))
    found = plan("-p", "mi50-fp16", "--device", "mi50-32g", "--data", "rows")
    assert found["step_s"] == plan("-p", "mi50-fp16", "--device", "mi50-32g")["step_s"]


def test_any_model_folder_with_only_its_config(plan: CLI, workspace: Path) -> None:
    folder = model_folder(workspace, LLAMA)
    found = plan("-p", "v100", "--model", str(folder))
    assert found["model_source"] == str(folder / "config.json")
    assert found["parts"]["weights"] == pytest.approx(8_030_261_248 * 2 / 2**30, rel=1e-4)
    assert found["findings"][0]["id"] == "data-missing"


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        ("{torn", "model-config-broken"),
        ({"model_type": "llama"}, "plan-unknown-model"),
        ({**LLAMA, "num_experts": 64}, "plan-unknown-model"),
        ({**LLAMA, "model_type": "martian"}, "plan-unknown-family"),
        (
            {key: value for key, value in LLAMA.items() if key != "torch_dtype"},
            "model-dtype-unknown",
        ),
    ],
)
def test_odd_configs_are_findings(plan: CLI, workspace: Path, config: Any, finding: str) -> None:
    found = plan("-p", "v100", "--model", str(model_folder(workspace, config)))
    assert finding in [one["id"] for one in found["findings"]]
    known = finding in ("plan-unknown-family", "model-dtype-unknown")
    assert (
        found["peak_gib"] is not None,
        found["fits"] is not None,
        found["step_s"] is not None,
    ) == (known,) * 3


@pytest.mark.parametrize(("weights", "beyond"), [("stored", True), ("nf4", False)])
def test_weights_alone_may_be_too_much(
    plan: CLI, workspace: Path, weights: str, beyond: bool
) -> None:
    """Of experts nothing else is counted."""
    folder = model_folder(workspace, {**LLAMA, "num_experts": 64})
    tensor = {"dtype": "BF16", "shape": [2**20, 2**10], "data_offsets": [0, 2**31]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:  # 2 GiB, of which the disk sees nothing
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**31)
    settings = ("--set", f"weights={weights}", "--set", "train.gradient_checkpointing=true")
    found = plan("-p", "v100", "--device", "1g", "--model", str(folder), *settings)
    said = [one["message"] for one in found["findings"] if one["id"] == "does-not-fit"]
    wanted = ["the weights alone are 2.0 GiB per GPU, there are 1.0"] if beyond else []
    assert said == wanted


def test_a_model_that_nobody_knows_is_null_and_no_error(plan: CLI, iisft: CLI) -> None:
    found = plan("-p", "v100", "--model", "owner/unknown")
    assert (found["fits"], found["peak_gib"], found["parts"], found["suggestions"]) == (
        None,
        None,
        None,
        [],
    )
    result = iisft("plan", "-p", "v100", "--model", "owner/unknown")
    assert (result.code, "fits: not known" in result.out) == (0, True)


@pytest.mark.parametrize(
    ("model", "download"),
    [
        ("owner/unknown", "iisft download owner/unknown, or"),
        ("/srv/no such", "iisft download OWNER/NAME --to '/srv/no such', or"),
    ],
)
def test_a_folder_is_no_name_to_download(plan: CLI, model: str, download: str) -> None:
    found = plan("-p", "v100", "--model", model)["findings"]
    (missing,) = (one for one in found if one["id"] == "model-missing")
    assert missing["fix"] == f"{download} --model DIR (its config.json alone is enough here)"


def test_a_rule_of_the_preset_is_a_finding_and_the_plan_is_made(plan: CLI) -> None:
    found = plan("-p", "mi50", "--set", "sharding=fsdp")
    assert "stored-fp32-sharded" in [one["id"] for one in found["findings"]]
    assert found["peak_gib"] > 0


def test_arguments_that_change_the_memory_are_named(plan: CLI) -> None:
    found = plan("-p", "ampere", "--set", "llamafactory.enable_liger_kernel=true")
    [finding] = [one for one in found["findings"] if one["id"] == "plan-uncounted-arguments"]
    assert (
        finding["message"] == "memory and time are counted without llamafactory.enable_liger_kernel"
    )


def test_an_unknown_device_is_named_with_its_neighbours(iisft: CLI) -> None:
    result = iisft("plan", "-p", "mi50", "--device", "mi50")
    assert (result.code, "mi50-32g" in result.err) == (2, True)


def test_more_gpus_keep_the_global_batch_and_share_the_work(plan: CLI) -> None:
    two, four = (
        plan("-p", "mi50-fp16", "--device", "mi50-32g", "--gpus", str(gpus)) for gpus in (2, 4)
    )
    assert (two["global_batch"], four["global_batch"]) == (64, 64)
    assert four["step_s"] == pytest.approx(two["step_s"] / 2, rel=0.05)


def test_ranks_that_can_not_keep_the_global_batch_are_planned_and_said_to_be_so(plan: CLI) -> None:
    found = plan("-p", "mi50", "--device", "mi50-32g", "--gpus", "3")
    assert (found["world_size"], found["global_batch"], found["fits"]) == (3, 96, "yes")
    [finding] = [one for one in found["findings"] if one["severity"] == "error"]
    assert finding["id"] == "accumulation-indivisible"


def test_without_a_preset_the_device_chooses(iisft: CLI, workspace: Path) -> None:
    (workspace / "presets").mkdir()
    (workspace / "presets" / "a-broken-one.yaml").write_text("{")
    result = iisft("plan", "--device", "p40", "--json")
    assert json.loads(result.out)["preset"] == "p40"


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)
def test_every_device_has_rates_in_order(device: Any) -> None:
    assert device.source
    for precision in ("fp32", "fp16", "bf16"):
        (low, typical, high), measured = device.rate(precision)
        assert 0 < low < typical < high
        assert not measured or device.rate_source


def test_the_gpus_of_this_machine_are_planned_for(
    plan: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "iisft.runs.plan.make.visible_gpus", lambda: [Gpu("amd", "gfx906", 15.98, "MI50")] * 2
    )
    found = plan("-p", "mi50")
    assert (found["device"], found["gpu_gib"], found["fits"]) == ("mi50-16g", 15.98, "no")


def test_a_processors_own_graphics_is_not_planned_for(
    plan: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphics, card = Gpu("amd", "gfx1036", 0.5, "Graphics"), Gpu("amd", "gfx906", 31.98, "MI50")
    monkeypatch.setattr("iisft.runs.plan.make.visible_gpus", lambda: [graphics, card, card])
    found = plan("-p", "mi50")
    assert (found["device"], found["gpu_gib"], found["fits"]) == ("mi50-32g", 31.98, "yes")


def test_best_never_changes_what_is_computed(plan: CLI) -> None:
    found = plan("-p", "ampere", "--device", "a100-80g", "--best")["best"]
    assert found[0]["step_s"] < plan("-p", "ampere", "--device", "a100-80g")["step_s"]
    assert all(one["fits"] == "yes" for one in found)
    allowed = {
        "train.batch_size",
        "train.accumulation",
        "train.gradient_checkpointing",
        "train.logits",
        "attention",
        "sharding",
    }
    keys = {
        word.partition("=")[0] for one in found for word in one["change"].split() if word != "--set"
    }
    assert keys <= allowed
    assert "train.gradient_checkpointing=false" in found[0]["change"]


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("MI50-32G", "mi50-32g"),
        ("RTX 3060", "rtx3060"),
        ("5090", "rtx5090"),
        ("geforce-rtx-4090", "rtx4090"),
        ("Tesla P40", "p40"),
        ("NVIDIA L4", "l4"),
        ("p100", "p100-16g"),
        ("Radeon VII", "radeon-vii"),
    ],
)
def test_a_device_is_named_as_people_write_it(said: str, key: str, plan: CLI) -> None:
    assert plan("-p", "mi50-fp16", "--device", said)["device"] == key


@pytest.mark.parametrize("said", ["24g", "24G", "24gb", "24 GiB"])
def test_a_size_is_a_card_of_the_presets_kind(said: str, plan: CLI) -> None:
    found = plan("-p", "mi50", "--device", said)
    assert (found["device"], found["gpu_gib"], found["step_s"]) == (None, 24.0, None)
    assert plan("-p", "v100", "--device", said)["gpu_gib"] == 23.52


@pytest.mark.parametrize("said", ["", "mi", "0g", "g", "1000000g", "50"])
def test_what_is_neither_card_nor_size_is_refused(said: str, iisft: CLI) -> None:
    result = iisft("plan", "-p", "mi50", "--device", said)
    assert (result.code, "; or its memory: 24g" in result.err) == (2, True)


def test_every_alternative_that_fits_is_among_what_would_make_it_fit(iisft: CLI) -> None:
    more = ("--set", "weights=fp32", "--set", "train.cutoff_len=1024", "--set", "train.logits=all")
    argv = ("plan", "-p", "mi50", "--device", "mi50-32g", *more)
    text = iisft(*argv).out
    assert "fp16 by autocast" in text
    alternatives, _, ways = text.partition("what would make it fit")
    fitting = [line for line in alternatives.splitlines() if "s/step  fits  " in line]
    needs = [" ".join(line.split()[:4]) for line in fitting]
    assert needs
    shown = [" ".join(line.split()[:4]) for line in ways.splitlines()]
    assert set(needs) <= set(shown)
