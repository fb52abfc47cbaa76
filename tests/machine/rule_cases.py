"""For each rule a machine where it fires and one where it is silent, mostly the same but for one
thing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fake_machines import (
    AMD_AND_NVIDIA,
    CU126,
    CU130,
    FIRST_USER,
    MI50,
    NONE,
    P40_BY_INDEX,
    P100,
    ROCM63,
    ROCM64,
    RTX3090_BY_INDEX,
    T4,
    TWO_MI50,
    Amd,
    Fake,
    Nvidia,
    Torch,
)


@dataclass(frozen=True)
class Scene:
    """A machine and what will run on it."""

    machine: Fake
    preset: str | None = None
    sets: tuple[str, ...] = ()
    ranks: int = 0
    on_cpu: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)


def on(machine: Fake, preset: str | None = None, *sets: str, **more: Any) -> Scene:
    return Scene(machine, preset, sets, **more)


def shell(machine: Fake, **environment: str) -> Fake:
    return replace(machine, environment=environment)


def amd(machine: Fake, **changes: Any) -> Fake:
    return replace(machine, amd=tuple(replace(card, **changes) for card in machine.amd))


def nvidia(machine: Fake, **changes: Any) -> Fake:
    return replace(machine, nvidia=tuple(replace(card, **changes) for card in machine.nvidia))


def packages(machine: Fake, **versions: str) -> Fake:
    return replace(machine, packages={**machine.packages, **versions})


def failing(machine: Fake, step: str, error: str) -> Fake:
    return replace(machine, steps={step: {"error": error}})


def deep(machine: Fake, check: str, **facts: Any) -> Fake:
    return replace(machine, deep=({"check": check, **facts},))


RDNA2 = Fake(
    amd=(Amd(version=100300, gib=16, device="0x73bf", name="RX 6900 XT"),),
    torch=ROCM63,
    amdgpu="6.10.5",
)
RDNA2_SMALL = replace(RDNA2, amd=(Amd(version=100301, gib=12, device="0x73df"),))
RDNA3 = Fake(
    amd=(Amd(version=110000, gib=24, device="0x744c", name="RX 7900 XTX"),),
    torch=ROCM64,
    amdgpu="6.12.12",
)
RDNA3_PAIR = replace(
    RDNA3, amd=(*RDNA3.amd, replace(RDNA3.amd[0], bus="0000:83:00.0", group="2")), amdgpu=""
)
MIXED = replace(MI50, amd=(*MI50.amd, replace(RDNA2.amd[0], bus="0000:83:00.0", group="2")))
P40 = Fake(nvidia=(Nvidia("Tesla P40", "6.1", 23040),), torch=CU126, driver="570.133.20")
V100 = replace(P40, nvidia=(Nvidia("Tesla V100-PCIE-16GB", "7.0", 16384),))
A100 = Fake(nvidia=(Nvidia("NVIDIA A100 80GB PCIe", "8.0", 81920),), driver="580.95.05")
QWEN35 = {
    "model_type": "qwen3_5_text",
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
}
RTX4090 = Nvidia("NVIDIA GeForce RTX 4090", "8.9", 24564)
TWO_RTX = Fake(
    nvidia=(RTX4090, replace(RTX4090, bus="0000:83:00.0", group="2")),
    torch=CU126,
    driver="535.183.01",
)
ROCM7 = Torch("2.10.0+rocm7.1", "7.1.52802", None, (*ROCM64.archs, "gfx950"), ROCM64.blas)
ROCM61 = FIRST_USER.torch
IMAGE = replace(MI50, container=True, rocm="7.14.0", torch=replace(ROCM7, blas=None))
BNB = packages(MI50, bitsandbytes="0.48.2")
IOMMU_ON = amd(TWO_MI50, iommu="DMA-FQ")
RATES = [
    {"check": "matmul", "device": "cuda:0", "dtype": dtype}
    for dtype in ("float32", "float16", "bfloat16")
]
EMULATED = tuple(
    {**one, "tflops": rate} for one, rate in zip(RATES, (60.0, 200.0, 30.0), strict=True)
)
NATIVE = tuple(
    {**one, "tflops": rate} for one, rate in zip(RATES, (60.0, 200.0, 190.0), strict=True)
)


def preset(*sets: str, ranks: int = 1) -> Scene:
    return on(V100, "v100", *sets, ranks=ranks)


# rule -> (it fires, it is silent)
CASES: dict[str, tuple[Scene, Scene]] = {
    "R01": (on(replace(MI50, torch=CU130)), on(MI50)),
    "R02": (on(replace(MI50, torch=ROCM64)), on(replace(RDNA3, torch=ROCM64))),
    "R03": (
        on(RDNA2_SMALL),
        on(shell(RDNA2_SMALL, HSA_OVERRIDE_GFX_VERSION="10.3.0")),
    ),
    "R04": (
        on(deep(MI50, "matmul", device="cuda:0", dtype="float32", died="SIGABRT", said="rocBLAS "
                                                                                       "error: "
                                                                                       "Tensile")),
        on(deep(MI50, "matmul", device="cuda:0", dtype="float32", tflops=11.2)),
    ),
    "R05": (
        on(shell(MI50, HSA_OVERRIDE_GFX_VERSION="9.0.6")),
        on(shell(RDNA2_SMALL, HSA_OVERRIDE_GFX_VERSION="10.3.0")),
    ),
    "R06": (on(T4, "ampere"), on(A100, "ampere")),
    "R07": (
        on(V100, "v100", "model.id=local", "model.template=llama3", "attention=eager",
           model={"model_type": "qwen2"}),
        on(V100, "v100", "model.id=local", "model.template=llama3", "attention=eager",
           model={"model_type": "llama"}),
    ),
    "R08": (on(IOMMU_ON), on(TWO_MI50)),
    "R09": (
        on(replace(TWO_MI50, amdgpu="")),
        on(shell(replace(TWO_MI50, amdgpu=""), HSA_ENABLE_IPC_MODE_LEGACY="0")),
    ),
    "R10": (on(MI50, "mi50-recorded"), on(MI50, "mi50")),
    "R11": (
        on(failing(T4, "torchaudio", "OSError: libtorchaudio.so: undefined symbol")),
        on(T4),
    ),
    "R12": (on(P100), on(replace(P100, torch=CU126))),
    "R13": (
        on(packages(replace(MI50, torch=ROCM61), transformers="4.57.1"), "mi50"),
        on(packages(replace(MI50, torch=ROCM61), transformers="4.51.3"), "mi50"),
    ),
    "R14": (on(replace(MI50, torch=ROCM61, rocm="6.4.0-47")),
            on(replace(MI50, torch=ROCM61, rocm="6.3.1-48"))),
    "R15": (
        on(replace(MI50, devices=dict.fromkeys(("/dev/kfd", "/dev/dri/renderD128"),
                                               (True, False, "render")))),
        on(MI50),
    ),
    "R16": (on(replace(TWO_MI50, shm_mib=64)), on(replace(MI50, shm_mib=64))),
    "R17": (
        on(deep(IOMMU_ON, "all-reduce", backend="nccl", world=2, died="did not return within 60 "
                                                                      "s", said="")),
        on(deep(IOMMU_ON, "all-reduce", backend="nccl", world=2, gbps=5.1, gpus=True)),
    ),
    "R18": (on(FIRST_USER), on(replace(FIRST_USER, cpu_vendor="AuthenticAMD"))),
    "R19": (on(amd(TWO_MI50, visible_mib=256)), on(TWO_MI50)),
    "R20": (
        on(replace(TWO_MI50, torch=replace(ROCM63, peers=((0, 1), (1, 0))))),
        on(shell(replace(TWO_MI50, torch=replace(ROCM63, peers=((0, 1), (1, 0)))),
                 HSA_FORCE_FINE_GRAIN_PCIE="1")),
    ),
    "R21": (
        on(shell(MI50, PYTORCH_HIP_ALLOC_CONF="expandable_segments:True")),
        on(shell(T4, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")),
    ),
    "R22": (
        on(shell(T4, PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:512",
                 PYTORCH_ALLOC_CONF="max_split_size_mb:256")),
        on(shell(T4, PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:512")),
    ),
    "R23": (
        on(shell(TWO_MI50, PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:512")),
        on(shell(TWO_MI50, PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:512", OPTIM_TORCH="0")),
    ),
    "R24": (
        on(shell(TWO_MI50, ROCR_VISIBLE_DEVICES="0", HIP_VISIBLE_DEVICES="0,1")),
        on(shell(TWO_MI50, ROCR_VISIBLE_DEVICES="0,1")),
    ),
    "R25": (on(MIXED), on(shell(MIXED, ROCR_VISIBLE_DEVICES="0"))),
    "R26": (
        on(replace(BNB, steps={"bitsandbytes-libraries": {"rocm_archs": ["gfx90a", "gfx1100"]}})),
        on(replace(BNB, steps={"bitsandbytes-libraries": {"rocm_archs": ["gfx906"]}})),
    ),
    "R27": (on(amd(MI50, flags=0b1101)), on(MI50)),
    "R28": (on(packages(MI50, deepspeed="0.18.8")), on(packages(MI50, deepspeed="0.18.4"))),
    "R29": (on(shell(T4, DS_BUILD_OPS="1")),
            on(shell(T4, DS_BUILD_OPS="0", DS_BUILD_CPU_ADAM="1"))),
    "R30": (on(shell(T4, DISABLE_VERSION_CHECK="1")), on(shell(T4, DISABLE_VERSION_CHECK="0"))),
    "R31": (on(replace(T4, python="3.10.12")), on(replace(T4, python="3.12.3"))),
    "R32": (on(T4, "ampere", "attention=flash2"), on(A100, "ampere", "attention=flash2")),
    "R33": (
        on(MI50, "mi50-fp16", "attention=sdpa", "train.batch_size=8", "train.cutoff_len=4096"),
        on(MI50, "mi50-fp16", "train.batch_size=8", "train.cutoff_len=4096"),
    ),
    "R34": (on(RDNA3), on(shell(RDNA3, TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL="1"))),
    "R35": (on(MI50), on(shell(MI50, TORCH_BLAS_PREFER_HIPBLASLT="0"))),
    "R36": (on(MI50, "mi50-fp16", "llamafactory.enable_liger_kernel=true"), on(MI50, "mi50-fp16")),
    "R37": (on(P40, "v100", "llamafactory.torch_compile=true"),
            on(V100, "v100", "llamafactory.torch_compile=true")),
    "R38": (on(RDNA2, "ampere"), on(RDNA3, "ampere")),
    "R39": (
        on(replace(RDNA2, torch=ROCM7)),
        on(replace(RDNA2, torch=ROCM7, versions={"pip": "25", "rocm-sdk-core": "7.14.0"})),
    ),
    "R40": (on(V100, "v100", "llamafactory.quantization_bit=8"),
            on(T4, "t4", "llamafactory.quantization_bit=8")),
    "R41": (on(P40), on(P100)),
    "R42": (on(FIRST_USER), on(TWO_MI50)),
    "R43": (
        on(V100, "v100", model={"vision_config": {}}),
        on(A100, "v100", model={"vision_config": {}}),
    ),
    "R44": (on(replace(TWO_MI50, numa_balancing=1)), on(TWO_MI50)),
    "R45": (on(amd(MI50, junction_c=99)), on(MI50)),
    "R46": (on(nvidia(A100, width=8)), on(A100)),
    "R47": (on(TWO_RTX), on(replace(TWO_RTX, driver="580.95.05"))),
    "R48": (on(shell(T4, NCCL_ASYNC_ERROR_HANDLING="1")), on(shell(T4, HSA_ENABLE_SDMA="0"))),
    "R49": (
        on(A100, "ampere", 'llamafactory.deepspeed={"fp16": {"enabled": true}}'),
        on(A100, "ampere", 'llamafactory.deepspeed={"fp16": {"enabled": auto}}'),
    ),
    "R50": (on(T4, "t4", "watch.nan=ignore"), on(T4, "t4")),
    "R51": (
        on(replace(MI50, versions={"pip": "25", "amdsmi": "7.0.2"})),
        on(replace(MI50, versions={"pip": "25", "amdsmi": "7.0.2"}, amd_smi=True)),
    ),
    "R52": (
        on(replace(IMAGE, image_blas=("gfx90a", "gfx942"))),
        on(replace(IMAGE, image_blas=("gfx906", "gfx90a"))),
    ),
    "bf16-measured": (on(replace(A100, deep=EMULATED)), on(replace(A100, deep=NATIVE))),
    "copy-fails": (
        on(deep(T4, "copy", source="cpu", device="cuda:0", error="what arrived is not what was "
                                                                 "sent")),
        on(deep(T4, "copy", source="cpu", device="cuda:0", gbps=12.0)),
    ),
    "driver-missing": (on(replace(NONE, undriven=("0000:03:00.0",))), on(NONE)),
    "fp16-on-cpu": (on(NONE, "v100", ranks=1, on_cpu=True), on(NONE, "p40", ranks=1, on_cpu=True)),
    "gpu-memory": (on(T4, "v100"), on(T4, "t4")),
    "gpus-hidden": (on(replace(TWO_MI50, torch=replace(ROCM63, sees=1))), on(TWO_MI50)),
    "gpus-differ": (on(P40_BY_INDEX), on(RTX3090_BY_INDEX)),
    "torch-not-cuda": (on(AMD_AND_NVIDIA, "ampere"), on(T4, "ampere")),
    "host-memory": (on(replace(A100, memory_limit_gib=16)), on(A100)),
    "import-died": (
        on(replace(T4, steps={}, died={"step": "torch", "how": "SIGABRT", "said": "terminate "
                                                                                  "called"})),
        on(T4),
    ),
    "import-failed": (on(failing(T4, "peft", "ImportError: no name LoraConfig")), on(T4)),
    "launcher-path-spaces": (
        on(replace(TWO_MI50, launcher="/home/me/my env/launcher.py")),
        on(replace(MI50, launcher="/home/me/my env/launcher.py")),
    ),
    "llamafactory-cli-missing": (on(replace(T4, launcher_present=False)), on(T4)),
    "llamafactory-missing": (on(replace(T4, torch=None, packages={"peft": "0.18.1"})), on(T4)),
    "llamafactory-version": (on(packages(T4, llamafactory="0.9.3")), on(T4)),
    "eval-never": (preset("data.eval=x"), preset("save.eval_every_steps=5", "data.eval=x")),
    "eval-without-data": (
        preset("save.eval_every_steps=5"),
        preset("save.eval_every_steps=5", "data.eval=x"),
    ),
    "data-mix": (
        preset("data.name=[a, b]", "data.mix={a: 0.7, b: 0.2}"),
        preset("data.name=[a, b]", "data.mix={a: 0.7, b: 0.3}"),
    ),
    "save-best": (
        preset("save.best=true", "save.eval_every_steps=75", "data.eval=x"),
        preset("save.best=true", "save.eval_every_steps=100", "data.eval=x"),
    ),
    "eager-blocks-lacking": (
        on(V100, "v100", ranks=1, model={"attention_dropout": 0.1}),
        on(V100, "v100", ranks=1, model={"attention_dropout": 0.0}),
    ),
    "delta-rule-packing": (
        on(A100, "ampere", "train.packing=true", model=QWEN35),
        on(A100, "ampere", "train.packing=true", model={"model_type": "qwen3"}),
    ),
    "delta-rule-slow": (
        on(A100, "ampere", model=QWEN35),
        on(packages(A100, **{"flash-linear-attention": "0.4.1"}), "ampere", model=QWEN35),
    ),
    "flash2-fp32": (preset("attention=flash2", "precision=fp32"), preset("attention=flash2")),
    "constant-warmup": (
        preset("train.scheduler=constant"),
        preset("train.scheduler=constant", "train.warmup_ratio=0.0"),
    ),
    "global-batch": (preset("train.global_batch=63"), preset("train.global_batch=64")),
    "fit-unverified": (
        preset("train.gradient_checkpointing=fit", "sharding=fsdp", ranks=2),
        preset("train.gradient_checkpointing=fit", ranks=2),
    ),
    "shared-keys-sharded": (
        on(A100, "ampere", "sharding=fsdp", ranks=2, model={"num_kv_shared_layers": 20}),
        on(A100, "ampere", "sharding=fsdp", ranks=2, model={"num_kv_shared_layers": 0}),
    ),
    "start-fresh": (
        preset("lora.start=run", "sharding=zero2", ranks=2),
        preset("lora.start=run", ranks=2),
    ),
    "nf4-precision": (preset("weights=nf4", "precision=fp32"), preset("weights=nf4")),
    "packing-wrong": (
        preset("train.packing=true", "train.cutoff_len=1001"),
        preset("train.packing=true"),
    ),
    "no-gpus": (preset("hardware.gpus=0"), preset("hardware.gpus=0", "hardware.vendor=cpu")),
    "sharding-one-gpu": (preset("sharding=zero2"), preset("sharding=zero2", ranks=2)),
    "sharding-unverified": (preset("sharding=zero2", ranks=2), preset(ranks=2)),
    "stored-fp32-sharded": (
        preset("sharding=fsdp", "precision=fp32", ranks=2),
        preset("sharding=fsdp", "precision=fp32", "weights=fp32", ranks=2),
    ),
    "memory-short": (
        on(deep(T4, "memory", device="cuda:0", wanted_gib=14.0, gib=6.0, error="out of memory")),
        on(deep(T4, "memory", device="cuda:0", wanted_gib=14.0, gib=14.0)),
    ),
    "no-gpu": (on(NONE), on(T4)),
    "no-pip": (on(replace(T4, versions={})), on(T4)),
    "nvidia-driver-old": (on(replace(T4, driver="550.90.07")),
                          on(replace(T4, torch=CU126, driver="550.90.07"))),
    "nvidia-smi": (on(replace(T4, smi="hangs")), on(T4)),
    "on-cpu": (on(NONE, "v100", ranks=1, on_cpu=True), on(NONE, "demo", ranks=1, on_cpu=True)),
    "other-gpu": (on(T4, "v100"), on(V100, "v100")),
    "package-missing": (on(A100, "qlora-24g"),
                        on(packages(A100, bitsandbytes="0.48.2"), "qlora-24g")),
    "sdpa-self-test": (
        on(deep(T4, "sdpa", device="cuda:0", finite=False)),
        on(deep(T4, "sdpa", device="cuda:0", finite=True, eager_finite=False)),
    ),
    "system-packages": (on(replace(T4, programs=("gcc",))), on(T4)),
    "too-few-gpus": (on(MI50, "mi50"), on(TWO_MI50, "mi50")),
    "unreadable": (on(replace(T4, lost={"sys/class/kfd": "Permission denied"})), on(T4)),
    "workspace-full": (on(replace(T4, free_gib=3)), on(T4)),
}  # fmt: skip
