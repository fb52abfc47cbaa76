"""Arguments of LLaMA-Factory that a preset's `llamafactory:` section may not give: why, and the way
to what was meant (the others are in iisft.llamafactory.passed).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

_About = TypeVar("_About")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an argument can't be given, and what does what it is for.

    `always`: iisft sets it itself, so that no value may be given; else a value that switches the
    argument off passes.
    """

    why: str
    way: str
    always: bool = False


def by_name(groups: Mapping[str, _About]) -> dict[str, _About]:
    """A table by name from one whose keys are several names."""
    return {name: about for names, about in groups.items() for name in names.split()}


_OTHER_STAGE = Refusal(
    "belongs to another stage than supervised fine-tuning",
    "use llamafactory-cli train for preference and reward training",
)
_NOT_LORA = Refusal(
    "does not go with LoRA, which iisft trains",
    "drop it, or use llamafactory-cli train for this method",
)
_GENERATION = Refusal(
    "is for generation, which a training run has none of",
    "iisft predict RUN --help has the options of generation",
)
_EXPORT = Refusal(
    "is for exports",
    "iisft export RUN, after the run",
)
_SERVING = Refusal(
    "is for an engine that answers; training ignores or refuses it",
    "iisft serve RUN, after the run",
)
_HUB = Refusal(
    "needs the network, and a run is offline",
    "iisft export RUN, then upload that folder",
)
_RAY = Refusal(
    "is Ray's, which iisft does not start",
    "--nodes N --node-rank R --rendezvous HOST:PORT, or llamafactory-cli for Ray",
)
_OPTIMIZER = Refusal(
    "replaces train.optimizer without a word",
    "drop it, or use llamafactory-cli train for this optimizer",
)
_CHECKPOINTS = "iisft decides what a checkpoint holds, so that a run can be resumed"
_TOKEN = Refusal(
    "is a secret: it would be written to files",
    "put it into the environment (HF_TOKEN)",
    always=True,
)
_WHERE = Refusal(
    "is where a run lives, which iisft decides",
    "drop it; --name names the run",
    always=True,
)

REFUSED: dict[str, Refusal] = by_name(
    {
        "stage": Refusal(
            "is decided by iisft itself",
            (
                "drop it: iisft does supervised fine-tuning with LoRA; use llamafactory-cli "
                "train for other stages"
            ),
            always=True,
        ),
        "finetuning_type": Refusal(
            "is decided by iisft itself",
            (
                "drop it: iisft does supervised fine-tuning with LoRA; use llamafactory-cli "
                "train for full, freeze or oft"
            ),
            always=True,
        ),
        "create_new_adapter adapter_folder": Refusal(
            "would start from an adapter that no preset names",
            "drop it; lora.start: RUN goes on with an adapter, and the folder of iisft export RUN "
            "as model.id gets a fresh one on top",
            always=True,
        ),
        "model_name_or_path": Refusal(
            "is decided by model.id",
            "set model.id instead",
            always=True,
        ),
        "trust_remote_code": Refusal(
            "is decided by model.trust_remote_code",
            "set model.trust_remote_code instead",
            always=True,
        ),
        "do_train": Refusal(
            "is decided by iisft itself",
            "drop it",
            always=True,
        ),
        "dataset_dir": Refusal(
            "is decided by iisft itself",
            "drop it; data.name names a staged dataset",
            always=True,
        ),
        "tokenized_path": Refusal(
            "would replace the rows by others without a word",
            "iisft data stage --tokenize keeps a dataset's tokens",
            always=True,
        ),
        "output_dir overwrite_output_dir": _WHERE,
        "use_cpu": Refusal(
            "is decided by where the run is planned",
            "drop it; hardware.vendor: cpu trains on the CPU",
            always=True,
        ),
        "resume_from_checkpoint": Refusal(
            "is decided by iisft itself",
            "iisft resume RUN",
            always=True,
        ),
        "auto_find_batch_size": Refusal(
            "would change the global batch after an OOM",
            "drop it; iisft plan finds a batch that fits",
            always=True,
        ),
        "early_stopping_steps": Refusal(
            "would end a run before train.epochs",
            "drop it; iisft compare RUN finds the best checkpoint",
            always=True,
        ),
        "logging_strategy": Refusal(
            "is what the supervisor sees of a run",
            "drop it",
            always=True,
        ),
        "enable_jit_checkpoint save_only_model": Refusal(
            _CHECKPOINTS,
            "drop it",
            always=True,
        ),
        "load_best_model_at_end greater_is_better": Refusal(
            (
                "would make another adapter the final one than the trained one, or dies after "
                "the start"
            ),
            "drop it; save.best: true keeps the checkpoint with the lowest evaluation loss",
        ),
        "ignore_data_skip": Refusal(
            "would let a resumed run see other rows",
            "drop it",
        ),
        "restore_callback_states_from_checkpoint": Refusal(
            _CHECKPOINTS,
            "drop it",
        ),
        "gradient_checkpointing gradient_checkpointing_kwargs": Refusal(
            "stands beside train.gradient_checkpointing",
            "set train.gradient_checkpointing instead",
            always=True,
        ),
        "data_seed": Refusal(
            "stands beside train.seed, which orders the rows",
            "set train.seed instead",
        ),
        "use_galore use_apollo use_badam": _NOT_LORA,
        (
            "galore_target galore_rank galore_update_interval galore_scale galore_proj_type "
            "galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale "
            "apollo_proj apollo_proj_type apollo_scale_type apollo_layerwise "
            "apollo_scale_front badam_mode badam_start_block badam_switch_mode "
            "badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose"
        ): _NOT_LORA,
        "use_muon use_adam_mini": _OPTIMIZER,
        (
            "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules "
            "module_dropout oft_rank oft_block_size oft_target"
        ): _NOT_LORA,
        "use_llama_pro": Refusal(
            "trains an adapter of the last blocks alone, whatever lora.target says",
            "drop it",
        ),
        "train_from_scratch": Refusal(
            "starts from random weights, not from model.id's",
            "drop it",
        ),
        "label_smoothing_factor": Refusal(
            "multiplies the loss by the accumulation in this version of transformers",
            "drop it",
        ),
        "accelerator_config": Refusal(
            (
                "cuts batches otherwise than train.batch_size and train.accumulation say "
                "(split_batches), or changes what ranks see"
            ),
            "drop it; set train.batch_size or train.accumulation",
        ),
        "parallelism_config use_hyper_parallel hyper_parallel_args use_mca": Refusal(
            "splits the model in a way that iisft neither plans nor proves",
            "set sharding instead",
        ),
        (
            "use_kt kt_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
            "kt_lora_expert_num kt_lora_expert_intermediate_size"
        ): Refusal(
            "puts KTransformers' kernels in place of the layers that are proven",
            "use llamafactory-cli train for KTransformers",
        ),
        "fp8 fp8_backend fp8_enable_fsdp_float8_all_gather": Refusal(
            "stands beside precision, which has no fp8",
            "set precision instead",
        ),
        "bf16_full_eval fp16_full_eval": Refusal(
            "would cast the model for an evaluation",
            "set precision instead",
        ),
        "quantization_device_map": Refusal(
            "is refused by LLaMA-Factory in training",
            "drop it",
        ),
        (
            "infer_backend infer_dtype vllm_maxlen vllm_gpu_util vllm_enforce_eager "
            "vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size "
            "sglang_config sglang_lora_backend"
        ): _SERVING,
        (
            "do_predict predict_with_generate generation_max_length generation_num_beams "
            "generation_config eval_num_beams sortish_sampler do_sample temperature top_p "
            "top_k num_beams max_length max_new_tokens repetition_penalty length_penalty "
            "skip_special_tokens"
        ): _GENERATION,
        "do_eval": Refusal(
            "is decided by data.eval",
            "set data.eval and save.eval_every_steps",
        ),
        (
            "export_dir export_size export_device export_quantization_bit "
            "export_quantization_dataset export_quantization_nsamples "
            "export_quantization_maxlen export_legacy_format export_hub_model_id"
        ): _EXPORT,
        (
            "push_to_hub hub_private_repo hub_model_id hub_strategy hub_always_push "
            "hub_revision trackio_space_id"
        ): _HUB,
        (
            "hub_token hf_hub_token ms_hub_token om_hub_token swanlab_api_key "
            "swanlab_lark_secret swanlab_lark_webhook_url"
        ): _TOKEN,
        "model_revision": Refusal(
            "has no effect: the weights lie in a folder",
            "iisft download MODEL --revision R",
        ),
        "ray_num_workers ray_init_kwargs": _RAY,
        "master_addr master_port local_rank": Refusal(
            "is decided by how ranks are started",
            "--nodes N --node-rank R --rendezvous HOST:PORT",
        ),
        "log_level": Refusal(
            "would hide the lines that prove a run",
            "drop it",
        ),
        "debug init_special_tokens remove_unused_columns": Refusal(
            "is ignored by LLaMA-Factory in a run like this",
            "drop it",
        ),
        "interleave_probs mix_strategy": Refusal(
            "draws rows by chance, and a run has one dataset, mixed before it starts",
            "drop it; data.name: [A, B] with data.mix: {A: 0.7, B: 0.3} mixes by exact shares",
        ),
        (
            "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing "
            "kto_chosen_weight kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs "
            "ppo_score_norm ppo_target ppo_whiten_rewards ref_model ref_model_adapters "
            "ref_model_quantization_bit reward_model reward_model_adapters "
            "reward_model_quantization_bit reward_model_type ld_alpha"
        ): _OTHER_STAGE,
    }
)
