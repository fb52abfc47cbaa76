"""Disk that a run fills: its checkpoints, each with the optimizer's state and the tokenizer, and
the rows as the trainer keeps them while it runs.
"""

from collections.abc import Mapping, Sequence

from iisft.models.folder.safetensors import Tensor

_BYTES_PER_PARAMETER = 12  # float32 adapter and AdamW's two moments
_TOKENIZER_BYTES = 20 * 2**20
_ROW_COPIES = 2  # datasets' Arrow file of the rows, and LLaMA-Factory's aligned one
_BYTES_PER_TOKEN = 13  # ids int32, mask int8, labels int64; 0.9.5 with datasets 4.0: 13.05 measured
# what peft leaves out where LLaMA-Factory's `lora_target: all` is asked for
_NOT_ADAPTED = ("embed_tokens", "lm_head", "wte", "embed_out")


def checkpoint_bytes(adapter_parameters: int) -> int:
    """One checkpoint."""
    return adapter_parameters * _BYTES_PER_PARAMETER + _TOKENIZER_BYTES


def run_bytes(adapter_parameters: int, keep: int) -> int:
    """All that lie there at once: those kept, the one being written, and the adapter at the end."""
    return checkpoint_bytes(adapter_parameters) * (keep + 2)


def rows_bytes(file_bytes: int, tokens: float) -> int:
    """What the trainer's library writes of the rows before the first step.

    Args:
        file_bytes: size of the staged files.
        tokens: of all rows, after cutting.
    """
    return int(file_bytes * _ROW_COPIES + tokens * _BYTES_PER_TOKEN)


def adapter_parameters(
    tensors: Mapping[str, Tensor], rank: int, target: str | Sequence[str]
) -> int:
    """Rank x (in + out) of each adapted layer (Hu et al. 2021), from the names and shapes in the
    model's files: for a model whose architecture the plan doesn't know.
    """
    names = [name.strip() for name in (target.split(",") if isinstance(target, str) else target)]
    return sum(
        rank * sum(tensor.shape)
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2
        and (
            not any(part in name for part in _NOT_ADAPTED)
            if names == ["all"]
            else name.removesuffix(".weight").rpartition(".")[2] in names
        )
    )
