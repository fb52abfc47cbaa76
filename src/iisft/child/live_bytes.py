"""Live bytes of tensor storages, as torch's CUDA allocator counts them, for trace_step.py."""

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512  # kMinBlockSize of torch's CUDA caching allocator, which HIP shares
_resize = torch.UntypedStorage.resize_


class LiveBytes(TorchDispatchMode):
    """Follows every storage from its creation to its end, and through FSDP's resizing.

    Args:
        made_of: the Python functions of operations that are not torch's own.

    Attributes:
        live: bytes right now.
        peaks: the most bytes in each phase.
        at_peak: the phase of the highest peak, and its bytes by kind.
    """

    def __init__(self, made_of: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.made_of, self.depth = made_of, 0
        self.sizes: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.live, self.phase = 0, "start"
        self.peaks: dict[str, int] = {}
        self.at_peak: tuple[str | None, dict[str, int]] = (None, {})

    def __enter__(self) -> Self:
        # FSDP gathers and frees parameters by resizing their storage
        torch.UntypedStorage.resize_ = lambda storage, size: self._resized(storage, size)
        self.depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.depth -= 1
        if not self.depth:
            torch.UntypedStorage.resize_ = _resize
        return super().__exit__(*error)

    def __torch_dispatch__(
        self,
        operator: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if str(operator) in self.made_of:
            with self:  # what an operation that is not torch's own does is followed too
                result = self.made_of[str(operator)](*args, **(kwargs or {}))
        else:
            result = operator(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self.add, result)
        return result

    def add(self, tensor: torch.Tensor, kind: str | None = None) -> None:
        """Follow a tensor from now on; a kind given later replaces the earlier one."""
        local = getattr(tensor, "_local_tensor", tensor)  # a DTensor is a view of its shard
        if type(local).__name__ == "AsyncCollectiveTensor":
            return
        storage = local.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self._set(storage, storage.nbytes())
        if kind is not None:
            self.kinds[key] = kind

    def _resized(self, storage: Any, size: int) -> Any:
        result = _resize(storage, size)
        self._set(storage, size)
        return result

    def _set(self, storage: Any, size: int) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key], self.kinds[key] = 0, "activations"
            weakref.finalize(storage, self._remove, key)
        size = math.ceil(size / BLOCK) * BLOCK
        self.live += size - self.sizes[key]
        self.sizes[key] = size
        if self.live > self.peaks.get(self.phase, 0):
            self.peaks[self.phase] = self.live
            if self.live >= max(self.peaks.values()):
                self.at_peak = (self.phase, self.by_kind())

    def _remove(self, key: int) -> None:
        self.live -= self.sizes.pop(key)
        del self.kinds[key]

    def by_kind(self) -> dict[str, int]:
        """Bytes by kind right now."""
        sums: dict[str, int] = {}
        for key, size in self.sizes.items():
            sums[self.kinds[key]] = sums.get(self.kinds[key], 0) + size
        return sums

    def begin(self, phase: str) -> None:
        """Forget the peaks so far, as the step begins."""
        self.peaks, self.at_peak = {}, (None, {})
        self.enter(phase)

    def enter(self, phase: str) -> None:
        """Enter another phase."""
        self.phase = phase
        self.peaks.setdefault(phase, self.live)
