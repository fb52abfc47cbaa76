"""What GPUs can do: by architecture which arithmetic and kernels they have, by model usable memory,
peak and measured rates, each with where it comes from.

`memory_gib` is what a process can allocate, not the number on the box. Rates in TFLOP/s; `measured`
are rates that a whole LoRA training step reached (FLOPs of iisft.estimate.timing over wall time):
low, typical, high. Where nobody has published one, a share of the peak stands in for it, and the
plan says that it is estimated.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from iisft.quoting import is_count


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture computes natively.

    Attributes:
        bf16: units for bf16; without them it is emulated.
        flash2: FlashAttention-2 runs.
        fused: torch's sdpa has a fused kernel: yes, only behind a switch, or no.
        triton: Triton compiles for it, so Liger, Unsloth and torch.compile run.
        int8: LLM.int8() of bitsandbytes runs.
    """

    bf16: bool
    flash2: bool
    fused: Literal["yes", "switch", "no"]
    triton: bool = True
    int8: bool = True


# The first prefix that fits decides. bf16, flash2, fused: torch Context.cpp and
# aten/native/transformers/{cuda,hip}/sdp_utils.cpp (AOTriton serves CDNA2 and newer; gfx11 and
# gfx12 only with TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1). triton: triton#8992 (gfx906),
# unsloth#2816 (compute capability 7.0). int8: bitsandbytes docs (compute capability 7.5).
_ARCHITECTURES: tuple[tuple[str, Architecture], ...] = (
    ("gfx90a", Architecture(bf16=True, flash2=True, fused="yes")),
    ("gfx94", Architecture(bf16=True, flash2=True, fused="yes")),
    ("gfx95", Architecture(bf16=True, flash2=True, fused="yes")),
    ("gfx908", Architecture(bf16=True, flash2=False, fused="no")),
    ("gfx906", Architecture(bf16=False, flash2=False, fused="no", triton=False)),
    ("gfx9", Architecture(bf16=False, flash2=False, fused="no")),
    ("gfx10", Architecture(bf16=False, flash2=False, fused="no")),
    ("gfx11", Architecture(bf16=True, flash2=False, fused="switch")),
    ("gfx12", Architecture(bf16=True, flash2=False, fused="switch")),
    ("sm_5", Architecture(bf16=False, flash2=False, fused="yes", triton=False, int8=False)),
    ("sm_6", Architecture(bf16=False, flash2=False, fused="yes", triton=False, int8=False)),
    ("sm_70", Architecture(bf16=False, flash2=False, fused="yes", int8=False)),
    ("sm_72", Architecture(bf16=False, flash2=False, fused="yes", int8=False)),
    ("sm_7", Architecture(bf16=False, flash2=False, fused="yes")),
    ("sm_", Architecture(bf16=True, flash2=True, fused="yes")),
    ("cpu", Architecture(bf16=True, flash2=False, fused="yes")),
)


def architecture(name: str) -> Architecture | None:
    """What `name` (gfx906, sm_70, cpu) computes natively; None when it is unknown."""
    return next((found for prefix, found in _ARCHITECTURES if name.startswith(prefix)), None)


# pci-ids.ucw.cz; cards that aren't made for servers have no product_name
PCI_NAMES = {
    0x66A0: "Instinct MI50",
    0x66A1: "Instinct MI50",
    0x66A3: "Radeon Pro Vega II",
    0x66AF: "Radeon VII",
}

Rate = tuple[float, float, float]

_CATALOG = "huggingface.js hardware.ts"
_SHEET = "vendor's data sheet"
# The one published measurement of training on an MI50: Gemma 4 31B, nf4, LoRA of rank 128, one row
# of 2048 tokens, gradient checkpointing, torch 2.7.0+rocm6.3, transformers 5.8.0: 44.3 s a step in
# fp16 (8.6 TFLOP/s), 119.2 s in bf16 (3.2), so fp16 is 2.69 times as fast. These are the typical
# values; the upper ends are what the first user's records allow at most.
_LAB = (
    "mi50-gfx906-unsloth-bnb4bit-lab, 31B in nf4, rank 128, 2048 tokens: 44.3 s a step in fp16 "
    "(8.6), 119.2 in bf16 (3.2); first user: at most 11.0 and 4.1"
)

# Shares of the peak that a training step reaches where nothing is measured. Inferred: MI50's 8.6
# of 26.5 TFLOP/s in fp16.
_HALF_SHARE: Rate = (0.2, 0.35, 0.5)
_FULL_SHARE: Rate = (0.4, 0.55, 0.7)
_EMULATED_SHARE = 0.5  # emulated bf16 against fp32: 3.2 of 7 on MI50


@dataclass(frozen=True, slots=True)
class Device:
    """One model of GPU.

    Attributes:
        key: what --device takes.
        arch: gfx906, sm_70.
        memory_gib: usable memory.
        fp32, half, bf16: peak TFLOP/s of products; bf16 None = no units for it.
        bandwidth: of the memory, GB/s.
        link: of one direction between two cards, GB/s, as collectives reach it (inferred from the
        bus).
        watts: board power.
        measured: rates of whole training steps by precision.
    """

    key: str
    name: str
    arch: str
    memory_gib: float
    fp32: float
    half: float
    bf16: float | None
    bandwidth: float
    watts: int
    link: float = 8.0
    measured: dict[str, Rate] = field(default_factory=dict)
    source: str = _SHEET
    rate_source: str = ""

    def rate(self, precision: str) -> tuple[Rate, bool]:
        """TFLOP/s of a training step in fp32, fp16 or bf16 (low, typical, high), and whether it was
        measured.
        """
        if precision in self.measured:
            return self.measured[precision], True
        if precision == "fp32" or (precision == "fp16" and self.half < self.fp32):
            return _share(self.fp32, _FULL_SHARE), False
        if precision == "bf16" and self.bf16 is None:
            return _share(self.fp32 * _EMULATED_SHARE, _FULL_SHARE), False
        return _share(
            self.bf16 if precision == "bf16" and self.bf16 else self.half, _HALF_SHARE
        ), False


def _share(peak: float, share: Rate) -> Rate:
    low, typical, high = share
    return peak * low, peak * typical, peak * high


_MI50_RATES: dict[str, Rate] = {"fp16": (8.0, 8.6, 11.0), "bf16": (3.0, 3.2, 4.1)}

DEVICES: tuple[Device, ...] = (
    Device("mi50-32g", "AMD Instinct MI50 32 GB", "gfx906", 31.98, 13.3, 26.5, None, 1024, 300, 6.0,
           _MI50_RATES, _CATALOG, _LAB),
    Device("mi50-16g", "AMD Instinct MI50 16 GB", "gfx906", 15.98, 13.3, 26.5, None, 1024, 300, 6.0,
           _MI50_RATES, _CATALOG, _LAB),
    Device("mi60-32g", "AMD Instinct "
                       "MI60", "gfx906", 31.98, 14.7, 29.5, None, 1024, 300, 8.0, source=_CATALOG),
    Device("radeon-vii", "AMD Radeon VII", "gfx906", 15.98, 13.4, 26.9, None, 1024, 300, 6.0),
    Device("mi100-32g", "AMD Instinct "
                        "MI100", "gfx908", 31.98, 23.1, 184.6, 92.3, 1229, 300, 16.0,
                        source=_CATALOG),
    Device("mi210-64g", "AMD Instinct MI210", "gfx90a", 63.98, 22.6, 181.0, 181.0, 1638, 300, 20.0),
    Device("mi300x", "AMD Instinct "
                     "MI300X", "gfx942", 191.5, 163.4, 1307.0, 1307.0, 5300, 750, 50.0),
    Device("rx6900xt", "AMD Radeon RX 6900 XT", "gfx1030", 15.98, 23.0, 46.1, None, 512, 300),
    Device("rx7900xtx", "AMD Radeon RX 7900 "
                        "XTX", "gfx1100", 23.98, 61.0, 122.8, 122.8, 960, 355, source=_CATALOG),
    Device("p40", "NVIDIA Tesla P40", "sm_61", 22.4, 11.8, 0.18, None, 346, 250),
    Device("p100-16g", "NVIDIA Tesla P100 16 "
                       "GB", "sm_60", 15.9, 9.3, 18.7, None, 732, 250, source=_CATALOG),
    Device("v100-16g", "NVIDIA V100 16 "
                       "GB", "sm_70", 15.77, 14.0, 112.0, None, 900, 250, 9.0, source=_CATALOG),
    Device("v100-32g", "NVIDIA V100 32 "
                       "GB", "sm_70", 31.74, 14.0, 112.0, None, 900, 250, 9.0, source=_CATALOG),
    Device("t4", "NVIDIA T4", "sm_75", 14.56, 8.1, 65.0, None, 320, 70, source=_CATALOG),
    Device("rtx2080ti", "NVIDIA RTX 2080 Ti", "sm_75", 10.75, 13.4, 53.8, None, 616, 250),
    Device("rtx3060", "NVIDIA RTX 3060 12 GB", "sm_86", 11.75, 12.7, 25.5, 25.5, 360, 170),
    Device("rtx3080", "NVIDIA RTX 3080 10 GB", "sm_86", 9.78, 29.8, 59.5, 59.5, 760, 320),
    Device("rtx3090", "NVIDIA RTX 3090", "sm_86", 23.69, 35.6, 71.0, 71.0, 936, 350, 10.0),
    Device("rtx4080", "NVIDIA RTX 4080", "sm_89", 15.6, 48.7, 97.5, 97.5, 717, 320),
    Device("rtx4090", "NVIDIA RTX 4090", "sm_89", 23.64, 82.6, 165.2, 165.2, 1008, 450, 10.0),
    Device("rtx5090", "NVIDIA RTX 5090", "sm_120", 31.36, 104.8, 209.5, 209.5, 1792, 575, 10.0),
    Device("a10", "NVIDIA A10", "sm_86", 22.06, 31.2, 125.0, 125.0, 600, 150, 10.0),
    Device("l4", "NVIDIA L4", "sm_89", 22.06, 30.3, 121.0, 121.0, 300, 72, 10.0),
    Device("l40s", "NVIDIA L40S", "sm_89", 44.4, 91.6, 362.0, 362.0, 864, 350, 20.0),
    Device("a100-40g", "NVIDIA A100 40 GB", "sm_80", 39.39, 19.5, 312.0, 312.0, 1555, 400, 100.0),
    Device("a100-80g", "NVIDIA A100 80 GB", "sm_80", 79.1, 19.5, 312.0, 312.0, 2039, 400, 100.0),
    Device("h100-80g", "NVIDIA H100 80 GB", "sm_90", 79.1, 66.9, 989.0, 989.0, 3350, 700, 150.0),
    Device("h200", "NVIDIA H200", "sm_90", 139.8, 66.9, 989.0, 989.0, 4800, 700, 150.0),
)  # fmt: skip


def find_device(key: str) -> Device | None:
    """The device that --device names, as people write it: RTX 5090, Tesla-P40, 3090.

    None where there is none, or more than one (mi50).
    """
    wanted = _bare(key)
    found = [device for device in DEVICES if _bare(device.key) == wanted]
    if not found and len(wanted) > 1:
        found = [
            device
            for device in DEVICES
            if _bare(device.key).startswith(wanted) or _bare(device.key).endswith(wanted)
        ]
    return found[0] if len(found) == 1 else None


def memory_of(key: str) -> float | None:
    """The gigabytes that --device names instead of a card: 24g."""
    match = re.fullmatch(r"(\d{1,4}(?:\.\d+)?) ?(?:g|gb|gib)", key.strip().lower())
    return float(match[1]) if match and float(match[1]) > 0 else None


def _bare(name: str) -> str:
    words = r"nvidia|amd|geforce|tesla|instinct|radeon|[\W_]"
    return re.sub(words, "", name.lower())


MEMORY_TOLERANCE = 0.95  # of what a preset says: a "32 GB" MI50 has 31.98 GiB


def is_of(arch: str, wanted: str) -> bool:
    """Whether an architecture is one that a preset names: gfx906, a prefix as sm_8, or a compute
    capability and everything newer: sm_80+.
    """
    if not wanted.endswith("+"):
        return bool(wanted) and arch.startswith(wanted)
    family, _, least = wanted[:-1].partition("_")
    here, _, capability = arch.partition("_")
    numbers = is_count(capability) and is_count(least)
    return numbers and here == family and int(capability) >= int(least)


def nearest_device(arch: str, memory_gib: float) -> Device | None:
    """The known device of an architecture that a preset names, with the nearest memory."""
    same = [device for device in DEVICES if is_of(device.arch, arch)]
    return min(same, key=lambda device: abs(device.memory_gib - memory_gib), default=None)
