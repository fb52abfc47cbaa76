"""The plan in a run's life: preflight, record, an out-of-memory end, and what a finished run tells
the next plan.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.cli.figures import describe_forecast, describe_spent
from iisft.data.stage.staged import RECORD
from iisft.machine.facts.gpus import Gpu
from iisft.runs.record import measurements
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord

CLI = Callable[..., Any]
SIZES = {
    "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 16,
}  # fmt: skip


@pytest.fixture
def staged(iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]) -> list[str]:
    """The options of `train` and `plan` on a model whose config.json has all sizes."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | SIZES))
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0
    shape = ["--set", "train.cutoff_len=2048", "--set", "train.gradient_checkpointing=true"]
    return ["--preset", "mi50", "--model", str(model), "--data", "rows", *shape]


def see_gpus(monkeypatch: pytest.MonkeyPatch, memory_gib: float, count: int = 2) -> None:
    gpus = [Gpu("amd", "gfx906", memory_gib, "MI50")] * count
    monkeypatch.setattr("iisft.machine.facts.machine.Machine.visible", property(lambda _: gpus))


def by_id(result: Any) -> dict[str, dict[str, Any]]:
    return {finding["id"]: finding for finding in json.loads(result.out)["findings"]}


def huge(model: Path) -> None:
    sizes = {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064,
    }  # fmt: skip
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | sizes))


def test_a_run_that_does_not_fit_is_refused_before_it_starts(
    iisft: CLI, staged: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 31.98)
    huge(model)
    result = iisft("train", *staged, "--dry-run", "--json")
    finding = by_id(result)["does-not-fit"]
    assert finding["severity"] == "error"
    assert "weights 132.1" in finding["message"] and finding["message"].endswith("there are 32.0")
    refused = iisft("train", *staged, "--name", "r")
    assert (refused.code, "does-not-fit" in refused.err or "the plan needs" in refused.err) == (
        4,
        True,
    )


def test_with_cpu_ranks_it_is_only_a_warning(iisft: CLI, staged: list[str], model: Path) -> None:
    huge(model)
    # a small adapter: its checkpoints fit on any disk
    small = ("--set", "lora.rank=1")
    result = iisft("train", *staged, *small, "--gpus", "2", "--dry-run", "--json")
    assert (result.code, by_id(result)["does-not-fit"]["severity"]) == (0, "warn")


def test_the_finding_names_the_cheapest_change(
    iisft: CLI, staged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 31.98)
    more = ("--set", "model.id=Qwen/Qwen2.5-7B-Instruct", "--set", "weights=fp32")
    result = iisft("train", "--preset", "mi50", *more, "--dry-run", "--json")
    finding = by_id(result)["does-not-fit"]
    assert finding["fix"] == "--set weights=stored"


def test_a_smaller_card_than_the_presets_is_a_warning_where_the_plan_fits(
    iisft: CLI, staged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 15.98)
    assert by_id(iisft("train", *staged, "--dry-run", "--json"))["gpu-memory"]["severity"] == "warn"


def test_without_the_sizes_in_config_json_nothing_is_said(
    iisft: CLI, model: Path, staged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 15.98)
    (model / "config.json").write_text(
        json.dumps(
            {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16"}
        )
    )
    found = by_id(iisft("train", *staged, "--dry-run", "--json"))
    assert "does-not-fit" not in found
    assert found["gpu-memory"]["severity"] == "error"


def test_the_record_and_status_have_the_plan_beside_what_was_measured(
    iisft: CLI, staged: list[str], workspace: Path, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("ok", STEPS="4", STEP_S="1.2")
    assert iisft("train", *staged, "--gpus", "1", "--name", "lauf 1".replace(" ", "-")).code == 0
    status = json.loads(iisft("status", "lauf-1", "--json").out)
    assert status["forecast"]["fits"] == "yes"
    # as long as the longest of its short rows, which were counted before the start
    assert status["forecast"]["peak_gib"] == pytest.approx(0.001, abs=0.001)
    assert status["measured"]["step_s"] == pytest.approx(1.2, rel=0.5)
    text = iisft("status", "lauf-1").out
    [line] = [line for line in text.splitlines() if line.startswith("plan ")]
    assert line.startswith("plan         peak 0.0 GiB; measured ") and line.endswith(" s/step")
    [kept] = [
        json.loads(line)
        for line in (workspace / "runs" / measurements.FILE).read_text().splitlines()
    ]
    assert (kept["run"], kept["measured"]) == ("lauf-1", status["measured"])
    # mi50's preset on CPU ranks: its speed must never be taken for a GPU's
    assert (kept["kin"]["arch"], status["forecast"]["step_s"]) == ("cpu", None)


def test_what_the_time_of_steps_went_into_is_summed_without_the_first() -> None:
    slow = {"kind": "metrics", "spent": {"forward": 90.0, "data": 10.0}}
    steps = [{"kind": "metrics", "spent": {"forward": 1.0, "backward": 2.0, "data": 0.01}}] * 2
    found = measurements.measure([slow, *steps, {"kind": "state", "spent": {"data": 9.0}}])
    assert found == {"spent": {"forward": 0.3322, "backward": 0.6645, "data": 0.0033}}
    assert describe_spent(found) == "backward 66%, forward 33%"
    assert describe_spent({"step_s": 1.0}) == describe_spent(None) == ""


def test_memory_is_counted_for_the_longest_row_where_it_is_known(
    iisft: CLI, staged: list[str], workspace: Path
) -> None:
    def counted(*more: str) -> int:
        return int(json.loads(iisft("plan", *staged, *more, "--json").out)["counted_tokens"])

    manifest = workspace / "data" / "rows" / RECORD
    record = json.loads(manifest.read_text())
    model = staged[staged.index("--model") + 1]
    tokens = {"lossless_cutoff_len": 1001, "sample": {"rows": 8, "of": 8}}
    known = {"counted_for": {"model": model, "template": "qwen"}, "tokens": tokens}
    assert counted() == 2048
    manifest.write_text(json.dumps(record | known))
    assert counted() == 1008  # padded to a multiple of 8
    assert counted("--set", "train.cutoff_len=512") == 512
    assert counted("--set", "train.packing=true") == 2048
    assert counted("--set", "model.template=chatml") == 2048  # another's tokens
    tokens["sample"]["rows"] = 4  # type: ignore[index]
    manifest.write_text(json.dumps(record | known))
    assert counted() == 2048


def test_a_prediction_stands_beside_its_measurement() -> None:
    forecast, found = {"peak_gib": 20.0, "step_s": 400.0}, {"peak_gib": 21.0, "step_s": 440.0}
    assert describe_forecast(forecast, found) == (
        "peak 20.0 GiB, measured 21.0 GiB (x 1.05); 400 s/step, measured 440 s/step (x 1.10)"
    )
    assert describe_forecast(forecast, {}) == "peak 20.0 GiB; 400 s/step"
    assert describe_forecast(None, None) == ""


def test_the_next_plan_uses_what_this_machine_reached(
    iisft: CLI, staged: list[str], workspace: Path
) -> None:
    before = json.loads(iisft("plan", *staged, "--json").out)
    kin = {
        "arch": "gfx906", "precision": "fp32", "way": "exact", "attention": "eager_blocks",
        "checkpointing": True, "sharding": "none",
    }  # fmt: skip
    entry = {
        "machine": platform.node(), "kin": kin, "ranks": 2, "flops_per_token": 4.0e10,
        "global_batch": 64, "predicted": {"peak_gib": 10.0, "step_s": 100.0},
        "measured": {"tokens_per_s": 500.0, "step_s": 80.0, "peak_gib": 11.0},
    }  # fmt: skip
    file = workspace / "runs" / measurements.FILE
    file.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps(entry | {"machine": "another"}),
        "{torn",
        json.dumps(entry),
        json.dumps(entry | {"kin": {}}),
    ]
    file.write_text("\n".join(lines) + "\n")
    after = json.loads(iisft("plan", *staged, "--json").out)
    assert after["measured"] == {
        "runs": 1, "tflops": 10.0, "peak_measured_over_predicted": 1.1,
        "step_measured_over_predicted": 0.8,
    }  # fmt: skip
    assert after["overhead"]["measured excess"] == pytest.approx(0.1 * before["peak_gib"], abs=1e-3)
    assert after["step_s"] != before["step_s"]
    assert "measured in 1 run here, measured / predicted 0.80" in iisft("plan", *staged).out


def test_an_out_of_memory_end_shows_the_plans_figures(
    iisft: CLI, staged: list[str], tmp_path: Path, fake_trainer: Callable[..., None]
) -> None:
    log = tmp_path / "oom.log"
    log.write_text(
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total "
        "capacity"
    )
    fake_trainer(f"log:{log}")
    assert iisft("train", *staged, "--gpus", "1", "--name", "r").code == 1
    assert "the plan said 0.0 GiB of tensors, fits: yes (iisft plan)" in iisft("status", "r").out


def test_the_median_leaves_the_first_step_out_and_bad_events_are_passed_over() -> None:
    events: list[dict[str, Any] | None] = [
        None,
        {"kind": "state", "state": "finished"},
        {
            "kind": "metrics",
            "step": 1,
            "step_s": 90.0,
            "tokens_per_s": 10.0,
            "vram_allocated_gib": 19.0,
        },
        {
            "kind": "metrics",
            "step": 2,
            "step_s": 10.0,
            "tokens_per_s": 90.0,
            "vram_allocated_gib": 20.5,
        },
        {"kind": "redone", "step": 2, "step_s": 12.0, "tokens_per_s": "nan"},
        {"kind": "metrics", "step": 3, "step_s": None},
    ]
    assert measurements.measure(events) == {"step_s": 11.0, "tokens_per_s": 90.0, "peak_gib": 20.5}
    assert measurements.measure([]) == {}


def test_a_run_without_a_forecast_keeps_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "r")
    folder.path.mkdir(parents=True)
    runs = tmp_path / "runs"
    measurements.keep(runs, folder, RunRecord.from_json({"forecast": None}), {"step_s": 1.0})
    assert not (runs / measurements.FILE).exists()


def test_a_probe_runs_real_steps_and_keeps_only_what_it_measured(
    iisft: CLI, staged: list[str], workspace: Path, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("ok", STEPS="4", STEP_S="1.2")
    result = iisft("plan", *staged, "--set", "hardware.vendor=cpu", "--set", "hardware.arch=cpu",
                   "--set", "hardware.gpus=1", "--probe", "--json")  # fmt: skip
    found = json.loads(result.out)
    assert found["probe"]["steps"] == 4
    assert found["probe"]["step_s"] == pytest.approx(1.2, rel=0.5)
    assert [path.name for path in (workspace / "runs").iterdir()] == [measurements.FILE]
    [kept] = (workspace / "runs" / measurements.FILE).read_text().splitlines()
    assert json.loads(kept)["run"].startswith("probe-")


def test_a_probe_that_can_not_run_says_why_and_the_plan_stands(
    iisft: CLI, staged: list[str], workspace: Path
) -> None:
    result = iisft("plan", *staged, "--probe", "--json")
    found = json.loads(result.out)
    assert (result.code, found["fits"]) == (0, "yes")
    assert "GPUs are needed" in found["probe"]["error"]
    assert not (workspace / "runs").exists()


def test_a_probe_whose_trainer_fails_leaves_nothing_behind(
    iisft: CLI, staged: list[str], workspace: Path, fake_trainer: Callable[..., None]
) -> None:
    fake_trainer("crash")
    result = iisft("plan", *staged, "--gpus", "1", "--probe", "--json")
    assert "Cannot find valid samples" in json.loads(result.out)["probe"]["error"]
    assert list((workspace / "runs").iterdir()) == []


@pytest.mark.parametrize(("memory_gib", "severity"), [(29.0, "warn"), (15.98, "error")])
def test_the_doctor_judges_a_smaller_card_by_the_plan(
    iisft: CLI,
    fake_trainer: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    memory_gib: float,
    severity: str,
) -> None:
    see_gpus(monkeypatch, memory_gib)
    found = json.loads(iisft("env-check", "--preset", "mi50", "--json").out)["findings"]
    assert {one["severity"] for one in found if one["id"] == "gpu-memory"} == {severity}


def test_a_profile_needs_a_probe(iisft: CLI, staged: list[str]) -> None:
    refused = iisft("plan", *staged, "--profile", "step.json")
    assert (refused.code, "--probe --profile FILE" in refused.err) == (2, True)
