"""Names that iisft and the code in the training interpreter both use, and what a card is known by.

It imports nothing: iisft reads it, and a copy lies in every view beside the modelling file.
"""

PROOF_MARK = "iisft-observed"
SAID_MARK = "iisft-said"
PROOF_VARIABLE = "IISFT_PROOF"
STOP_VARIABLE = "IISFT_STOP_FILE"
BOARD_VARIABLE = "TENSORBOARD_LOGGING_DIR"  # transformers' TensorBoardCallback reads it
ARITHMETIC_KEY = "iisft_arithmetic"
FLOAT32, NATIVE = ARITHMETICS = ("float32", "native")
# of a text model that is published with a tower: how its tensors' names in the files become those
# of the class, and what the files hold besides, as regular expressions
NAMES_KEY = "iisft_names"
LEFT_OUT_KEY = "iisft_left_out"
# vectors that the files store as float32 among narrower tensors (Qwen3.5), as globs
KEPT_FLOAT32_KEY = "iisft_kept_float32"
LAYERS_KEPT_KEY = "iisft_layers_kept"
LOGITS_KEY = "iisft_logits"
LOGITS_CHUNK_KEY = "iisft_logits_chunk"
ALL, TRAINED = LOGITS = ("all", "trained")
ATTENTION_KEY = "iisft_attention"
EAGER_BLOCKS = "eager_blocks"
QUERY_BLOCK = 256  # queries at a time
PROFILE_KEY = "iisft_profile"  # whether a step is recorded by torch's profiler, in the output
PROFILE_FILE = "profile.json"
# the step after which a rehearsed trainer waits to be killed, once; the file says that it waits
REHEARSED_KEY = "iisft_rehearsed"
REHEARSED_FILE = "rehearsed.json"
# in the order in which ROCm applies them; CUDA knows the last one alone
GPU_VARIABLES = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def bus_of(about: object) -> str:
    """0000:03:00.0 of torch's properties of a GPU; "" in a torch that does not tell."""
    parts = [getattr(about, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if not all(isinstance(part, int) for part in parts):
        return ""
    domain, bus, device = parts
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"
