"""The table of known failures: every entry against a real excerpt, and no entry against a healthy
log.
"""

import re
from pathlib import Path

import pytest

from iisft.llamafactory.failures import KNOWN, Failure, diagnose, exception_of

FOLDER = Path(__file__).parent
EXCERPTS = {file.stem: file for file in sorted((FOLDER / "failures").glob("*.log"))}
OTHER_FORMS = [
    ("gguf-unknown", "ERROR:hf-to-gguf:Model DemoForCausalLM is not supported"),
    (
        "gpu-out-of-memory",
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 3.31 GiB. GPU 0 has a total",
    ),
    (
        "gpu-out-of-memory",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 112.00 MiB. GPU",
    ),
    (
        "gpu-out-of-memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ),
    ("host-out-of-memory", "MemoryError"),
    (
        "shared-memory-full",
        "RuntimeError: DataLoader worker (pid 46794) is killed by signal: Bus error. It is "
        "possible that dataloader's "
        "workers are out of shared memory. Please try to raise your shared memory limit.",
    ),
    ("disk-full", "OSError: [Errno 28] No space left on device"),
    (
        "disk-full",
        "safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: "
        "StorageFull, "
        'message: "No space left on device" })',
    ),
    (
        "disk-full",
        "RuntimeError: [enforce fail at inline_container.cc:445] . PytorchStreamWriter failed "
        "writing file data/176: "
        "file write failed",
    ),
    ("hip-no-code-for-gpu", "torch.AcceleratorError: HIP error: invalid device function"),
    (
        "hip-no-code-for-gpu",
        "hipErrorNoBinaryForGpu: Unable to find code object for all current devices!",
    ),
    ("hip-no-pcie-atomics", "HIP failure 'the operation cannot be performed in the present state'"),
    (
        "gpu-launch-failure",
        "[rank1]: torch.AcceleratorError: HIP error: unspecified launch failure",
    ),
    ("gpu-lost", "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus"),
    ("gpu-lost", "slurmstepd: error: NVML: Failed to get usage(15): GPU is lost"),
    ("gpu-memory-fault", "  what():  CUDA error: an illegal memory access was encountered"),
    (
        "gpu-hang",
        "(pid=63079) :  25%|███▊       | 5.00/20.0 [1:04:24<3:07:19, 749s/it]"
        "HW Exception by GPU node-1 (Agent handle: 0x3508fba0) reason :GPU Hang",
    ),
    ("no-gpu", "RuntimeError: No HIP GPUs are available"),
    (
        "no-gpu",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please "
        "update your",
    ),
    ("no-gpu", "AssertionError: Torch not compiled with CUDA enabled"),
    (
        "collective-timeout",
        "[1744]   1%|▏         | 24/1752 [01:08<1:22:56,  2.88s/it][rank5]:[E602 "
        "11:17:52.185053341 "
        "ProcessGroupNCCL.cpp:632] [Rank 5] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=1580, ",
    ),
    (
        "collective-timeout",
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed "
        "out waiting 2000ms "
        "for recv operation to complete",
    ),
    (
        "connection-lost",
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error "
        "[192.168.70.92]:25266: "
        "Connection reset by peer",
    ),
    (
        "connection-lost",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.",
    ),
    (
        "port-in-use",
        "RuntimeError: The server socket has failed to listen on any local network address. The "
        "server socket has "
        "failed to bind to [::]:29500 (errno: 98 - Address already in use).",
    ),
    (
        "rendezvous-timeout",
        "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to "
        "the C10d store has "
        "failed. See inner exception for details.",
    ),
    (
        "rendezvous-timeout",
        "torch.distributed.DistNetworkError: The client socket has timed out after 2000ms while "
        "trying to connect to ",
    ),
    ("torch-parts-mismatch", "RuntimeError: operator torchvision::nms does not exist"),
    (
        "torch-parts-mismatch",
        "OSError: /home/user/.local/lib/python3.8/site-packages/torchaudio/lib/libtorchaudio.so: "
        "undefined symbol: "
        "_ZNK5torch8autograd4Node4nameEv",
    ),
    (
        "bitsandbytes-missing",
        "ImportError: Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip install "
        "-U bitsandbytes`",
    ),
    (
        "bitsandbytes-without-library",
        "RuntimeError: Method 'cquantize_blockwise_fp16_nf4' not available in CPU-only version of "
        "bitsandbytes.",
    ),
    ("bf16-not-supported", "LLVM ERROR: Cannot select: intrinsic %llvm.amdgcn.fdot2.bf16.bf16"),
    ("deepspeed-build-failed", "RuntimeError: Error building extension 'fused_adam'"),
    (
        "deepspeed-build-failed",
        "deepspeed.ops.op_builder.builder.MissingCUDAException: CUDA_HOME does not exist, unable "
        "to compile CUDA op(s)",
    ),
    (
        "shared-library-missing",
        "OSError: libcudart.so.12: cannot open shared object file: No such file or directory",
    ),
    (
        "dataset-empty",
        "datasets.arrow_writer.SchemaInferenceError: Please pass `features` or at least one "
        "example",
    ),
    (
        "torch-file-torn",
        '  File "/home/user/venv/lib/python3.11/site-packages/torch/serialization.py", line 1855, '
        "in _legacy_load",
    ),
    (
        "torch-file-torn",
        '  File "/home/user/venv/lib/python3.11/site-packages/transformers/trainer.py", line '
        "3541, in _load_rng_state",
    ),
    (
        "safetensors-torn",
        "safetensors_rust.SafetensorError: Error while deserializing header: header too small",
    ),
    (
        "checkpoint-of-another-shape",
        "ValueError: loaded state dict contains a parameter group that doesn't match the size of "
        "optimizer's group",
    ),
    ("token-out-of-range", "IndexError: index out of range in self"),
    ("token-out-of-range", "RuntimeError: CUDA error: device-side assert triggered"),
]
OUT_OF_MEMORY = "[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 270.00 MiB."
CONNECTION_RESET = (
    "[rank1]: RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error "
    "[127.0.0.1]:25266: "
    "Connection reset by peer"
)
TIMEOUT = (
    "[rank1]:[E1206 18:44:12.715298746 ProcessGroupNCCL.cpp:607] [Rank 1] Watchdog caught "
    "collective operation "
    "timeout: WorkNCCL(SeqNum=7753, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600061 "
    "milliseconds"
)


def lines_of(file: Path) -> list[str]:
    """A log's lines without the first one, which says where it comes from."""
    first, *lines = file.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# from: ")
    return lines


def name(lines: list[str]) -> str:
    failure = diagnose(lines)
    return failure.id if failure else ""


def test_every_entry_has_its_excerpt_and_every_excerpt_its_entry() -> None:
    assert sorted(known.id for known in KNOWN) == sorted(EXCERPTS)


@pytest.mark.parametrize("failure_id", EXCERPTS)
def test_a_real_excerpt_is_explained_by_its_entry(failure_id: str) -> None:
    assert name(lines_of(EXCERPTS[failure_id])) == failure_id


@pytest.mark.parametrize(("failure_id", "line"), OTHER_FORMS)
def test_the_other_forms_in_which_it_is_printed(failure_id: str, line: str) -> None:
    assert name([line]) == failure_id


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
def test_an_entry_says_what_a_person_can_use(known: Failure) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", known.id)
    assert all(text and text == text.strip() for text in (known.cause, known.fix, known.source))
    assert known.cause.endswith(".")


def test_a_healthy_log_has_no_failure_whatever_its_data_say() -> None:
    lines = lines_of(FOLDER / "healthy.log")
    assert sum("CUDA out of memory" in line for line in lines) == 2
    assert diagnose(lines) is None
    middle_of_the_row = next(
        number for number, line in enumerate(lines) if "CUDA out of memory" in line
    )
    assert diagnose(lines[middle_of_the_row:]) is None


def test_an_error_right_after_the_printed_row_is_seen() -> None:
    row = [
        "training example:",
        "input_ids:",
        "[1]",
        "inputs:",
        "KeyError: 'output'",
        "label_ids:",
        "[1]",
        "labels:",
    ]
    crash = [
        "OSError: [Errno 28] No space left on device<|im_end|>",
        "",
        "Traceback (most recent call last):",
        "  ...",
    ]
    assert name([*row, *crash, "RuntimeError: No HIP GPUs are available"]) == "no-gpu"
    assert name([*row, "{}", OUT_OF_MEMORY]) == "gpu-out-of-memory"


def test_the_rank_that_ran_out_of_memory_explains_the_ranks_that_lost_it() -> None:
    assert (
        name([OUT_OF_MEMORY, "[rank1]: Traceback (most recent call last):", CONNECTION_RESET])
        == "gpu-out-of-memory"
    )
    assert name([OUT_OF_MEMORY, TIMEOUT, CONNECTION_RESET]) == "gpu-out-of-memory"
    assert name([TIMEOUT, CONNECTION_RESET]) == "collective-timeout"
    assert name([CONNECTION_RESET]) == "connection-lost"


def test_the_exception_of_a_failure_is_not_what_another_rank_met_afterwards() -> None:
    def told(*lines: str) -> str:
        failure = diagnose(lines)
        return exception_of(failure, lines) if failure else "nothing"

    out_of_memory = OUT_OF_MEMORY.removeprefix("[rank0]: ")
    assert (
        told(OUT_OF_MEMORY, CONNECTION_RESET)
        == told(CONNECTION_RESET, OUT_OF_MEMORY)
        == out_of_memory
    )
    assert told("rocBLAS error: Could not initialize Tensile host", CONNECTION_RESET) == ""
    torn = '  File "/a/transformers/trainer_callback.py", line 118, in load_from_json'
    assert (
        told(torn, "json.decoder.JSONDecodeError: Expecting value")
        == "json.decoder.JSONDecodeError: Expecting value"
    )


def test_the_later_of_two_causes_wins() -> None:
    assert name([OUT_OF_MEMORY, "OSError: [Errno 28] No space left on device"]) == "disk-full"


def test_colours_bars_and_carriage_returns_hide_nothing() -> None:
    assert name(["\x1b[31mRuntimeError: No HIP GPUs are available\x1b[0m"]) == "no-gpu"
    assert (
        name(["  0%|          | 0/2 [00:00<?, ?it/s]RuntimeError: No HIP GPUs are available"])
        == "no-gpu"
    )
    assert name(["loading\rRuntimeError: No HIP GPUs are available\n"]) == "no-gpu"


def test_what_would_fail_again_is_not_started_again() -> None:
    passing = {known.id for known in KNOWN if known.passing}
    assert {known.kind for known in KNOWN if known.passing} == {"gpu", "communication"}
    assert passing >= {
        "gpu-lost",
        "gpu-launch-failure",
        "collective-timeout",
        "connection-lost",
        "port-in-use",
    }


def test_a_line_of_a_megabyte_takes_no_longer_than_others() -> None:
    assert diagnose(["/a.so" * 200_000, "RuntimeError: " + "No " * 300_000]) is None


def test_an_empty_log_has_no_failure() -> None:
    assert diagnose([]) is None
