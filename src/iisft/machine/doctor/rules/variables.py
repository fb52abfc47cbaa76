"""Variables of the shell or the preset that do harm, or nothing."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.machine.doctor.engine import Case
from iisft.machine.doctor.fixes import export, unset
from iisft.machine.doctor.rules.torch_builds import RDNA2_SIBLINGS, overridden
from iisft.rules import change_preset, rule, seen

_ALLOC = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_BETTER = "PYTORCH_CUDA_ALLOC_CONF=garbage_collection_threshold:0.8,max_split_size_mb:512"
_DEAD = {
    "NCCL_ASYNC_ERROR_HANDLING": "renamed TORCH_NCCL_ASYNC_ERROR_HANDLING in torch 2.2, whose "
    "default already aborts",
    "PL_TORCH_DISTRIBUTED_BACKEND": "read by Lightning alone",
    "MIOPEN_FIND_MODE": "tunes convolutions, of which a language model has none",
    "HSA_ENABLE_SDMA": "1 is the default",
}


@rule(
    "R05",
    "hsa-override",
    applies="AMD GPUs",
    source="ROCm/ROCm#3065 (AMD: not needed on Radeon VII); mi50-gfx906-unsloth-bnb4bit-lab; "
    "rocBLAS#1339",
)
def hsa_override(case: Case) -> Iterator[Finding]:
    """HSA_OVERRIDE_GFX_VERSION makes every visible GPU pose as another one. A real gfx906 doesn't
    need it.

    The kernel's own files tell the true architecture; torch tells the pretended one.
    """
    value, archs = (
        case.env.get("HSA_OVERRIDE_GFX_VERSION"),
        [arch for arch in case.archs if arch.startswith("gfx")],
    )
    if not value or not archs:
        return
    named = overridden(case, archs[0])
    away = unset("HSA_OVERRIDE_GFX_VERSION")
    if len(archs) > 1:
        text = f"applies to every visible GPU, and they are of different kinds ({', '.join(archs)})"
        yield seen(f"HSA_OVERRIDE_GFX_VERSION={value} {text}", "environment", away)
    elif named == archs[0]:
        text = (
            f"is not needed on a real {named}, and does harm as soon as another AMD GPU is visible"
        )
        yield seen(f"HSA_OVERRIDE_GFX_VERSION={value} {text}", "environment", away, "warn")
    elif not (archs[0] in RDNA2_SIBLINGS and named == "gfx1030") and named[:-1] != archs[0][:-1]:
        text = f"names {named}, this GPU is {archs[0]}: code of another architecture is loaded"
        yield seen(f"HSA_OVERRIDE_GFX_VERSION={value} {text}", "environment", away)


@rule(
    "R21",
    "expandable-noop",
    applies="ROCm builds of torch",
    source="torch CUDAAllocatorConfig.h; pytorch PR 177974, PR 179930; pytorch#192259",
)
def expandable_segments(case: Case) -> Iterator[Finding]:
    """expandable_segments does nothing on the ROCm builds that an MI50 can run, and can hang on the
    newest ones.
    """
    names = [name for name in _ALLOC if "expandable_segments:True" in case.env.get(name, "")]
    if case.hip and names:
        new = (case.version("torch") or (0,)) >= (2, 11)
        yield seen(
            f"{names[0]}=expandable_segments:True "
            + ("can hang on ROCm 7 builds" if new else "does nothing on this build of torch"),
            "environment",
            export(_BETTER),
            "warn" if new else "info",
        )


@rule(
    "R22",
    "alloc-conf-names",
    applies="any GPU",
    source="torch CUDAAllocatorConfig.h; pytorch#183387; TabPFN#608",
)
def alloc_names(case: Case) -> Iterator[Finding]:
    """torch reads three names for its allocator's settings.

    Which one wins changed from release to release.
    """
    names = [name for name in _ALLOC if case.env.get(name)]
    if len(names) > 1:
        yield seen(
            f"{' and '.join(names)} are all set: which one counts depends on the version of torch",
            "environment",
            unset(*names[1:]),
            "warn",
        )


@rule("R23", "launcher-alloc", applies="ROCm builds of torch", source="LLaMA-Factory launcher.py")
def launcher_overwrites(case: Case) -> Iterator[Finding]:
    """llamafactory-cli with several GPUs sets PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    unless OPTIM_TORCH=0.

    `iisft train` sets OPTIM_TORCH=0 for AMD GPUs.
    """
    if not case.hip or not case.several:
        return
    asked = case.preset.env.get("OPTIM_TORCH") if case.preset else None
    if asked not in (None, "0"):
        yield seen(
            f"the preset sets OPTIM_TORCH={asked}: LLaMA-Factory will overwrite "
            "PYTORCH_CUDA_ALLOC_CONF",
            "env.OPTIM_TORCH",
            change_preset("env.OPTIM_TORCH=0"),
            "warn",
        )
    elif (
        any(case.env.get(name) for name in _ALLOC)
        and case.env.get("OPTIM_TORCH") != "0"
        and case.preset is None
    ):
        yield seen(
            "llamafactory-cli by itself would overwrite PYTORCH_CUDA_ALLOC_CONF (iisft train does "
            "not let it)",
            "OPTIM_TORCH is not 0",
            export(
                "OPTIM_TORCH=0",
                text="export OPTIM_TORCH=0 when you start llamafactory-cli yourself",
            ),
            "info",
        )


@rule(
    "R30",
    "version-check-off",
    applies="LLaMA-Factory",
    source="LLaMA-Factory misc.check_dependencies 0.9.5",
)
def version_check_off(case: Case) -> Iterator[Finding]:
    """DISABLE_VERSION_CHECK hides that LLaMA-Factory and the libraries below it don't
    fit together.
    """
    value = case.env.get("DISABLE_VERSION_CHECK", "").lower()
    if value in ("1", "true", "y", "yes"):
        yield seen(
            "DISABLE_VERSION_CHECK is on: LLaMA-Factory no longer says when a library does not fit",
            "environment",
            unset("DISABLE_VERSION_CHECK"),
            "warn",
        )


@rule(
    "R48",
    "dead-variables",
    applies="any shell",
    source="pytorch PR 114077, PR 132920; MIOpen: Find and immediate mode; ROCr environment "
    "variables",
)
def dead_variables(case: Case) -> Iterator[Finding]:
    """Variables from old recipes that do nothing here."""
    for name, why in _DEAD.items():
        value = case.env.get(name)
        if value is not None and (name != "HSA_ENABLE_SDMA" or value == "1"):
            yield seen(
                f"{name}={value} does nothing here: {why}", "environment", unset(name), "info"
            )
