"""Memory of sharded layouts (FSDP2, DeepSpeed's ZeRO): formulas from their sources.

FSDP's were compared with traces of fully_shard over two ranks; ZeRO's parts were not traced.
"""

from iisft.estimate import decoder
from iisft.estimate.architecture import Architecture
from iisft.estimate.shape import Layout, StepShape

LOADING = "loading"  # the phase before the first step
# bitsandbytes nf4 with double quantization (QLoRA, Dettmers et al. 2023): half a byte, a scale of
# one byte per block of 64, and a float32 per 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)

# elements; DeepSpeed's defaults (runtime/zero/config.py), which iisft's configuration keeps
_ZERO_BUCKET = 500_000_000
_ZERO3_PREFETCH = 50_000_000
_ZERO3_LIVE = 1_000_000_000


def _unit(model: Architecture, shape: StepShape, layout: Layout) -> tuple[int, int]:
    """Bytes of FSDP's gathered groups: the root (embedding, head), and a layer with its adapter."""
    item = 2 if layout.mixed or shape.weights != "float32" else 4
    lora_item = 2 if layout.mixed else 4
    root = model.root_parameters * item
    layer = (model.matrices // model.layers + model.bias_parameters) * (
        NF4_BYTES if shape.way == "nf4" else item
    )
    return root, int(layer) + model.adapter_parameters(shape.rank) // model.layers * lora_item


def fsdp(
    model: Architecture, shape: StepShape, layout: Layout, segment: str, kinds: dict[str, int]
) -> dict[str, int]:
    """FSDP2 with resharding after forward: the root stays gathered, one layer is prefetched.

    How many layers are gathered in each segment was read from traces of fully_shard over 2 ranks.
    accelerate (fsdp2_prepare_model) makes the shards float32 when mixed precision is on.
    """
    root, layer = _unit(model, shape, layout)
    weights = model.parameters * 4 if layout.mixed and shape.way != "nf4" else kinds["weights"]
    gathered = 1 if segment in (decoder.LOSS, decoder.LOSS_BACKWARD) else 2
    at_step = segment == decoder.OPTIMIZER
    return kinds | {
        "weights": weights // layout.ranks,
        "adapter": 4 * model.adapter_parameters(shape.rank) // layout.ranks,
        "optimizer": kinds["optimizer"] // layout.ranks,
        "gradients": kinds["gradients"] * (2 if layout.mixed else 1) // layout.ranks,
        "layer": kinds["layer"] // layout.ranks if at_step else kinds["layer"],
        "gathered": 0 if at_step else root + gathered * layer,
    }


def gathers(
    model: Architecture,
    shape: StepShape,
    layout: Layout,
    phases: dict[str, dict[str, int]],
    whole_weights: int,
) -> dict[str, dict[str, int]]:
    """Loading, and the moments at which a group is in memory twice: gathered into a buffer and
    copied out of it.

    The root and the first layer as forward begins; the root again as backward begins, beside the
    checkpoints and the loss's log-softmax; each next layer while the one before is computed.
    """
    root, layer = _unit(model, shape, layout)
    forward, backward = phases[decoder.FORWARD], phases[decoder.LOSS_BACKWARD]
    shards = {kind: forward[kind] for kind in ("weights", "adapter", "optimizer", "inputs")}
    kept = {kind: backward[kind] for kind in ("checkpoints", "layer")}
    before = kept | {
        "layer": 0 if shape.checkpointing else kept["layer"] * (model.layers - 1) // model.layers
    }
    gradients = {"gradients": phases[decoder.OPTIMIZER]["gradients"]}
    log_probabilities = 4 * shape.logit_rows * model.vocabulary
    # LLaMA-Factory's patcher asks transformers' is_fsdp_enabled(), which looks for variables that
    # the trainer sets only later: every rank loads the whole model onto its card, and accelerate's
    # fsdp2_prepare_model holds it until the shards are made.
    whole = {"weights": whole_weights, "shards": forward["weights"], "adapter": forward["adapter"]}
    return {
        LOADING: whole,
        "first gather": shards
        | {"gathered": 2 * (root + layer), "layer": shape.rows * model.hidden * 4},
        "second gather": shards | kept | {"gathered": 2 * root, "logits": log_probabilities},
        "next gather": shards | before | {"gathered": root + 3 * layer},
        "last gather": shards | gradients | {"gathered": root + 3 * layer},
    }


def zero(
    model: Architecture, shape: StepShape, layout: Layout, segment: str, kinds: dict[str, int]
) -> dict[str, int]:
    """DeepSpeed's stages 2 and 3, from its source (runtime/zero).

    With fp16 or bf16 the engine holds model and adapter in that dtype, and a float32 copy of its
    share of the adapter. Stage 2 makes two reduce buckets of fixed size, stage 3 one, and stage 3
    keeps up to a billion gathered elements.
    """
    adapter = model.adapter_parameters(shape.rank)
    item = 2 if layout.mixed or shape.weights != "float32" else 4
    master = 4 * adapter // layout.ranks if item == 2 else 0
    held = model.parameters * 2 if layout.mixed and shape.way != "nf4" else kinds["weights"]
    shared = kinds | {
        "weights": held,
        "adapter": adapter * item + master,
        "optimizer": kinds["optimizer"] // layout.ranks,
        "gradients": kinds["gradients"] // layout.ranks,
        "reduce buckets": 2 * _ZERO_BUCKET * item,
    }
    if layout.sharding == "zero3":
        live = min(_ZERO3_LIVE, model.parameters) + _ZERO3_PREFETCH
        shared["weights"] = held // layout.ranks
        shared["adapter"] = adapter * item // layout.ranks + master
        shared["reduce buckets"] = _ZERO_BUCKET * item
        shared["gathered"] = 0 if segment == decoder.OPTIMIZER else live * item
    return shared
