"""Whether batch, GPUs, sharding and the course of the learning rate go together."""

from collections.abc import Iterator, Mapping
from typing import Any

from iisft.errors import Finding
from iisft.presets.case import Case
from iisft.rules import change_preset, preset_rule, seen

_OF_FRESH_ADAPTERS = (
    "additional_target",
    "pissa_init",
    "resize_vocab",
    "use_dora",
    "use_llama_pro",
    "use_unsloth",
)


@preset_rule("global-batch", applies="presets with train.global_batch", source="arithmetic")
def global_batch(case: Case) -> Iterator[Finding]:
    """A stated global batch is a promise."""
    if case.preset is None or case.preset.train.global_batch is None:
        return
    train, ranks = case.preset.train, case.world_size(case.preset)
    actual = case.preset.global_batch(ranks)
    if train.global_batch != actual:
        yield seen(
            f"global_batch is {train.global_batch}, but batch_size {train.batch_size} x "
            f"accumulation {train.accumulation} x {ranks} ranks = {actual}",
            case.place("train.global_batch"),
            change_preset(
                f"train.global_batch={actual}",
                f"--set train.global_batch={actual}, or another accumulation",
            ),
        )


@preset_rule("sharding-one-gpu", applies="sharding on one GPU", source="torch FSDP, DeepSpeed")
def sharding_alone(case: Case) -> Iterator[Finding]:
    """Nothing can be sharded over one GPU."""
    preset = case.preset
    if preset and preset.sharding != "none" and (ranks := case.world_size(preset)) < 2:
        yield seen(
            f"sharding {preset.sharding} needs at least two GPUs, this run has {ranks}",
            case.place("sharding"),
            change_preset("sharding=none"),
        )


@preset_rule(
    "stored-fp32-sharded",
    applies="sharding with precision: fp32 over stored weights",
    source="never verified",
)
def sharded_exact_fp32(case: Case) -> Iterator[Finding]:
    """The float32 products over stored weights were never verified on sharded parameters."""
    preset = case.preset
    sharded = preset is not None and preset.sharding != "none"
    if preset and sharded and preset.precision == "fp32" and preset.weights == "stored":
        yield seen(
            f"float32 arithmetic on stored weights is not verified with sharding {preset.sharding}",
            case.place("weights"),
            change_preset("weights=fp32", "--set weights=fp32, or --set sharding=none"),
        )


@preset_rule("start-fresh", applies="presets with lora.start", source="LLaMA-Factory's adapter.py")
def start_fresh(case: Case) -> Iterator[Finding]:
    """Sharded matrices have no digest that could prove which adapter was loaded, and what makes a
    fresh adapter another one is not looked at where one is loaded.
    """
    preset = case.preset
    if preset is None or preset.lora.start is None:
        return
    if preset.sharding != "none":
        yield seen(
            f"lora.start with sharding {preset.sharding} can't be proven",
            case.place("lora.start"),
            change_preset("sharding=none"),
        )
    for name in _OF_FRESH_ADAPTERS:
        if case.argument(name):
            yield seen(
                f"llamafactory.{name} is for a fresh adapter, and lora.start goes on with one",
                case.place("lora.start"),
                change_preset(f"llamafactory.{name}=null", f"drop llamafactory.{name}"),
            )


@preset_rule(
    "fit-unverified",
    applies="gradient_checkpointing: fit with sharding or 4-bit weights",
    source="never verified",
)
def fit_unproven(case: Case) -> Iterator[Finding]:
    """Kept products were never verified with layers that are gathered, or unpacked from 4 bit."""
    preset = case.preset
    if preset is None or preset.train.gradient_checkpointing != "fit":
        return
    if preset.sharding != "none" or preset.weights == "nf4":
        other = f"sharding {preset.sharding}" if preset.sharding != "none" else "weights nf4"
        yield seen(
            f"gradient_checkpointing fit is not verified with {other}",
            case.place("train.gradient_checkpointing"),
            change_preset("train.gradient_checkpointing=true"),
        )


@preset_rule(
    "shared-keys-sharded",
    applies="sharding fsdp, Gemma 4 E2B and E4B",
    source="transformers modeling_gemma4.py hands one dict from layer to layer, torch's FSDP2 "
    "gives each sharded layer a copy of it (traced: KeyError in the first layer that takes)",
)
def shared_keys_sharded(case: Case) -> Iterator[Finding]:
    """Later layers take keys and values of earlier ones, and find none under FSDP2."""
    preset, shared = case.preset, case.model.get("num_kv_shared_layers")
    if preset is not None and preset.sharding == "fsdp" and shared:
        yield seen(
            f"the last {shared} layers take keys and values of earlier ones, which sharding fsdp "
            "hides from them: the first step ends with a KeyError",
            case.place("sharding"),
            change_preset("sharding=none"),
        )


@preset_rule(
    "packing-wrong",
    applies="train.packing",
    source="LLaMA-Factory 0.9.5's collator.py and packing.py; LlamaFactory#10736",
)
def wrongly_packed(case: Case) -> Iterator[Finding]:
    """Its positions are not padded with the row, its mask of four dimensions takes the place of a
    sliding window's, and with flash2 it has no mask at all that could be looked at.
    """
    preset = case.preset
    if preset is None or not preset.train.packing:
        return
    if (cutoff_len := preset.train.cutoff_len) % 8:
        fitting = cutoff_len // 8 * 8
        yield seen(
            f"packing crashes unless cutoff_len ({cutoff_len}) divides by 8",
            case.place("train.cutoff_len"),
            change_preset(f"train.cutoff_len={fitting}"),
        )
    if preset.attention == "flash2":
        yield seen(
            "what packed rows see of each other is not verified with flash2",
            case.place("attention"),
            change_preset("attention=sdpa"),
        )
    if _slides(case.model):
        yield seen(
            "LLaMA-Factory's mask of packed rows takes the place of this model's sliding window",
            case.place("train.packing"),
            change_preset("train.packing=false", "packing: false"),
            in_preset=False,
        )


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether some layer of a model sees only so many tokens back."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return "sliding_attention" in kinds
    window = config.get("sliding_window")
    return isinstance(window, int) and config.get("use_sliding_window") is not False


@preset_rule("sharding-unverified", applies="sharding", source="no run of ours on a GPU")
def unproven_sharding(case: Case) -> Iterator[Finding]:
    """Said so, because nobody has shown save and resume with it."""
    preset = case.preset
    if preset and preset.sharding != "none":
        yield seen(
            f"sharding {preset.sharding} is passed on to LLaMA-Factory; iisft ran and resumed it "
            "on no GPU yet",
            case.place("sharding"),
            change_preset("sharding=none", "--set sharding=none where the model fits"),
            "warn",
        )


@preset_rule("no-gpus", applies="GPU presets with hardware.gpus: 0", source="the schema")
def no_gpus(case: Case) -> Iterator[Finding]:
    """hardware.gpus 0 means one CPU process."""
    preset = case.preset
    if preset and preset.hardware.gpus == 0 and preset.hardware.vendor != "cpu":
        yield seen(
            f"vendor {preset.hardware.vendor} needs at least one GPU",
            case.place("hardware.gpus"),
            change_preset("hardware.gpus=1"),
        )


@preset_rule(
    "constant-warmup",
    applies="scheduler: constant with a warmup_ratio or warmup_steps",
    source="transformers/optimization.py, get_scheduler: the warm-up is not passed on",
)
def constant_ignores_warmup(case: Case) -> Iterator[Finding]:
    """The constant schedule begins at its peak, whatever warmup_ratio and warmup_steps say."""
    train = case.preset.train if case.preset else None
    name = "warmup_steps" if train and train.warmup_steps else "warmup_ratio"
    if train and train.scheduler == "constant" and getattr(train, name):
        off = "null" if name == "warmup_steps" else "0"
        yield seen(
            f"scheduler constant ignores {name} {getattr(train, name)}",
            case.place(f"train.{name}"),
            change_preset(
                "train.scheduler=constant_with_warmup",
                f"--set train.scheduler=constant_with_warmup, or train.{name}={off}",
            ),
            "warn",
        )
