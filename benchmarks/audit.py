"""Random presets over tiny models: what LLaMA-Factory's own parser and the model that it builds say
is compared with the preset. Whatever differs and was not said is a silent difference.

    .venv/bin/python benchmarks/audit.py [CASES] [--seed N] [--keep FOLDER]

Needs the training packages; 500 cases take some minutes. Each case draws the typed keys, up to four
of LLaMA-Factory's other arguments with values of their types, one of the models of
tests/fidelity/tiny_models.py, names and texts that a YAML reader may take for something else, and
sometimes a part that is wrong. What a rule, an argument check or the build refuses is counted as
refused; the others are compared argument by argument. tests/fidelity/test_audit.py draws a few.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iisft.llamafactory.refused import REFUSED

HERE = Path(__file__).resolve().parents[1]
MODELS = ("qwen2-tied", "qwen2-untied", "qwen2-fp16", "qwen3", "llama-tied", "llama-untied",
          "mistral", "gemma2", "gemma3", "glm4", "phi3", "stablelm", "qwen3-moe")  # fmt: skip
TEXTS = ("1e5", "0x10", "yes", "null", "12:30", "~", "2024-01-01", "中文 名", "a: b", "# x", "1.0",
         "plain", "it's", '"q"', " lead", "two\nlines", "-", "*a", "%d")  # fmt: skip
ATTENTION = {"eager": "disabled", "sdpa": "sdpa"}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# They name places, processes and programs, which a parser would go and look for.
UNDRAWN = ("dir", "path", "file", "config", "url", "deepspeed", "fsdp", "debug", "token", "kwargs")
# What the parser sets by what it finds on the machine or has put together from others.
DERIVED = {
    "run_name", "logging_dir", "local_rank", "device_map", "model_max_length", "compute_dtype",
    "block_diag_attn", "should_log", "should_save", "use_cpu", "eval_delay", "split_batches",
    "data_seed", "remove_unused_columns", "max_length", "output_dir", "dataset_dir", "cache_dir",
    "model_name_or_path", "hub_token", "warmup_steps", "warmup_ratio", "resume_from_checkpoint",
    "accelerator_config", "project", "deepspeed_plugin", "distributed_state", "ray_init_kwargs",
    "adapter_folder", "media_dir", "use_fast_tokenizer", "generation_config", "max_new_tokens",
    "generation_max_length", "lr_scheduler_kwargs", "fsdp_config", "fsdp", "tokenized_path",
    "train_batch_size", "eval_batch_size", "skip_memory_metrics", "dispatch_batches",
    "can_return_loss", "do_eval", "dataloader_pin_memory", "label_names", "torch_compile_backend",
}  # fmt: skip


def drawn(draw: random.Random, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A model and a preset for it."""
    model = draw.choice(MODELS)
    pick = draw.choice
    train: dict[str, Any] = {
        "learning_rate": pick([1e-5, 3e-4, 1e-4, 2.5e-6, 0.1]),
        "scheduler": pick(["linear", "cosine", "constant", "constant_with_warmup",
                           "inverse_sqrt", "polynomial", "cosine_with_restarts"]),
        "warmup_ratio": pick([0.0, 0.03, 0.1, 0.5]),
        "max_grad_norm": pick([0.0, 0.5, 1.0, 3.25]),
        "epochs": pick([1.0, 2.5, 5.0]),
        "max_steps": pick([None, None, 1, 77]),
        "batch_size": pick([1, 2, 3, 8]),
        "accumulation": pick([1, 4, 7, 64]),
        "cutoff_len": pick([64, 96, 512, 500]),
        "gradient_checkpointing": pick([True, False]),
        "optimizer": pick(["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"]),
        "seed": pick([0, 1, 42, 2**32 - 1]),
    }  # fmt: skip
    evaluated = draw.random() < 0.3
    preset: dict[str, Any] = {
        "summary": "drawn",
        "hardware": {"vendor": "nvidia", "arch": "sm_80", "gpus": 1, "memory_gib": 80},
        "model": {"id": model, "template": pick(["qwen", "qwen", "llama3", "default", "chatml"])},
        "precision": pick(["fp32", "fp16", "bf16", "bf16", "weights"]),
        "weights": pick(["stored", "stored", "fp32", "fp16", "bf16"]),
        "attention": pick(["eager", "sdpa"]),
        "lora": {
            "rank": pick([1, 8, 64]),
            "alpha": pick([1, 16, 128]),
            "dropout": pick([0.0, 0.05, 0.5]),
            "target": pick(["all", "all", ["q_proj", "v_proj"], "q_proj,k_proj", ["down_proj"]]),
        },
        "train": train,
        "data": {"name": pick(["rows", "1e5", "0x10", "yes", "2024-01-01", "中文"])}
        | ({"eval": pick(["val", "12", "no"])} if evaluated else {}),
        "save": {"every_steps": pick([1, 50]), "keep": pick([1, 3])}
        | ({"eval_every_steps": pick([1, 25])} if evaluated else {}),
        "llamafactory": {},
    }
    names = [name for name in known if not any(part in name for part in UNDRAWN)]
    typed = said_by_preset(preset).keys() | {"warmup_ratio", "quantization_type"}
    passed = [name for name in names if name not in REFUSED and name not in typed]
    for name in draw.sample(names if draw.random() < 0.1 else passed, pick([0, 1, 1, 2, 2, 4])):
        preset["llamafactory"][name] = value_for(draw, known[name])
    if draw.random() < 0.2:
        preset["llamafactory"]["default_system"] = pick(TEXTS)
    return model, preset


def value_for(draw: random.Random, argument: Any) -> Any:
    if argument.choices:
        return draw.choice(list(argument.choices))
    kinds = {"bool": [True, False], "int": [0, 1, 2, 5, 16], "float": [0.0, 0.1, 0.5, 1.0, 4.0],
             "str": list(TEXTS), "list": [["a"]], "dict": [{}], "null": [None]}  # fmt: skip
    return draw.choice(kinds[draw.choice(argument.types)])


def planned(seed: int, work: Path, models: Path, known: dict[str, Any]) -> dict[str, Any]:
    """A case as iisft sees it: what it refuses, or the request for the trainer's side."""
    from iisft.errors import IisftError
    from iisft.llamafactory.arguments import compile_arguments
    from iisft.llamafactory.extra import check_extra
    from iisft.models.folder.checkpoint import inspect_checkpoint
    from iisft.models.view.build import build_view, plan_view
    from iisft.presets import checking
    from iisft.presets.documents import Document
    from iisft.presets.yaml12 import render_yaml

    name, values = drawn(random.Random(seed), known)
    try:
        loaded = checking.check(Document(name, work, values))
        found = check_extra(loaded.preset.llamafactory, loaded.preset, known, optional=frozenset())
        if wrong := [one.id for one in found if one.severity == "error"]:
            return {"refused": wrong[0]}
        checkpoint = inspect_checkpoint(models / name / "model")
        preset = loaded.preset
        view = plan_view(checkpoint, precision=preset.precision, weights=preset.weights,
                         trust_remote_code=False)  # fmt: skip
    except IisftError as error:
        return {"refused": getattr(error, "code", "") or error.finding.id}
    folder = work / str(seed)
    folder.mkdir()
    build_view(view, folder / "model")
    arguments = compile_arguments(preset, model=folder / "model", dataset_dir=folder / "data",
                                  output_dir=folder / "output", on_cpu=False)  # fmt: skip
    (folder / "train.yaml").write_text(render_yaml(arguments), encoding="utf-8")
    return {
        "request": {"yaml": str(folder / "train.yaml"), "meant": arguments, "on_cpu": False,
                    "distributed": False, "texts": []},
        "preset": preset.model_dump(mode="json"),
        "said": [[one.id, one.message] for one in [*loaded.warnings, *found]],
        "dtypes": [view.expected_weights_dtype, view.expected_compute_dtype],
        "checkpoint": str(checkpoint.folder),
    }  # fmt: skip


def trainers_side(requests: Path) -> None:
    """In the training interpreter: every request through child/build_model.py, and what the parser
    made of the arguments.
    """
    import dataclasses
    import enum

    sys.path.insert(0, str(HERE / "src" / "iisft" / "child"))
    import build_model
    import llamafactory.hparams as hparams

    real, parsed = hparams.get_train_args, []

    def recorded(arguments: Any) -> Any:
        groups = real(arguments)
        values = {}
        for group in groups:
            for field in dataclasses.fields(group):
                value = getattr(group, field.name)
                values[field.name] = value.value if isinstance(value, enum.Enum) else value
        values["compute_dtype"] = str(groups[0].compute_dtype)
        parsed.append(values)
        return groups

    hparams.get_train_args = recorded
    base = {"model_name_or_path": "x", "dataset": "rows", "template": "qwen", "output_dir": "x",
            "stage": "sft", "do_train": True, "finetuning_type": "lora"}  # fmt: skip
    answers: dict[str, Any] = {}
    for name, request in json.loads(requests.read_text(encoding="utf-8")).items():
        parsed.clear()
        facts = build_model.answer(request)
        answers[name] = {"facts": facts, "parsed": parsed[-1] if parsed else None}
    recorded({**base, "use_cpu": True})
    answers["defaults"] = {"parsed": parsed[-1]}
    requests.with_suffix(".answers").write_text(json.dumps(answers, default=str), encoding="utf-8")
    os._exit(0)


def said_by_preset(preset: dict[str, Any]) -> dict[str, Any]:
    """What the parsed arguments must say, written down apart from iisft's own mapping."""
    train, lora, save, data = (preset[name] for name in ("train", "lora", "save", "data"))
    target = lora["target"] if isinstance(lora["target"], list) else lora["target"].split(",")
    return {
        "learning_rate": train["learning_rate"],
        "lr_scheduler_type": train["scheduler"],
        "max_grad_norm": train["max_grad_norm"],
        "num_train_epochs": train["epochs"],
        "max_steps": train["max_steps"] or -1,
        "per_device_train_batch_size": train["batch_size"],
        "gradient_accumulation_steps": train["accumulation"],
        "cutoff_len": train["cutoff_len"],
        "optim": train["optimizer"],
        "seed": train["seed"],
        "bf16": preset["precision"] == "bf16",
        "fp16": preset["precision"] == "fp16",
        "pure_bf16": False,
        "lora_rank": lora["rank"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora["dropout"],
        "lora_target": target,
        "flash_attn": ATTENTION[preset["attention"]],
        "template": preset["model"]["template"],
        "dataset": [data["name"]],
        "eval_dataset": [data["eval"]] if data.get("eval") else None,
        "eval_steps": save.get("eval_every_steps"),
        "eval_strategy": "steps" if save.get("eval_every_steps") else "no",
        "save_strategy": "steps",
        "save_steps": save["every_steps"],
        "save_total_limit": save["keep"],
        "stage": "sft",
        "finetuning_type": "lora",
        "do_train": True,
        "quantization_bit": None,
        "disable_gradient_checkpointing": not train["gradient_checkpointing"],
        "create_new_adapter": False,
        "adapter_name_or_path": None,
        "resize_vocab": False,
        "use_rslora": False,
        "use_dora": False,
    }


def differences(case: dict[str, Any], answer: dict[str, Any], defaults: Any) -> Iterator[str]:
    """What is not as the preset says, and what nobody asked for."""
    preset, parsed, facts = case["preset"], answer["parsed"], answer["facts"]
    asked = {**said_by_preset(preset), **preset["llamafactory"]}
    for name, meant, read in facts["read_otherwise"]:
        yield f"{name}: written {meant!r}, read {read!r}"
    for name, value in asked.items():
        if name in parsed and not same(value, parsed[name]) and name not in DERIVED:
            yield f"{name}: {value!r}, parsed {parsed[name]!r}"
    always = case["request"]["meant"].keys()
    for name, value in (defaults or {}).items():
        asked_for = name in asked or name in always or name in DERIVED
        if not asked_for and not same(value, parsed.get(name)):
            yield f"{name}: nobody asked, parsed {parsed.get(name)!r}, default {value!r}"
    warmup = parsed.get("warmup_ratio") or parsed.get("warmup_steps") or 0
    if not same(preset["train"]["warmup_ratio"], warmup):
        yield f"warmup_ratio: {preset['train']['warmup_ratio']}, parsed {warmup}"
    yield from of_model(preset, facts)


def of_model(preset: dict[str, Any], facts: dict[str, Any]) -> Iterator[str]:
    """The model that was built: loaded whole, and with the adapter that the preset names."""
    if any(count for count, _ in facts["loaded"].values()):
        yield f"loaded: {facts['loaded']}"
    target = preset["lora"]["target"]
    names = target if isinstance(target, list) else target.split(",")
    adapted = set(facts["adapted"]["modules"])
    if names != ["all"] and adapted != {name.strip() for name in names}:
        yield f"lora.target: {target}, adapted {sorted(adapted)}"
    if names == ["all"] and ("lm_head" in adapted or not adapted):
        yield f"lora.target: all, adapted {sorted(adapted)}"


def same(meant: Any, parsed: Any) -> bool:
    """Equal, but for what a parser makes of a text or of a list."""
    if isinstance(meant, str) and isinstance(parsed, list):
        meant = [part.strip() for part in meant.split(",")] if meant != "none" else []
    if isinstance(meant, int | float) and isinstance(parsed, int | float):
        return float(meant) == float(parsed) and isinstance(meant, bool) == isinstance(parsed, bool)
    return bool(meant == parsed or (not meant and not parsed) or str(meant) == str(parsed))


def audit(cases: range, work: Path) -> tuple[Counter[str], list[str]]:
    """How the cases ended, and every silent difference."""
    from iisft.llamafactory import interpreter

    python = interpreter.training_interpreter()
    known = interpreter.arguments(interpreter.inspect(python))
    models = work / "models"
    script = HERE / "tests" / "fidelity" / "tiny_models.py"
    subprocess.run([str(python), str(script), str(models), *MODELS], check=True,
                   capture_output=True)  # fmt: skip
    plans = {str(seed): planned(seed, work, models, known) for seed in cases}
    requests = work / "requests.json"
    asked = {name: one["request"] for name, one in plans.items() if "request" in one}
    requests.write_text(json.dumps(asked), encoding="utf-8")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules")}
    with (work / "trainer.log").open("wb") as log:
        subprocess.run([str(python), __file__, "--trainer", str(requests)], check=True, env=env,
                       stdout=log, stderr=log)  # fmt: skip
    answers = json.loads(requests.with_suffix(".answers").read_text(encoding="utf-8"))
    ended, silent = Counter[str](), []
    defaults = answers.get("defaults", {}).get("parsed")
    for name, plan in plans.items():
        if "refused" in plan:
            ended[f"refused: {plan['refused']}"] += 1
        elif stage := answers[name]["facts"].get("stage"):
            ended[f"refused by the build: {stage}"] += 1
        else:
            ended["compared"] += 1
            told = " ".join(message for _, message in plan["said"])
            for one in differences(plan, answers[name], defaults):
                if one.partition(":")[0] not in told:
                    silent.append(f"{name}: {one}")
    return ended, silent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", type=int, nargs="?", default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer:
        trainers_side(options.trainer)
    with tempfile.TemporaryDirectory(prefix="iisft-audit-") as temporary:
        work = options.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        ended, silent = audit(range(options.seed, options.seed + options.cases), work)
    for what, count in sorted(ended.items()):
        print(f"{count:5}  {what}")
    print(f"{len(silent)} silent differences")
    print("\n".join(silent))
    sys.exit(bool(silent))


if __name__ == "__main__":
    main()
