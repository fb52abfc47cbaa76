"""The preset's schema. Each field's description carries its reason and its source; `preset show
--explain`, `preset schema` and the documentation are made from it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from iisft.presets.sections import Data, PositiveInt, Save, Section, Watch

Vendor = Literal["amd", "nvidia", "cpu"]
Precision = Literal["fp32", "fp16", "bf16", "weights"]
Weights = Literal["stored", "fp32", "fp16", "bf16", "nf4"]
Attention = Literal["eager", "eager_blocks", "sdpa", "flash2"]
Sharding = Literal["none", "fsdp", "zero2", "zero3"]
Tracker = Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio"]

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Hardware(Section):
    """The machine that the preset is made for."""

    vendor: Vendor = Field(
        description="Whose GPUs, or cpu. Decides the environment and which checks apply."
    )
    arch: str = Field(
        description="gfx906 for MI50/MI60, sm_70 for V100 (any name that begins with it is "
        "compared), sm_80+ for that and every newer NVIDIA card, cpu.",
    )
    gpus: Annotated[int, Field(ge=0, le=4096)] = Field(
        description="Ranks on one machine, one GPU each (DDP). 0 only with vendor cpu: one CPU "
        "process."
    )
    memory_gib: Annotated[float, Field(ge=0, le=10**6)] = Field(
        description="Memory of one GPU. A smaller card is refused before training, not by an OOM "
        "at step 2."
    )


class Model(Section):
    """The base model."""

    id: str = Field(description="Hub id (owner/name, looked for under models/) or a folder.")
    template: str = Field(
        description="LLaMA-Factory's prompt template. It must be the one the model was trained "
        "with (qwen for "
        "Qwen2.5): another one trains on prompts that never occur at inference."
    )
    template_confirmed: str | None = Field(
        default=None,
        description="The template's name again, where it is meant although the model's own chat "
        "template writes something else. Without it such a template is refused.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run the Python files that lie in the model folder. Never needed for the "
        "shipped presets' models. The trust_remote_code of train.yaml is true in any case: it is "
        "about the run's view, whose code is iisft's, and the model's only where it is trusted.",
    )


class Lora(Section):
    """The low-rank adapter."""

    rank: PositiveInt = Field(
        default=64,
        description="Rank of the LoRA matrices: the capacity of the adapter. 64 instead of the "
        "usual 8 or 16, so that "
        "it can take up domain knowledge and not only an answer format (first user's design "
        "notes).",
    )
    alpha: PositiveInt = Field(
        default=128,
        description="Scale of the update (alpha / rank). Rule of thumb: twice the rank (design "
        "notes).",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05,
        description="Share of activations dropped before the adapter, against overfitting (design "
        "notes).",
    )
    target: str | Annotated[list[str], Field(min_length=1)] = Field(
        default="all",
        description="Modules that get an adapter. all = every linear layer but the output head "
        "(lm_head), as LLaMA-Factory has it; attention alone (q, v) was weaker on reasoning and "
        "instruction following (design notes).",
    )
    start: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="An adapter to go on training: RUN, RUN@CHECKPOINT (a step, best, final) or a "
        "folder. It must have this preset's rank, alpha, targets and base model; the run keeps a "
        "copy and proves that it was loaded. Optimizer and learning rate begin again.",
    )


class Train(Section):
    """Optimisation and batch."""

    learning_rate: Annotated[float, Field(gt=0, le=10**6)] = Field(
        description="Peak learning rate. LoRA usually takes 1e-4; 1e-5 with cosine is the careful "
        "end (design notes)."
    )
    scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "polynomial",
    ] = Field(
        default="cosine",
        description="Cosine decays slowly at the end and converges better than linear (design "
        "notes).",
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1,
        description="Share of the steps over which the learning rate rises to its peak.",
    )
    warmup_steps: PositiveInt | None = Field(
        default=None, description="Steps of that rise; if given, warmup_ratio does not count."
    )
    weight_decay: Annotated[float, Field(ge=0, le=10**30)] = Field(
        default=0.0,
        description="Decoupled decay of the adapter's weights, times the learning rate in each "
        "step. 0 is LLaMA-Factory's default too.",
    )
    max_grad_norm: Annotated[float, Field(ge=0, le=10**9)] = Field(
        default=0.5,
        description="Gradient clipping. 0.5 is tighter than the usual 1.0: a guard against "
        "exploding "
        "gradients and NaN (design notes).",
    )
    epochs: Annotated[float, Field(gt=0, le=10**6)] = Field(
        default=5.0, description="Passes over the data set."
    )
    max_steps: PositiveInt | None = Field(
        default=None,
        description="Stop after so many optimizer steps whatever `epochs` says; for trying things "
        "out.",
    )
    batch_size: PositiveInt = Field(
        default=1,
        description="Per-device batch size. 1 leaves the memory to the weights; accumulation "
        "makes the batch.",
    )
    accumulation: PositiveInt = Field(
        description="Micro-batches per optimizer step and GPU. Global batch = batch_size x "
        "accumulation x GPUs x nodes."
    )
    global_batch: PositiveInt | None = Field(
        default=None, description="If given, it must equal the global batch that would run."
    )
    cutoff_len: Annotated[int, Field(ge=16, le=10**8)] = Field(
        description="Longest row in tokens, prompt and answer together. LLaMA-Factory cuts longer "
        "prompts at their "
        "END, which removes the assistant header, and says nothing."
    )
    gradient_checkpointing: bool | Literal["fit"] = Field(
        default=True,
        description="Recompute activations in the backward pass: about 30 % slower, about half "
        "the memory (design notes). fit: as many layers as the plan finds room for keep the "
        "outputs of their big products and recompute only what is cheap; the same bits as true. "
        "The number is fixed when a run starts.",
    )
    logits: Literal["all", "trained"] = Field(
        default="all",
        description="trained: head and loss only at positions whose next token has a label, in "
        "chunks where they would need most of the memory. Gradients and losses are equal to all's "
        "to the last digits: they are summed in another order. Evaluation makes all of them.",
    )
    packing: bool = Field(
        default=False,
        description="Fill rows of cutoff_len tokens with several short ones: no token sees another "
        "row's (a mask for each pair of positions) and positions start again at 0, which the run "
        "proves. For data whose rows are much shorter than cutoff_len; an optimizer step then "
        "has more rows.",
    )
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"] = Field(
        default="adamw_torch",
        description="Named, never left to the library: since torch 2.8 its default is the fused "
        "AdamW, which differs "
        "in the last bit.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=42, description="Seed of data order, dropout, adapter."
    )


class Preset(Section):
    """A whole preset, after `extends` and overrides."""

    summary: str = Field(description="One line for `preset list`.")
    run_on: list[str] = Field(
        default_factory=list,
        description="Hardware on which this preset was run for real, with date and versions.",
    )
    hardware: Hardware
    model: Model
    precision: Precision = Field(
        description="Arithmetic: fp32; fp16 or bf16 by autocast; weights = in the stored dtype "
        "without autocast, which "
        "is LLaMA-Factory's silent default (a bf16 checkpoint trains in bf16, LlamaFactory#8914)."
    )
    weights: Weights = Field(
        default="stored",
        description="Base weights in memory: stored (as published; with precision fp32 every "
        "product is still computed "
        "in float32, bit for bit as with float32 weights, at half the memory), fp32, fp16, bf16, "
        "or nf4 (4 bit).",
    )
    attention: Attention = Field(
        description="eager, eager_blocks (eager's steps for 256 queries at a time, made again in "
        "the backward pass: memory does not grow with the square of the length; equal to eager to "
        "the last digits, and float32 inside in half precision; for GPUs without a fused kernel), "
        "sdpa (torch's kernels, math kernel where no fused one exists) or flash2. fp16 with eager "
        "overflows on Qwen2.x: loss 0, grad_norm NaN (transformers PR 33317)."
    )
    lora: Lora = Lora()
    train: Train
    sharding: Sharding = Field(
        default="none",
        description="none = DDP, each GPU holds the whole model. LoRA on one or two GPUs needs "
        "nothing else.",
    )
    data: Data
    save: Save = Save()
    watch: Watch = Watch()
    track: list[Tracker] = Field(
        default_factory=list,
        description="Programs and services that also get the metrics, under the run's name. "
        "wandb and swanlab need a login, or WANDB_MODE=offline or SWANLAB_MODE=local in env; the "
        "others write files.",
    )
    notify: list[str] = Field(
        default_factory=list,
        description="Where to tell that the run finished, failed, restarts or runs out of disk: "
        "addresses as apprise has them (ntfys://host/topic, mailto://, tgram://, dingtalk://, "
        "feishu://, wecombot://...), with $NAME for a variable that holds a secret. "
        "$IISFT_NOTIFY adds more.",
    )
    env: dict[VariableName, str] = Field(
        default_factory=dict, description="Environment variables of the trainer."
    )
    llamafactory: dict[str, Any] = Field(
        default_factory=dict,
        description="Any other LLaMA-Factory argument; name and type are checked against the "
        "installed version.",
    )

    def global_batch(self, world_size: int) -> int:
        """Rows per optimizer step: per-device batch size x accumulation x ranks."""
        return self.train.batch_size * self.train.accumulation * world_size
