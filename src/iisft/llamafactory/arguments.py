"""From a preset to train.yaml: the one place that maps a preset's keys to LLaMA-Factory's argument
names.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from iisft.presets.schema import Preset, Sharding
from iisft.presets.sections import joined
from iisft.workspace import START_ADAPTER

# the view's own attention in blocks takes the place of eager (child/attention_iisft.py)
_ATTENTION = {"eager": "disabled", "eager_blocks": "disabled", "sdpa": "sdpa", "flash2": "fa2"}

# Preset key -> the LLaMA-Factory arguments that it becomes.
MAPPING: dict[str, Callable[[Preset], dict[str, Any]]] = {
    "model.template": lambda p: {"template": p.model.template},
    "precision": lambda p: {
        "bf16": p.precision == "bf16",
        "fp16": p.precision == "fp16",
        "pure_bf16": False,
    },
    "weights": lambda p: (
        {
            "quantization_bit": 4,
            "quantization_type": "nf4",
            "quantization_method": "bnb",
            "double_quantization": True,
        }
        if p.weights == "nf4"
        else {}
    ),
    "attention": lambda p: {"flash_attn": _ATTENTION[p.attention]},
    "lora.rank": lambda p: {"lora_rank": p.lora.rank},
    "lora.alpha": lambda p: {"lora_alpha": p.lora.alpha},
    "lora.dropout": lambda p: {"lora_dropout": p.lora.dropout},
    "lora.target": lambda p: {
        "lora_target": p.lora.target if isinstance(p.lora.target, str) else ",".join(p.lora.target)
    },
    "lora.start": lambda p: {"adapter_name_or_path": START_ADAPTER} if p.lora.start else {},
    "train.learning_rate": lambda p: {"learning_rate": p.train.learning_rate},
    "train.scheduler": lambda p: {"lr_scheduler_type": p.train.scheduler},
    # beside a warmup_ratio transformers takes no warmup_steps (TrainingArguments.__post_init__)
    "train.warmup_ratio": lambda p: (
        {} if p.train.warmup_steps else {"warmup_ratio": p.train.warmup_ratio}
    ),
    "train.warmup_steps": lambda p: (
        {"warmup_steps": p.train.warmup_steps} if p.train.warmup_steps else {}
    ),
    "train.weight_decay": lambda p: (
        {"weight_decay": p.train.weight_decay} if p.train.weight_decay else {}
    ),
    "train.max_grad_norm": lambda p: {"max_grad_norm": p.train.max_grad_norm},
    "train.epochs": lambda p: {"num_train_epochs": p.train.epochs},
    "train.max_steps": lambda p: {"max_steps": p.train.max_steps} if p.train.max_steps else {},
    "train.batch_size": lambda p: {"per_device_train_batch_size": p.train.batch_size},
    "train.accumulation": lambda p: {"gradient_accumulation_steps": p.train.accumulation},
    "train.cutoff_len": lambda p: {"cutoff_len": p.train.cutoff_len},
    "train.packing": lambda p: {"neat_packing": True} if p.train.packing else {},
    "train.gradient_checkpointing": lambda p: {
        "disable_gradient_checkpointing": p.train.gradient_checkpointing is False
    },
    "train.optimizer": lambda p: {"optim": p.train.optimizer},
    "train.seed": lambda p: {"seed": p.train.seed},
    "sharding": lambda p: _sharding(p),
    # one file whatever it is mixed of: LLaMA-Factory's own `dataset: a,b` can only take all rows of
    # each, or draw by probabilities, after which neither shares nor number are what was asked for
    # (data/data_utils.py, merge_dataset)
    "data.name": lambda p: {"dataset": p.data.trained},
    "data.eval": lambda p: (
        {"eval_dataset": joined(p.data.evaluated), "per_device_eval_batch_size": p.train.batch_size}
        if p.data.eval
        else {}
    ),
    "save.every_steps": lambda p: {"save_strategy": "steps", "save_steps": p.save.every_steps},
    "save.keep": lambda p: {"save_total_limit": p.save.keep},
    "save.eval_every_steps": lambda p: (
        {"eval_strategy": "steps", "eval_steps": p.save.eval_every_steps}
        if p.save.eval_every_steps
        else {}
    ),
    # without load_best_model_at_end: the final adapter is the trained one
    "save.best": lambda p: {"metric_for_best_model": "eval_loss"} if p.save.best else {},
    # trackio's default is a public Space of that name; null keeps a folder of this machine
    "track": lambda p: (
        {"report_to": p.track or "none"}
        | ({"trackio_space_id": None} if "trackio" in p.track else {})
    ),
}

# What iisft sets in every run; a preset's `llamafactory:` section may say otherwise.
ALWAYS: dict[str, Any] = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "logging_steps": 1,
    "include_num_input_tokens_seen": "non_padding",
    "logging_nan_inf_filter": False,  # the default turns a NaN loss into 0.0 in the log
    "ddp_timeout": 1800,  # seconds; the examples' 180000000 is 5.7 years, so a hang never ends
    "overwrite_output_dir": False,
    "plot_loss": True,
    "save_only_model": False,  # a checkpoint without the optimizer can't be resumed
    # its ranks do not agree on the step; the view's own callback saves and stops
    "enable_jit_checkpoint": False,
    "disable_tqdm": True,  # the log is a file; iisft draws the bar
}

# A rehearsal chooses its rows and their order, and looks at each step.
REHEARSED: dict[str, Any] = {"disable_shuffling": True, "logging_steps": 1}

# Each brings kernels or modules that take a layer's weight themselves, so that its float32 product
# is not used.
PAST_THE_VIEW = (
    "enable_liger_kernel",
    "fp8",
    "mixture_of_depths",
    "pissa_init",
    "resize_vocab",
    "shift_attn",
    "use_dora",
    "use_kt",
    "use_unsloth",
    "use_unsloth_gc",
    "use_v1_kernels",
)

# With each several rows become one of nearly cutoff_len tokens.
PACKS = ("packing", "neat_packing")

# With each a row has labels at other positions than the account of its data says.
LABELS_MORE = (*PACKS, "train_on_prompt")

# Each reads or makes the logits of all positions itself.
READS_ALL_LOGITS = (
    "enable_liger_kernel",
    "label_smoothing_factor",
    "mixture_of_depths",
    "use_asft_loss",
    "use_dft_loss",
    "use_eaft_loss",
    "use_unsloth",
)

# Each changes what a step holds or computes in a way that the plan does not count.
UNCOUNTED = frozenset(
    {
        "additional_target",
        "enable_liger_kernel",
        "mixture_of_depths",
        "neat_packing",
        "packing",
        "quantization_bit",
        "resize_vocab",
        "shift_attn",
        "upcast_layernorm",
        "upcast_lmhead_output",
        "use_dora",
        "use_reentrant_gc",
        "use_unsloth",
        "use_unsloth_gc",
    }
)


def of_data(preset: Preset) -> dict[str, Any]:
    """The preset's own arguments with what its keys say about how rows are put together."""
    return preset.llamafactory | MAPPING["train.packing"](preset)


def is_packed(preset: Preset) -> bool:
    """Whether a row that is trained is made of several."""
    given = of_data(preset)
    return any(given.get(name) for name in PACKS)


def compile_arguments(
    preset: Preset, *, model: Path, dataset_dir: Path, output_dir: Path, on_cpu: bool
) -> dict[str, Any]:
    """The whole train.yaml.

    Args:
        preset: what should run.
        model: the view folder that the trainer loads.
        dataset_dir: the folder with the run's dataset_info.json.
        output_dir: where the trainer writes checkpoints and the adapter.
        on_cpu: no GPU takes part.
    """
    compiled: dict[str, Any] = {
        "model_name_or_path": str(model),
        # for the view alone: its modelling file is iisft's, its other code was taken out
        "trust_remote_code": True,
    }
    for arguments in MAPPING.values():
        compiled |= arguments(preset)
    compiled |= {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir)}
    if preset.track:
        compiled["run_name"] = output_dir.parent.name
    if on_cpu:
        compiled["use_cpu"] = True
    return compiled | ALWAYS | preset.llamafactory


def needed_packages(preset: Preset) -> tuple[str, ...]:
    """Packages beyond LLaMA-Factory's own that the preset's arguments make it import."""
    needed = {
        "bitsandbytes": preset.weights == "nf4",
        "deepspeed": preset.sharding in ("zero2", "zero3"),
    }
    return tuple(name for name, wanted in needed.items() if wanted)


def own_arguments(preset: Preset) -> dict[str, str]:
    """LLaMA-Factory arguments that a preset key decides, in this preset or with another value of
    that key.
    """
    everything = preset.model_copy(
        update={
            "weights": "nf4",
            "lora": preset.lora.model_copy(update={"start": "any"}),
            "train": preset.train.model_copy(
                update={"max_steps": 1, "packing": True, "warmup_steps": 1, "weight_decay": 1.0}
            ),
            "data": preset.data.model_copy(update={"eval": "any"}),
            "save": preset.save.model_copy(update={"eval_every_steps": 1, "best": True}),
        }
    )
    by_ratio = {"train": preset.train.model_copy(update={"warmup_steps": None})}
    variants = [preset.model_copy(update=by_ratio)]
    variants += [
        everything.model_copy(update={"sharding": sharding}) for sharding in get_args(Sharding)
    ]
    return {
        name: key
        for variant in variants
        for key, arguments in MAPPING.items()
        for name in arguments(variant)
    }


def _sharding(preset: Preset) -> dict[str, Any]:
    match preset.sharding:
        case "fsdp":
            return {
                "fsdp": "full_shard auto_wrap",
                "fsdp_config": {
                    "version": 2,
                    "reshard_after_forward": True,
                    "state_dict_type": "FULL_STATE_DICT",
                },
            }
        case "zero2" | "zero3":
            return {"deepspeed": _deepspeed(int(preset.sharding[-1]))}
    return {}


def _deepspeed(stage: int) -> dict[str, Any]:
    """A DeepSpeed configuration that decides nothing itself: precision, batch and clipping come
    from the trainer.
    """
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": "auto"},
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
    }
