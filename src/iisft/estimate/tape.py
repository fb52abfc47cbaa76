"""A tape that counts bytes: torch's autograd in miniature, on tensors with a size and a dtype only.

The layers of iisft.estimate.decoder run on it as the real ones run on torch, and Python's reference
counting frees a tensor here when it would free the real one. So a step's peak is counted rather
than fitted, in milliseconds and without torch. Rules taken from torch: sizes round up to 512 bytes
(CUDACachingAllocator's kMinBlockSize); a node's saved tensors are freed after its backward; a
second gradient is added in place where nothing else holds the first (autograd/input_buffer.cpp);
dtypes promote as torch.result_type says; a gradient is cast to its input's dtype.
"""

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

BLOCK = 512
ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "bool": 1}

KINDS = (
    "weights",
    "adapter",
    "optimizer",
    "gradients",
    "checkpoints",
    "layer",
    "logits",
    "casts",
    "inputs",
    "products",
)
WEIGHTS, ADAPTER, OPTIMIZER, GRADIENTS, CHECKPOINTS, LAYER, LOGITS, CASTS, INPUTS, PRODUCTS = range(
    len(KINDS)
)

Gradients = tuple["Tensor | None", ...]


class Storage:
    """Bytes that live as long as a tensor or a saved reference holds them."""

    __slots__ = ("kind", "size", "tape")

    def __init__(self, tape: "Tape", size: int, kind: int) -> None:
        self.tape, self.size, self.kind = tape, size, kind
        tape.live[kind] += size
        tape.total += size
        if tape.total > tape.peak_total:
            tape.peak_total = tape.total
            tape.peaks[tape.segment] = tape.live.copy()

    def __del__(self) -> None:
        self.tape.live[self.kind] -= self.size
        self.tape.total -= self.size


class Node:
    """One operation that a gradient passes through; without `backward` a leaf, which keeps it."""

    __slots__ = ("backward", "dtypes", "gradient", "order", "parents")

    def __init__(
        self, order: int, parents: "tuple[Node | None, ...]", dtypes: tuple[str, ...]
    ) -> None:
        self.order, self.parents, self.dtypes = order, parents, dtypes
        self.backward: Callable[[Tensor], Gradients] | None = None
        self.gradient: Tensor | None = None


class Tensor:
    """Elements, dtype, storage, and where the gradient goes (None = it needs no gradient)."""

    __slots__ = ("dtype", "node", "numel", "storage")

    def __init__(self, storage: Storage, numel: int, dtype: str, node: Node | None = None) -> None:
        self.storage, self.numel, self.dtype, self.node = storage, numel, dtype, node


class Tape:
    """Live bytes by kind and the peak of each segment of the step.

    Attributes:
        live, total: bytes right now, by kind and together.
        peaks: for each segment the bytes by kind at its worst moment.
        autocast: torch.autocast's dtype, or None.
    """

    def __init__(self, autocast: str | None = None) -> None:
        self.live = [0] * len(KINDS)
        self.total = 0
        self.segment = "start"
        self.peak_total = 0
        self.peaks: dict[str, list[int]] = {}
        self.autocast = autocast
        self.kind = LAYER
        self.recording = True
        self.casts: dict[int, Tensor] = {}  # autocast's cache of half copies of trainable weights
        # what a layer that keeps products keeps in forward, and takes in the backward pass
        self.keeping: list[Tensor] | None = None
        self.kept: list[Tensor] | None = None
        self.smallest_inner = 0
        # a recomputation that has all that was saved ends there: what follows is not made
        self.recomputing = self.stopped = False
        self._order = 0
        self._queue: list[tuple[int, Any]] = []

    def taken(self, inner: int) -> "Tensor | None":
        """The output of a product over `inner` numbers that was kept in forward."""
        if self.kept is None or inner < self.smallest_inner:
            return None
        return self.kept.pop(0)

    def keep(self, out: "Tensor", inner: int) -> "Tensor":
        """Keep the output of a product where its layer keeps them."""
        if self.keeping is not None and inner >= self.smallest_inner:
            self.relabel(out, PRODUCTS)
            self.keeping.append(Tensor(out.storage, out.numel, out.dtype))
        return out

    def enter(self, segment: str, kind: int = LAYER) -> None:
        """From here on peaks and new tensors belong to another part of the step."""
        self.segment, self.kind = segment, kind
        before = self.peaks.get(segment)
        self.peak_total = max(self.total, sum(before) if before else 0)
        if before is None or self.total > sum(before):
            self.peaks[segment] = self.live.copy()

    def new(self, numel: int, dtype: str, kind: int | None = None) -> Tensor:
        """A tensor with its own storage."""
        size = 0 if self.stopped else -(-numel * ITEM_SIZE[dtype] // BLOCK) * BLOCK
        return Tensor(Storage(self, size, self.kind if kind is None else kind), numel, dtype)

    def leaf(self, numel: int, dtype: str, kind: int) -> Tensor:
        """A trainable parameter."""
        tensor = self.new(numel, dtype, kind)
        tensor.node = Node(sys.maxsize, (), (dtype,))
        return tensor

    def relabel(self, tensor: Tensor, kind: int) -> None:
        """Count a tensor's bytes as another kind from now on."""
        storage = tensor.storage
        self.live[storage.kind] -= storage.size
        storage.kind = kind
        self.live[kind] += storage.size

    def record(
        self, result: Tensor, inputs: Iterable[Tensor], backward: Callable[[Tensor], Gradients]
    ) -> Tensor:
        """Let gradients go from `result` to `inputs`; `backward` holds what was saved."""
        if self.recording:
            given = tuple(inputs)
            parents = tuple(tensor.node for tensor in given)
            if any(parents):
                self._order += 1
                result.node = Node(self._order, parents, tuple(tensor.dtype for tensor in given))
                result.node.backward = backward
        return result

    def port(self, tensor: Tensor) -> Node:
        """Where a tensor's gradients arrive before its own graph is there."""
        self._order += 1
        tensor.node = Node(self._order, (None,), (tensor.dtype,))
        tensor.node.backward = lambda gradient: (gradient,)
        return tensor.node

    def connect(self, port: Node, made: Tensor) -> None:
        """Let the gradients that arrive at `port` go on to `made`, in its place of the order."""
        before, self._order = port.order, self._order + 1
        port.order, port.parents, port.dtypes = self._order, (made.node,), (made.dtype,)
        if (-before, port) in self._queue:
            self._queue.remove((-before, port))
            heapq.heapify(self._queue)
            heapq.heappush(self._queue, (-port.order, port))

    @contextmanager
    def paused(self, recording: bool) -> Iterator[None]:
        """torch.no_grad() or, inside of it, torch.enable_grad()."""
        before, self.recording = self.recording, recording
        try:
            yield
        finally:
            self.recording = before

    def backward(self, tensor: Tensor, gradient: Tensor) -> None:
        """Run every node behind `tensor`, the latest first; leaves keep their gradients."""
        assert tensor.node is not None
        waiting = {tensor.node: gradient}
        queue: list[tuple[int, Any]] = [(-tensor.node.order, tensor.node)]
        before, self._queue = self._queue, queue
        del tensor, gradient
        with self.paused(False):
            while queue:
                node = heapq.heappop(queue)[1]
                self._deliver(node, waiting.pop(node), waiting, queue)
        self._queue = before

    def _deliver(
        self,
        node: Node,
        gradient: Tensor | None,
        waiting: dict[Node, Tensor],
        queue: list[tuple[int, Any]],
    ) -> None:
        assert node.backward is not None and gradient is not None
        backward, node.backward = node.backward, None
        results = [*backward(gradient)]
        del backward, gradient
        for place, parent in enumerate(node.parents):
            result, results[place] = results[place], None
            if parent is None or result is None:
                continue
            dtype = node.dtypes[place]
            if result.dtype != dtype:
                result = self.new(result.numel, dtype)
            if parent.order == sys.maxsize:
                self._keep(parent, result)
            elif parent in waiting:
                old = waiting.pop(parent)
                alone = sys.getrefcount(old) == 2 and sys.getrefcount(old.storage) == 2
                waiting[parent] = old if alone else self.new(old.numel, old.dtype)
                del old
            else:
                waiting[parent] = result
                heapq.heappush(queue, (-parent.order, parent))

    def _keep(self, leaf: Node, gradient: Tensor) -> None:
        if leaf.gradient is None:
            self.relabel(gradient, GRADIENTS)
            leaf.gradient = gradient


def saved_behind(nodes: Iterable[Node | None], until: Node | None) -> list[object]:
    """What the graph behind `nodes`, up to `until`, has saved: it lives as long as this list."""
    first = until.order if until is not None else -1
    waiting, seen = [node for node in nodes if node is not None], set()
    found: list[object] = []
    while waiting:
        node = waiting.pop()
        if node in seen or node.order == sys.maxsize or node.order <= first:
            continue
        seen.add(node)
        found.append(node.backward)
        waiting += [parent for parent in node.parents if parent is not None]
    return found


def promoted(one: str, other: str) -> str:
    """torch.result_type of two floating dtypes."""
    return one if one == other else "float32"
