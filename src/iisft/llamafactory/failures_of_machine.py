"""Known failures of memory, disks, GPUs and the traffic between ranks.

The first match of a line counts.
"""

from functools import partial

from iisft.llamafactory.failure import RAISED, Failure, known
from iisft.llamafactory.torch_sets import GFX906, OLD_NVIDIA

_memory = partial(known, "memory")
_disk = partial(known, "disk")
_gpu = partial(known, "gpu")
_communication = partial(known, "communication")
_environment = partial(known, "environment")

_RESEAT = "read dmesg, check the card's power, temperature and seat; reboot if it is gone"
_SHORTER = (
    "--set train.batch_size=1 (raise train.accumulation as much), then a smaller --set "
    "train.cutoff_len="
)
_MI50 = f"MI50: {GFX906.command}"
_OLD_NVIDIA = f"P40, P100, V100: {OLD_NVIDIA.command}"

MACHINE: tuple[Failure, ...] = (
    _memory(
        "gpu-out-of-memory",
        rf"{RAISED}(?:(?:CUDA|HIP) error: |CUDA |HIP )?(?:out of memory|CUBLAS_STATUS_ALLOC_FAILED)"
        r"|^(?:\w+\.)*OutOfMemoryError: |(?:Cuda|HIP) failure \d* ?'out of memory'",
        cause="A GPU's memory is full: weights, adapter, optimizer and one batch at this length "
        "do not fit together.",
        fix=f"{_SHORTER}, --set train.gradient_checkpointing=true, --set lora.rank= smaller, "
        "--set weights=nf4",
        source="LlamaFactory#7781, #6531, Qwen3#873",
    ),
    _memory(
        "host-out-of-memory",
        r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory): you tried to allocate"
        r"|^MemoryError(?::|$)",
        cause="The machine's own memory is full; every rank loads the weights through it.",
        fix="fewer ranks (--gpus), free memory or add swap; in a container raise its memory limit",
        source="pytorch PR 20618; provoked",
    ),
    _memory(
        "shared-memory-full",
        r"Error while creating shared memory segment /dev/shm/|^ERROR: Unexpected bus error "
        r"encountered in worker"
        rf"|{RAISED}DataLoader worker \(pid(?:\(s\))? .*Bus error",
        cause="/dev/shm is full or too small (Docker gives 64 MiB): the ranks exchange gradients "
        "through it.",
        fix="start the container with --shm-size=16g or --ipc=host",
        source="R16, LlamaFactory#7233, pytorch#5040",
    ),
    _disk(
        "disk-full",
        rf"{RAISED}.*(?:No space left on device|\[Errno 122\] Disk quota exceeded)"
        rf"|{RAISED}(?:\[enforce fail at inline_container\.cc:\d+\] \. (?:unexpected "
        r"pos|PytorchStreamWriter failed)"
        r"|basic_ios::clear)",
        cause="The disk (or a quota) is full: the trainer could not write a checkpoint. The last "
        "whole one is kept.",
        fix="free space where the run's output lies, keep fewer checkpoints: --set save.keep=1; "
        "see df -h and quota",
        source="LlamaFactory#5155, #1223",
    ),
    _disk(
        "output-read-only",
        r"^OSError: \[Errno 30\] Read-only file system",
        cause="A folder that the trainer writes to lies on a file system that is mounted "
        "read-only.",
        fix="set IISFT_HOME to a folder that can be written to; a disk remounted read-only shows "
        "its errors in dmesg",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _disk(
        "permission-denied",
        r"^PermissionError: \[Errno 13\] Permission denied",
        cause="The trainer may not read or write the path that the message names.",
        fix='give it to the user that trains: sudo chown -R "$USER" PATH',
        source="trl#3872, LlamaFactory#5015",
    ),
    _environment(
        "rocblas-without-kernels",
        r"^rocBLAS error: (?:Cannot read \S*TensileLibrary\.dat|Could not initialize Tensile)",
        cause="torch's rocBLAS holds no kernels for this GPU (AMD left gfx906 out from ROCm 6.4 "
        "on).",
        fix=_MI50,
        source="R02, legacy-rocm-build#4625",
    ),
    _environment(
        "hip-no-code-for-gpu",
        rf"{RAISED}HIP error: invalid device function|hipErrorNoBinaryForGpu: (?:Unable "
        r"to|Coudn't) find",
        cause="torch, or a library with GPU kernels, was built without code for this GPU.",
        fix=f"{_MI50}; unset HSA_OVERRIDE_GFX_VERSION unless the GPU needs it",
        source="R03, R05, verl#3163, pytorch#164346",
    ),
    _environment(
        "no-kernel-image",
        rf"{RAISED}(?:CUDA|HIP) error: no kernel image is available for execution on the device",
        cause="This torch has no kernels for the GPU's architecture.",
        fix=f"{_OLD_NVIDIA}; {_MI50}",
        source="R12, Streamer-Sales#12",
    ),
    _environment(
        "no-gpu",
        rf"{RAISED}(?:Found no NVIDIA driver on your system|The NVIDIA driver on your system is "
        r"too old"
        r"|No (?:CUDA|HIP) GPUs are available|Torch not compiled with CUDA enabled)",
        cause="torch sees no usable GPU: no driver, one too old for this torch, no access, or a "
        "torch for the CPU.",
        fix="AMD: sudo usermod -aG render,video $USER, then log in again",
        source="R01, R15, Fooocus#3674; provoked",
    ),
    _gpu(
        "hip-no-pcie-atomics",
        r"Pcie atomics not enabled, hostcall not supported"
        r"|HIP (?:error|failure):? '?the operation cannot be performed in the present state",
        cause="The GPU's slot offers no PCIe atomics, so kernels that call back to the host "
        "(asserts) are refused.",
        fix="move the card to a slot of the CPU; a torch of 2.2 or newer without kernel asserts "
        "does not need atomics",
        source="R27, ROCm#2429",
    ),
    _gpu(
        "gpu-launch-failure",
        rf"{RAISED}(?:CUDA|HIP) error: unspecified launch failure",
        cause="A kernel crashed on the GPU: mostly an unstable or overheated card or its driver.",
        fix=_RESEAT,
        passing=True,
        source="FastVideo#1008, TheRock#4214, pytorch#74235",
    ),
    _gpu(
        "gpu-lost",
        rf"{RAISED}CUDA error: unknown error"
        r"|NVRM: Xid .*GPU has fallen off the bus|^Unable to determine the device handle for GPU"
        r"|Failed to get usage\(\d+\): GPU is lost|Cuda failure 999 'unknown error'",
        cause="The GPU no longer answers its driver: it fell off the bus, or the driver lost it.",
        fix=_RESEAT,
        passing=True,
        source="3dgrut#191, DeepSpeed#5482, NVSentinel#155, plmfit#40",
    ),
    _gpu(
        "gpu-memory-fault",
        rf"^Memory access fault by GPU node-\d+|{RAISED}CUDA error: an illegal memory access was "
        r"encountered",
        cause="A kernel touched memory that is not its own: an error of the driver or a library, "
        "or a failing card.",
        fix="start again; if it returns at the same step, set attention to sdpa or eager and "
        "change the torch version",
        passing=True,
        source="pytorch#146809, legacy-rocm-build#5051, unsloth#2886",
    ),
    _gpu(
        "hsa-queue-aborted",
        r"Callback: Queue 0x[0-9a-f]+ aborting with error : ?(?:HSA_STATUS_ERROR|$)",
        cause="The ROCm runtime aborted a GPU queue after a hardware exception.",
        fix=_RESEAT,
        passing=True,
        source="DeepSpeed#6637, vllm#20007",
    ),
    _gpu(
        "gpu-hang",
        r"HW Exception by GPU node-\d+ .*reason ?: ?GPU Hang",
        cause="An AMD GPU hung and was reset by its driver.",
        fix=_RESEAT,
        passing=True,
        source="legacy-rocm-build#5259, #4021",
    ),
    _gpu(
        "gpu-memory-uncorrectable",
        rf"{RAISED}CUDA error: uncorrectable ECC error encountered",
        cause="The GPU's memory had an error that its ECC could not correct.",
        fix="start again; if it returns, reset or replace the card (nvidia-smi -q -d "
        "ECC,PAGE_RETIREMENT)",
        passing=True,
        source="vllm#5222, LlamaFactory#2341, sd-scripts#1434",
    ),
    _communication(
        "collective-timeout",
        r"Watchdog caught collective operation timeout: Work\w+\("
        rf"|{RAISED}\[\S*gloo/transport/tcp/unbound_buffer\.cc:\d+\] Timed out waiting \d+ms",
        cause="A rank waited for the others until the timeout: one of them hung, or was far "
        "slower.",
        fix="if it returns: iommu=pt on the kernel's command line, export NCCL_P2P_DISABLE=1",
        passing=True,
        source="R08, R17, LlamaFactory#6269, #8261",
    ),
    _communication(
        "nccl-duplicate-gpu",
        r"^Duplicate GPU detected : rank \d+ and rank \d+ both on (?:CUDA|HIP) device",
        cause="Two ranks were given the same GPU: there are more ranks than visible GPUs.",
        fix="--gpus no larger than the visible GPUs; check CUDA_VISIBLE_DEVICES or "
        "ROCR_VISIBLE_DEVICES",
        source="Megatron-LM#661",
    ),
    _communication(
        "nccl-p2p-refused",
        r"^NotImplementedError: Using RTX 4000 series doesn't support faster communication",
        cause="accelerate refuses several RTX 40 cards whose driver reports no peer-to-peer "
        "traffic.",
        fix="export NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1",
        source="R47, LlamaFactory#3107, MiniCPM-V#325",
    ),
    _communication(
        "nccl-cuda-error",
        r"^(?:\w+\.)*DistBackendError: NCCL error in: .*unhandled cuda error"
        rf"|^ncclUnhandledCudaError: |{RAISED}NCCL error: unhandled cuda error",
        cause="NCCL or RCCL could not use the GPUs together: peer access, IPC or the fabric "
        "manager refuses.",
        fix="export NCCL_P2P_DISABLE=1; in-tree amdgpu: export HSA_ENABLE_IPC_MODE_LEGACY=0",
        source="R09, LlamaFactory#8968, rccl#1454",
    ),
    _communication(
        "nccl-system-error",
        r"NCCL error(?: in)?: .*unhandled system error|^ncclSystemError: ",
        cause="NCCL or RCCL failed in a system call, mostly a socket of the wrong network "
        "interface.",
        fix="export NCCL_SOCKET_IFNAME= the interface between the ranks; NCCL_DEBUG=INFO prints "
        "which call it was",
        passing=True,
        source="pytorch#149984, nccl#1240",
    ),
    _communication(
        "gloo-mesh-failed",
        r"Gloo connectFullMesh failed with ",
        cause="The ranks could not connect to each other: a rank was gone, or the host name leads "
        "to another address.",
        fix="export GLOO_SOCKET_IFNAME= the interface between the ranks; /etc/hosts must not map "
        "the host to 127.0.1.1",
        passing=True,
        source="sglang#3226",
    ),
    _communication(
        "port-in-use",
        rf"{RAISED}The server socket has failed to listen on any local network "
        r"address\..*[Aa]ddress already in use",
        cause="The port on which the ranks meet is taken, mostly by another training or by ranks "
        "left over from one.",
        fix="end what holds it (ss -ltnp), or choose another port: --rendezvous HOST:PORT",
        passing=True,
        source="ms-swift#3988; provoked",
    ),
    _communication(
        "rendezvous-timeout",
        rf"{RAISED}(?:Timed out after \d+ seconds waiting for (?:clients|workers)\."
        r"|The client socket has timed out after|The connection to the C10d store has failed)",
        cause="Not all ranks met in time: a node did not start, or cannot reach node 0.",
        fix="start every node with the same --rendezvous HOST:PORT and --nodes; open that port in "
        "the firewall",
        passing=True,
        source="pytorch#107021, LlamaFactory#5450; provoked",
    ),
    _communication(
        "connection-lost",
        rf"{RAISED}\[\S*gloo/transport/tcp/pair\.cc:\d+\].*(?:Connection closed by "
        r"peer|Connection reset by peer)"
        r"|^ncclRemoteError: |NCCL WARN socketProgress\w*: (?:Connection closed by remote|Call to "
        r"\w+ from \S+ failed)",
        cause="Another rank ended without a word (mostly killed by the kernel for memory), and "
        "this one lost it.",
        fix="look for the killed rank: dmesg | grep -i 'killed process'; on several machines "
        "check the network",
        passing=True,
        source="nccl#2076, nccl#795; provoked",
    ),
)
