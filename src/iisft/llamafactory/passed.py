"""Arguments of LLaMA-Factory that a preset's `llamafactory:` section may give.

Each argument stands in one table: a key of the preset decides it (arguments.MAPPING), it is refused
with the way to what was meant (refused.REFUSED), or it is passed: said, where it changes what is
trained, seen or proven. Names are those of LLaMA-Factory 0.9.5 with transformers 5.5; a test
compares.
"""

from collections.abc import Iterator
from typing import Any

from iisft.llamafactory.refused import by_name
from iisft.presets.schema import Preset

# On unless a preset switches them off.
_ON = ("average_tokens_across_devices", "ignore_pad_token_for_loss", "use_fast_tokenizer")


# Each changes what is trained, seen or proven; a preset that gives it means that.
SAID: dict[str, str] = by_name(
    {
        "additional_target": (
            "trains these modules whole beside the adapter, and saves them with it"
        ),
        "add_tokens add_special_tokens new_special_tokens_config": (
            "adds tokens whose embeddings are drawn at random; they are trained only where "
            "additional_target names embedding and head"
        ),
        "resize_vocab": (
            "changes the shape of the embeddings; they are trained only where "
            "additional_target names them"
        ),
        "average_tokens_across_devices": "weighs each rank's loss by its tokens or not",
        "compute_accuracy eval_on_start prediction_loss_only": (
            "changes what an evaluation computes; the plan does not count it"
        ),
        "dataloader_drop_last": "leaves out the rows at the end that fill no batch",
        "disable_shuffling": "trains the rows in their order in each epoch",
        "enable_liger_kernel use_liger_kernel liger_kernel_config use_unsloth use_v1_kernels": (
            "puts other kernels in place of those that are proven"
        ),
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model": (
            "decides which parts of a model with images get an adapter, beside lora.target"
        ),
        "ignore_pad_token_for_loss": "false trains on the padding",
        "include_num_input_tokens_seen": "changes which tokens the log counts",
        "logging_nan_inf_filter": "true writes a NaN loss as 0.0, which watch.nan can't see",
        "logging_steps": "shows the supervisor every so many steps only",
        "loraplus_lr_ratio loraplus_lr_embedding": (
            "gives the adapter's B another learning rate than train.learning_rate"
        ),
        "lr_scheduler_kwargs": "changes the course of train.scheduler",
        "mask_history": "trains on the last turn of a conversation alone",
        "max_samples streaming val_size": (
            "decides how many rows are trained on; the number of rows is not proven"
        ),
        "mixture_of_depths": "lets tokens skip layers",
        "moe_aux_loss_coef": "adds the router's loss to the loss",
        "neftune_noise_alpha": "adds noise to the embeddings while training",
        "optim_args optim_target_modules": "changes what train.optimizer does",
        "packing": "puts several rows into one, whose tokens see each other",
        "pissa_init pissa_iter pissa_convert": (
            "starts the adapter from the weights' largest singular values, and changes the "
            "base weights"
        ),
        "rope_scaling": "changes what the model computes of positions",
        "shift_attn": "lets tokens see a part of the row only",
        "split_special_tokens use_fast_tokenizer": (
            "may cut text into other tokens than were counted"
        ),
        "tf32": "true multiplies with 10 bits of mantissa on Ampere and newer",
        "torch_compile torch_compile_backend torch_compile_mode": (
            "generates kernels that are not those proven"
        ),
        "train_on_prompt": "trains on the prompts too",
        "train_sampling_strategy length_column_name": (
            "changes the order of rows; a resumed run is not the same as an uninterrupted one"
        ),
        "upcast_layernorm upcast_lmhead_output": "changes the dtype of a part of the model",
        "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha": (
            "trains on another loss than cross-entropy"
        ),
        "use_dora": "trains a magnitude beside the adapter's direction",
        "use_rslora": "scales the adapter by alpha / sqrt(rank), not alpha / rank",
        "use_reentrant_gc use_unsloth_gc": "recomputes activations in another way than is planned",
    }
)

# Each leaves weights, arithmetic, batch, rows and loss as the preset has them.
PASSED: dict[str, str] = by_name(
    {
        "adam_beta1 adam_beta2 adam_epsilon": "of the optimizer, as written",
        (
            "audio_sampling_rate crop_to_patches image_do_pan_and_scan image_max_pixels "
            "image_min_pixels media_dir use_audio_in_video video_fps video_max_pixels "
            "video_maxlen video_min_pixels"
        ): "of images and sound, as written",
        "default_system enable_thinking preserve_thinking tool_format": (
            "followed by the token account"
        ),
        (
            "buffer_size cache_dir data_shared_file_system dataloader_num_workers "
            "dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor "
            "low_cpu_mem_usage offload_folder overwrite_cache preprocessing_batch_size "
            "preprocessing_num_workers torch_empty_cache_steps"
        ): "how rows and weights are brought in",
        (
            "batch_eval_metrics eval_accumulation_steps eval_delay eval_do_concat_batches "
            "eval_on_each_dataset eval_use_gather_object include_for_metrics label_names "
            "use_cache use_kv_cache"
        ): "how an evaluation is done",
        (
            "ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters "
            "ddp_timeout"
        ): "how ranks talk",
        "full_determinism": "slower kernels of the same arithmetic",
        (
            "disable_tqdm include_effective_tokens_per_second log_level_replica "
            "log_on_each_node logging_dir logging_first_step plot_loss print_param_status "
            "project run_name save_on_each_node skip_memory_metrics swanlab_logdir "
            "swanlab_mode swanlab_project swanlab_run_name swanlab_workspace use_swanlab"
        ): "what is told of a run, and to whom",
        (
            "enable_torch_profiler profile_modules profiler_active_steps profiler_output_dir "
            "profiler_profile_memory profiler_record_shapes profiler_repeat "
            "profiler_wait_steps profiler_warmup_steps profiler_with_stack"
        ): "the profiler",
    }
)

# Arguments that die after the start without a package.
PACKAGES: dict[str, str] = {
    "enable_liger_kernel": "liger-kernel",
    "mixture_of_depths": "mixture-of-depth",
    "use_liger_kernel": "liger-kernel",
    "use_swanlab": "swanlab",
    "use_unsloth": "unsloth",
}


def is_off(value: Any) -> bool:
    """Whether a value leaves an argument switched off."""
    return value in (None, False, 0, "", "no", "none") or value in ([], {})


def changes(name: str, value: Any) -> bool:
    """Whether a value of the argument differs from what happens without it."""
    return is_off(value) == (name in _ON)


def packages_for(preset: Preset) -> Iterator[tuple[str, str]]:
    """Keys of the preset, each with the package that it needs."""
    for name, package in PACKAGES.items():
        if preset.llamafactory.get(name):
            yield f"llamafactory.{name}", package
    for tracker in preset.track:
        yield "track", tracker  # each package has its tracker's name
