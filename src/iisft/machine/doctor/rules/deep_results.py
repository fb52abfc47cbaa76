"""What --deep measured: products, memory, copies, the all-reduce, attention."""

from collections.abc import Iterator, Mapping
from typing import Any

from iisft.errors import Finding
from iisft.gpu_table import architecture
from iisft.machine.doctor.engine import Case, causes_of_hang
from iisft.machine.doctor.fixes import by_hand, export, torch_for
from iisft.quoting import is_count
from iisft.rules import Fix, rule, seen

_EMULATED = 1.3  # times slower than the fastest other dtype
_OFF = 0.1  # of values around 1; rounding to fp16 makes 0.001


def _trouble(result: Mapping[str, Any]) -> str:
    """How a check went wrong; "" when it didn't."""
    if result.get("died"):
        said = f": {result['said']}" if result.get("said") else ""
        return f"{result['died']}{said}"
    return str(result.get("error", ""))


@rule(
    "R04",
    "gemm-smoke",
    applies="any GPU, with --deep",
    source="mi50-gfx906-unsloth-bnb4bit-lab: trust runtime probes over version strings; "
    "rocBLAS#1339",
)
def gemm_fails(case: Case) -> Iterator[Finding]:
    """A small product per dtype on each GPU, in a process of its own: it fails, aborts or never
    returns.
    """
    for result in case.deep_results("matmul"):
        trouble = _trouble(result)
        if trouble:
            yield seen(
                f"a {result.get('dtype')} product on {result.get('device')} fails: {trouble}",
                "env-check --deep",
                _cause(case, trouble),
            )


def _cause(case: Case, trouble: str) -> Fix:
    arch = case.gpus[0].arch if case.gpus else ""
    if any(word in trouble for word in ("Tensile", "invalid device function", "no kernel image")):
        return torch_for(arch, case.machine.host)
    if "hostcall" in trouble or "present state" in trouble:
        return by_hand("no PCIe atomics in this slot (R27): move the card to a slot of the CPU")
    if "did not return" in trouble:
        return by_hand(
            "the driver hangs: see sudo dmesg, then reboot; with several GPUs see R08 and R09"
        )
    return by_hand("see the other findings; with none: sudo dmesg")


@rule(
    "R17",
    "multi-gpu-handshake",
    applies="two ranks, with --deep",
    source="the first user's record; ROCm/vllm#390; rccl#1129; nccl#667",
    basis="reported",
)
def handshake(case: Case) -> Iterator[Finding]:
    """An all-reduce of two ranks: when it does not come back in 60 s, training won't either."""
    for result in case.deep_results("all-reduce"):
        trouble = _trouble(result)
        if not trouble:
            continue
        causes = causes_of_hang(case)
        named = "; ".join(f"{one.id} {one.message}" for one in causes)
        yield seen(
            f"two ranks can't exchange data ({result.get('backend')}): {trouble}. "
            + (
                f"Probable causes here: {named}"
                if named
                else "None of the known causes shows on this machine"
            ),
            "env-check --deep",
            causes[0].fix
            if causes
            else export(
                "NCCL_P2P_DISABLE=1",
                text="try export NCCL_P2P_DISABLE=1, then also NCCL_SHM_DISABLE=1 (slow)",
            ),
        )


@rule(
    "bf16-measured",
    applies="GPUs, with --deep",
    source="measured products of 2048 x 2048, bf16 against fp16 and fp32",
)
def bf16_measured(case: Case) -> Iterator[Finding]:
    """The measured rate of bf16 contradicts what is known of the architecture."""
    for device, measured in case.rates().items():
        index = device.removeprefix("cuda:")
        if not (
            is_count(index)
            and int(index) < len(case.gpus)
            and {"bfloat16", "float16", "float32"} <= set(measured)
        ):
            continue
        known = architecture(case.gpus[int(index)].arch)
        slow = measured["bfloat16"] * _EMULATED < max(measured["float16"], measured["float32"])
        if known and known.bf16 and slow:
            yield seen(
                f"bf16 is emulated or broken on {device}: {measured['bfloat16']:.1f} TFLOP/s, "
                f"{measured['float16']:.1f} in fp16 and {measured['float32']:.1f} in fp32",
                "env-check --deep",
                torch_for(case.gpus[int(index)].arch, case.machine.host),
                "warn",
            )


@rule("memory-short", applies="GPUs, with --deep", source="allocation up to the preset's need")
def memory_short(case: Case) -> Iterator[Finding]:
    """Less memory can be allocated than the preset needs: another process holds it, or the card is
    smaller.
    """
    for result in case.deep_results("memory"):
        trouble = _trouble(result)
        reached, wanted = float(result.get("gib", 0.0)), float(result.get("wanted_gib", 0.0))
        if trouble or reached < wanted:
            yield seen(
                f"{reached:.1f} of {wanted:.1f} GiB could be allocated on {result.get('device')}"
                + (f": {trouble}" if trouble else ""),
                "env-check --deep",
                by_hand(
                    "end what holds it (rocm-smi, nvidia-smi show the processes), or take a "
                    "smaller model"
                ),
            )


@rule(
    "copy-fails",
    applies="GPUs, with --deep",
    source="copies between host and device, and between devices",
)
def copies(case: Case) -> Iterator[Finding]:
    """A copy fails or arrives changed: a bad link, or P2P that the platform does not carry."""
    for result in case.deep_results("copy"):
        trouble = _trouble(result)
        if trouble:
            yield seen(
                f"copying {result.get('source')} to {result.get('device')} fails: {trouble}",
                "env-check --deep",
                by_hand(
                    "reseat the card, see sudo dmesg; between cards: iommu=pt (R08), or "
                    "NCCL_P2P_DISABLE=1"
                ),
            )


@rule(
    "sdpa-self-test",
    applies="GPUs, with --deep",
    source="pytorch PR 128922, PR 135964; transformers PR 33317",
)
def sdpa(case: Case) -> Iterator[Finding]:
    """sdpa in fp16 on scores that overflow fp16: it must stay finite and agree with float32, where
    eager gives NaN.
    """
    for result in case.deep_results("sdpa"):
        trouble = _trouble(result)
        off = result.get("off")
        if not trouble and result.get("finite") is False:
            trouble = "it overflows like eager attention, fp16 training would give NaN"
        elif not trouble and isinstance(off, float) and off > _OFF:
            trouble = f"it is {off:.2g} off attention in float32"
        if trouble:
            yield seen(
                f"sdpa in fp16 on {result.get('device')} fails: {trouble}",
                "env-check --deep",
                torch_for(case.gpus[0].arch, case.machine.host)
                if case.gpus
                else by_hand("torch 2.6 or newer"),
                "warn",
            )
