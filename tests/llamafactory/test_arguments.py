"""A preset becomes exactly this train.yaml, and its free section is checked."""

from pathlib import Path
from typing import Any, get_args

import pytest

from iisft.errors import ExitCode
from iisft.llamafactory import arguments, installed, interpreter, passed, refused
from iisft.llamafactory.extra import check_extra, check_together, fits
from iisft.llamafactory.interpreter import Argument
from iisft.presets import checking, documents
from iisft.presets.schema import Preset, Tracker
from iisft.workspace import Workspace

PLACES: dict[str, Any] = {
    "model": Path("/r/model"),
    "dataset_dir": Path("/r/data"),
    "output_dir": Path("/r/out"),
}


def load(name: str, *overrides: str) -> Preset:
    document = documents.read_document(name, Workspace.current())
    for text in overrides:
        document.override(*documents.parse_override(text), "--set")
    return checking.check(document).preset


def test_the_whole_train_yaml_of_mi50() -> None:
    assert arguments.compile_arguments(load("mi50"), **PLACES, on_cpu=False) == {
        "model_name_or_path": "/r/model",
        "trust_remote_code": True,
        "template": "qwen",
        "bf16": False,
        "fp16": False,
        "pure_bf16": False,
        "flash_attn": "disabled",
        "lora_rank": 64,
        "lora_alpha": 128,
        "lora_dropout": 0.05,
        "lora_target": "all",
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "max_grad_norm": 0.5,
        "num_train_epochs": 5.0,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 32,
        "cutoff_len": 4096,
        "disable_gradient_checkpointing": False,
        "optim": "adamw_torch",
        "seed": 42,
        "dataset": "intelligence",
        "save_strategy": "steps",
        "save_steps": 50,
        "save_total_limit": 3,
        "dataset_dir": "/r/data",
        "output_dir": "/r/out",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "logging_steps": 1,
        "include_num_input_tokens_seen": "non_padding",
        "logging_nan_inf_filter": False,
        "ddp_timeout": 1800,
        "report_to": "none",
        "overwrite_output_dir": False,
        "plot_loss": True,
        "save_only_model": False,
        "enable_jit_checkpoint": False,
        "disable_tqdm": True,
    }


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("precision=fp16", "attention=sdpa"), {"fp16": True, "bf16": False, "flash_attn": "sdpa"}),
        (("precision=bf16",), {"fp16": False, "bf16": True}),
        (("train.weight_decay=0.1",), {"weight_decay": 0.1, "warmup_ratio": 0.1}),
        (
            ("weights=nf4", "precision=bf16", "train.gradient_checkpointing=true"),
            {"quantization_bit": 4, "quantization_type": "nf4", "quantization_method": "bnb",
             "double_quantization": True},
        ),
        (("lora.target=[q_proj, v_proj]",), {"lora_target": "q_proj,v_proj"}),
        (("train.max_steps=7",), {"max_steps": 7}),
        (
            ("train.warmup_steps=20", "train.weight_decay=0.01"),
            {"warmup_steps": 20, "warmup_ratio": None, "weight_decay": 0.01},
        ),
        (
            ("data.eval=held", "save.eval_every_steps=5"),
            {"eval_dataset": "held", "per_device_eval_batch_size": 1, "eval_strategy": "steps",
             "eval_steps": 5},
        ),
        (
            ("data.eval=held", "save.eval_every_steps=50", "save.best=true"),
            {"metric_for_best_model": "eval_loss", "load_best_model_at_end": None},
        ),
        (("train.gradient_checkpointing=false",), {"disable_gradient_checkpointing": True}),
        (
            ("track=[tensorboard]", "llamafactory.ddp_timeout=60"),
            {"report_to": ["tensorboard"], "run_name": "r", "ddp_timeout": 60},
        ),
        (("track=[trackio]",), {"report_to": ["trackio"], "trackio_space_id": None}),
    ],
)  # fmt: skip
def test_what_a_value_becomes(overrides: tuple[str, ...], expected: dict[str, Any]) -> None:
    compiled = arguments.compile_arguments(load("mi50", *overrides), **PLACES, on_cpu=False)
    assert {key: compiled.get(key) for key in expected} == expected


def test_a_number_of_warm_up_steps_stands_alone() -> None:
    """transformers takes warmup_ratio where both are given."""
    preset = load("mi50", "train.warmup_steps=20")
    compiled = arguments.compile_arguments(preset, **PLACES, on_cpu=False)
    assert (compiled["warmup_steps"], "warmup_ratio" in compiled) == (20, False)


def test_the_cpu_is_named_where_no_gpu_takes_part() -> None:
    assert arguments.compile_arguments(load("demo"), **PLACES, on_cpu=True)["use_cpu"] is True


KNOWN = {
    "packing": Argument(("bool", "null"), None),
    "neat_packing": Argument(("bool",), None),
    "additional_target": Argument(("null", "str"), None),
    "save_steps": Argument(("float",), None),
    "rope_scaling": Argument(("str",), ("linear", "dynamic")),
    "use_dora": Argument(("bool",), None),
    "lora_rank": Argument(("int",), None),
    "hf_hub_token": Argument(("str",), None),
    "max_samples": Argument(("int", "null"), None),
}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"paking": True}, "LLaMA-Factory has no argument paking; did you mean packing?"),
        ({"packing": "yes"}, "llamafactory.packing is 'yes'; allowed: bool, null"),
        ({"rope_scaling": "yarn"}, "llamafactory.rope_scaling is 'yarn'; allowed: linear, dynamic"),
        ({"max_samples": 1.5}, "llamafactory.max_samples is 1.5; allowed: int, null"),
        ({"lora_rank": 8}, "llamafactory.lora_rank is decided by lora.rank"),
        ({"quantization_bit": 8}, "llamafactory.quantization_bit is decided by weights"),
        ({"deepspeed": "ds.json"}, "llamafactory.deepspeed is decided by sharding"),
        ({"max_steps": 3}, "llamafactory.max_steps is decided by train.max_steps"),
        (
            {"use_dora": True},
            "llamafactory.use_dora multiplies by the stored weights past the float32 products "
            "of precision fp32",
        ),
        (
            {"neat_packing": True},
            "llamafactory.neat_packing is decided by train.packing",
        ),
        ({"finetuning_type": "full"}, "llamafactory.finetuning_type is decided by iisft itself"),
        (
            {"logging_strategy": "no"},
            "llamafactory.logging_strategy is what the supervisor sees of a run",
        ),
        (
            {"hub_model_id": "me/mine"},
            "llamafactory.hub_model_id needs the network, and a run is offline",
        ),
        (
            {"warmup_steps": 10},
            "llamafactory.warmup_steps is decided by train.warmup_steps",
        ),
        ({"use_muon": True}, "llamafactory.use_muon replaces train.optimizer without a word"),
        (
            {"data_seed": 1},
            "llamafactory.data_seed stands beside train.seed, which orders the rows",
        ),
        ({"output_dir": "x"}, "llamafactory.output_dir is where a run lives, which iisft decides"),
        (
            {"hf_hub_token": "hf_x"},
            "llamafactory.hf_hub_token is a secret: it would be written to files",
        ),
    ],
)
def test_a_wrong_argument_is_named(extra: dict[str, Any], message: str) -> None:
    [finding] = check_extra(extra, load("mi50"), KNOWN)
    assert (finding.where, finding.message) == (f"llamafactory.{next(iter(extra))}", message)


def test_the_fix_of_a_decided_argument_is_the_key_or_to_drop_it() -> None:
    extra = {"lora_rank": 8, "stage": "dpo"}
    fixes = [finding.fix for finding in check_extra(extra, load("mi50"), KNOWN)]
    assert fixes == [
        "set lora.rank instead",
        "drop it: iisft does supervised fine-tuning with LoRA; use llamafactory-cli train for "
        "other stages",
    ]


def test_right_arguments_pass() -> None:
    extra = {"packing": None, "use_dora": False}
    assert check_extra(extra, load("mi50"), KNOWN) == []
    off = {"use_muon": False, "interleave_probs": None}
    known = KNOWN | {
        "use_muon": Argument(("bool",), None),
        "interleave_probs": Argument(("null", "str"), None),
    }
    assert check_extra(off, load("mi50"), known) == []


@pytest.mark.parametrize("preset", [("mi50-fp16",), ("mi50", "weights=fp32")])
def test_what_changes_the_training_is_said(preset: tuple[str, ...]) -> None:
    extra = {"rope_scaling": "linear", "additional_target": "lm_head", "packing": True}
    found = check_extra(extra, load(*preset), KNOWN)
    assert [(finding.severity, finding.message) for finding in found] == [
        (
            "info",
            "llamafactory.rope_scaling: 'linear' changes what the model computes of positions",
        ),
        (
            "info",
            "llamafactory.additional_target: 'lm_head' trains these modules whole beside the "
            "adapter, and saves them with it",
        ),
        (
            "info",
            "llamafactory.packing: True puts several rows into one, whose tokens see each other",
        ),
    ]


PLAIN = ("train.gradient_checkpointing=true", "train.logits=all")


@pytest.mark.parametrize(
    ("extra", "sets", "on_cpu", "wanted"),
    [
        ({"mask_history": True, "train_on_prompt": True}, (), False, ["drop one of them"]),
        ({"mask_history": True, "train_on_prompt": False}, (), False, []),
        ({"pissa_init": True}, (), False, ["--set llamafactory.pissa_iter=-1"]),
        ({"pissa_init": True, "pissa_iter": -1}, (), False, []),
        ({"pissa_iter": 4}, (), False, ["drop it, or set llamafactory.pissa_init"]),
        ({"packing": True}, ("train.cutoff_len=1001",), False, ["--set train.cutoff_len=1000"]),
        ({"packing": True}, (), False, []),
        ({"train_on_prompt": True}, ("train.packing=true",), False,
         ["drop it, or set train.packing=false"]),
        ({"train_on_prompt": True}, (), False, []),
        ({"streaming": True}, (), False, ["--set train.max_steps=N"]),
        ({"streaming": True}, ("train.max_steps=3",), False, []),
        ({"streaming": True, "max_samples": 8}, ("train.max_steps=3",), False,
         ["drop one of them"]),
        ({"val_size": 0.1}, ("data.eval=x", "save.eval_every_steps=5"), False,
         ["drop llamafactory.val_size"]),
        ({"val_size": 0.1}, (), False, []),
        ({"tf32": True}, ("precision=fp16", "attention=sdpa"), True, ["drop it"]),
        ({"tf32": True}, (), False, ["drop it, or set precision"]),
        ({"tf32": True}, ("precision=fp16", "attention=sdpa"), False, []),
        ({"resize_vocab": True}, ("weights=nf4", "precision=bf16", *PLAIN), False,
         ["drop it, or set weights"]),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together(
    extra: dict[str, Any], sets: tuple[str, ...], on_cpu: bool, wanted: list[str]
) -> None:
    preset = load("mi50", *sets).model_copy(update={"llamafactory": extra})
    found = check_together(preset, on_cpu=on_cpu)
    assert [finding.fix for finding in found] == wanted
    assert {finding.severity for finding in found} <= {"error"}
    assert {finding.where.removeprefix("llamafactory.") for finding in found} <= extra.keys()


def test_a_package_that_an_argument_needs() -> None:
    preset = load("mi50", "track=[wandb, tensorboard]")
    [missing] = check_extra({}, preset, KNOWN, optional={"tensorboard"})
    assert (missing.id, missing.exit_code, missing.message) == (
        "llamafactory-package",
        ExitCode.ENVIRONMENT,
        "track needs the package wandb, which is not installed",
    )
    assert check_extra({}, preset, KNOWN) == []


def test_every_package_that_an_argument_needs_is_looked_for() -> None:
    assert sorted({*passed.PACKAGES.values(), *get_args(Tracker)}) == list(installed.OPTIONAL)


@pytest.mark.slow
def test_every_argument_of_the_installed_llamafactory_has_one_treatment() -> None:
    known = interpreter.arguments(interpreter.inspect(interpreter.training_interpreter()))
    tables = (arguments.own_arguments(load("mi50")), refused.REFUSED, passed.SAID, passed.PASSED)
    assert sorted(name for table in tables for name in table) == sorted(known)


@pytest.mark.slow
def test_every_way_past_the_view_is_an_argument_of_the_installed_llamafactory() -> None:
    known = interpreter.arguments(interpreter.inspect(interpreter.training_interpreter()))
    assert [name for name in arguments.PAST_THE_VIEW if name not in known] == []


RECOMPUTE = "train.gradient_checkpointing=true"
VARIANTS = [
    ("mi50", ()),
    ("mi50-fp16", ("data.eval=x", "save.eval_every_steps=5", "train.max_steps=3")),
    ("qlora-24g", ()),
    ("mi50", ("sharding=fsdp", "weights=fp32", RECOMPUTE)),
    ("mi50", ("sharding=zero2", "weights=fp32", RECOMPUTE)),
    ("mi50", ("sharding=zero3", "weights=fp32", RECOMPUTE)),
    ("demo", ("attention=flash2", "precision=bf16", "hardware.arch=sm_80")),
]


@pytest.mark.parametrize(("name", "overrides"), VARIANTS)
def test_the_installed_llamafactory_knows_every_argument_and_its_type(
    name: str, overrides: tuple[str, ...]
) -> None:
    known = interpreter.arguments(interpreter.inspect(interpreter.training_interpreter()))
    document = documents.read_document(name, Workspace.current())
    for text in overrides:
        document.override(*documents.parse_override(text), "--set")
    preset = checking.check(document, ranks=2).preset
    compiled = arguments.compile_arguments(preset, **PLACES, on_cpu=True)
    unfit = {
        key: value
        for key, value in compiled.items()
        if key not in known or not fits(value, known[key])
    }
    assert unfit == {}


def test_the_installed_arguments_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = interpreter.inspect(interpreter.training_interpreter())
    first = interpreter.arguments(found)
    monkeypatch.setattr("iisft.process.run", None)  # a second child would fail
    assert interpreter.arguments(found) == first
    assert first["learning_rate"] == Argument(("float",), None)
