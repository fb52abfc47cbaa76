"""How GPUs talk to each other and to the host: IOMMU, P2P, PCIe."""

from collections.abc import Iterator

from iisft.errors import Finding
from iisft.machine.doctor.engine import Case, numbers
from iisft.machine.doctor.fixes import as_root, by_hand, export, kernel_parameter, torch_for
from iisft.machine.facts.gpus import Gpu
from iisft.machine.facts.pci import Card
from iisft.rules import rule, seen

_PASSED_THROUGH = {
    "iommu=pt",
    "iommu=off",
    "intel_iommu=off",
    "amd_iommu=off",
    "iommu.passthrough=1",
}


def _cards(case: Case, gpus: list[Gpu]) -> list[Card]:
    return [card for gpu in gpus if (card := case.machine.card(gpu)) is not None]


def _proven(case: Case) -> bool:
    """Whether --deep saw an all-reduce over these GPUs come through."""
    return any("gbps" in one and one.get("gpus") for one in case.deep_results("all-reduce"))


@rule(
    "R08",
    "iommu-translate",
    applies="several GPUs",
    source="RCCL init.cc (Missing iommu=pt); NVIDIA Triton: PCIe multi-GPU; stas00/toolbox#1; the "
    "first user",
    hang=True,
)
def iommu_translates(case: Case) -> Iterator[Finding]:
    """The IOMMU translates the GPUs' DMA, so writes from card to card never arrive: the first
    all-reduce hangs at 0 %.

    It cost the first user days. `iommu=pt` leaves the IOMMU on and translates nothing for the GPUs.
    Silent once `env-check --deep` saw an all-reduce come through here.
    """
    if not case.several or _proven(case):
        return
    host = case.machine.host
    shown = _cards(case, case.gpus)
    translated = [card for card in shown if card.iommu.startswith("DMA")]
    if translated:
        first = translated[0]
        evidence = f"/sys/kernel/iommu_groups/{first.iommu_group}/type is {first.iommu}"
    elif (
        not any(card.iommu for card in shown)
        and host.iommus
        and not _PASSED_THROUGH & set(host.cmdline)
    ):
        evidence = f"/sys/class/iommu has {', '.join(host.iommus)}, no iommu=pt in /proc/cmdline"
    else:
        return
    words = "intel_iommu=on iommu=pt" if host.cpu_vendor == "GenuineIntel" else "iommu=pt"
    if "intel_iommu=on" in host.cmdline:
        words = "iommu=pt"
    off = "amd_iommu=off" if host.cpu_vendor == "AuthenticAMD" else "intel_iommu=off"
    around = case.env.get("NCCL_P2P_DISABLE") == "1"
    yield seen(
        "the IOMMU translates the GPUs' DMA: "
        + (
            "with NCCL_P2P_DISABLE=1 the ranks go through host memory, which is slow"
            if around
            else "several GPUs can hang at their first all-reduce, at 0 % load and without a "
            "message"
        ),
        evidence,
        kernel_parameter(
            words,
            host,
            f" (still hanging: {off}; to prove that it works as it is: env-check --deep)",
        ),
        "error" if case.amd and not around else "warn",
    )


@rule(
    "R09",
    "kfd-ipc-mainline",
    applies="several AMD GPUs with the kernel's own amdgpu",
    source="ROCR-Runtime#270; rccl#1454; pytorch#143728; rocm-systems#2209",
    hang=True,
)
def ipc_without_dkms(case: Case) -> Iterator[Finding]:
    """The kernel's own amdgpu has no KFD IPC, which ROCm 6.3 and newer use between processes: RCCL
    fails or hangs.
    """
    in_tree = case.machine.host.amdgpu == ""
    new = case.hip is not None and case.hip >= (6, 3)
    if (
        len(case.amd) > 1
        and case.several
        and in_tree
        and new
        and "HSA_ENABLE_IPC_MODE_LEGACY" not in case.env
    ):
        yield seen(
            "amdgpu is the kernel's own and has no KFD IPC: RCCL can fail or hang when the ranks "
            "meet",
            "/sys/module/amdgpu/version is missing",
            export(
                "HSA_ENABLE_IPC_MODE_LEGACY=0",
                text="export HSA_ENABLE_IPC_MODE_LEGACY=0, or install amdgpu-dkms; as a last "
                "resort NCCL_P2P_DISABLE=1",
            ),
            "warn",
        )


@rule(
    "R18",
    "p2p-between-sockets",
    applies="AMD GPUs on two sockets of an Intel machine",
    source="RCCL paths.cc (Intel: P2P only below one PCIe switch); linux p2pdma whitelist",
)
def no_p2p_between_sockets(case: Case) -> Iterator[Finding]:
    """On Intel, RCCL uses P2P only within one PCIe switch: between sockets data goes through
    /dev/shm.
    """
    nodes = {card.numa_node for card in _cards(case, case.amd) if card.numa_node is not None}
    if case.several and len(nodes) > 1 and case.machine.host.cpu_vendor == "GenuineIntel":
        yield seen(
            "the GPUs hang on different sockets: RCCL will go through /dev/shm and not from card "
            "to card",
            f"NUMA nodes {', '.join(map(str, sorted(nodes)))}; Intel",
            by_hand("both cards on one socket's slots would be faster; nothing is wrong"),
            "info",
        )


@rule("R19", "large-bar", applies="AMD GPUs", source="RCCL README; ROCm/rccl#1129")
def small_bar(case: Case) -> Iterator[Finding]:
    """The CPU sees only a part of the card's memory.

    P2P needs all of it (Above 4G Decoding in the BIOS).
    """
    small = [card for card in _cards(case, case.amd) if card.large_bar is False]
    if small:
        visible = (small[0].visible_bytes or 0) // 2**20
        yield seen(
            f"only {visible} MiB of a GPU's memory can be addressed by the CPU ({len(small)} "
            "card(s)): no P2P",
            f"mem_info_vis_vram_total of {small[0].bus}",
            by_hand("in the BIOS: Above 4G Decoding on, and Resizable BAR where there is one"),
            "warn" if case.several else "info",
        )


@rule(
    "R20",
    "fine-grain-pcie",
    applies="several AMD GPUs with P2P",
    source="RCCL README, init.cc; ROCm/rccl#1129",
)
def no_fine_grain(case: Case) -> Iterator[Finding]:
    """RCCL wants HSA_FORCE_FINE_GRAIN_PCIE=1 before it uses P2P over PCIe."""
    peers = case.machine.capabilities.peers if case.machine.capabilities else []
    if (
        len(case.amd) > 1
        and case.several
        and peers
        and case.env.get("HSA_FORCE_FINE_GRAIN_PCIE") != "1"
    ):
        yield seen(
            "the GPUs can address each other, and RCCL will not use it without "
            "HSA_FORCE_FINE_GRAIN_PCIE=1",
            f"can_device_access_peer: {len(peers)} pairs",
            export("HSA_FORCE_FINE_GRAIN_PCIE=1"),
            "warn",
        )


@rule(
    "R27",
    "pcie-atomics",
    applies="AMD GPUs",
    source="linux kfd_crat.h; ROCm#2429, #2314; pytorch#103973, PR 114660",
)
def no_atomics(case: Case) -> Iterator[Finding]:
    """A slot without PCIe atomics: kernels that call back to the host (asserts) are refused."""
    without = [gpu for gpu in case.amd if gpu.no_atomics]
    if without:
        torch = case.version("torch")
        yield seen(
            f"no PCIe atomics for {len(without)} GPU(s): device asserts fail with 'Pcie atomics "
            "not enabled, hostcall "
            "not supported'",
            "flags of io_links in /sys/class/kfd",
            torch_for(without[0].arch, case.machine.host)
            if torch and torch < (2, 2)
            else by_hand("put the card into a CPU's slot"),
            "warn",
        )


@rule("R44", "numa-balancing", applies="several AMD GPUs", source="RCCL init.cc")
def numa_balancing(case: Case) -> Iterator[Finding]:
    """The kernel moves pages between sockets while the GPUs use them; RCCL warns about it."""
    if case.several and len(case.amd) > 1 and case.machine.host.numa_balancing == 1:
        yield seen(
            "automatic NUMA balancing is on: RCCL warns that it slows transfers down",
            "/proc/sys/kernel/numa_balancing is 1",
            as_root("sudo sysctl kernel.numa_balancing=0"),
            "info",
        )


@rule(
    "R46",
    "pcie-link",
    applies="any GPU",
    source="sysfs current_link_width, max_link_width",
    basis="inferred",
)
def narrow_link(case: Case) -> Iterator[Finding]:
    """The card has fewer PCIe lanes than it could have.

    The link's speed is not judged: idle cards lower it.
    """
    for card in _cards(case, case.gpus):
        if card.link_width and card.link_width_max and card.link_width < card.link_width_max:
            yield seen(
                f"the GPU at {card.bus} runs with {card.link_width} of {card.link_width_max} PCIe "
                "lanes",
                "current_link_width",
                by_hand("reseat the card, or take another slot"),
                "info",
            )


@rule(
    "R47",
    "rtx40-p2p",
    applies="several RTX 40 cards",
    source="accelerate check_cuda_p2p_ib_support",
)
def rtx40(case: Case) -> Iterator[Finding]:
    """accelerate refuses several RTX 40 cards under drivers before 550.40.07 unless P2P and
    InfiniBand are off.
    """
    cards = [gpu for gpu in case.nvidia if "RTX 40" in gpu.name]
    driver = numbers(case.machine.host.nvidia_driver)
    off = case.env.get("NCCL_P2P_DISABLE") == case.env.get("NCCL_IB_DISABLE") == "1"
    if case.several and len(cards) > 1 and driver and driver < (550, 40, 7) and not off:
        yield seen(
            f"{len(cards)} RTX 40 cards under driver {case.machine.host.nvidia_driver}: "
            "accelerate refuses to start",
            "/proc/driver/nvidia/version",
            export("NCCL_P2P_DISABLE=1", "NCCL_IB_DISABLE=1"),
        )
