"""How a step uses the memory that is there: layers that keep their products, logits at once."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from iisft.estimate.memory import Memory
from iisft.estimate.shape import StepShape

_CHUNKS = (0, 1024, 512)
_MOST_CHUNKS = 64  # of longer rows the chunks grow: each is counted here, and costs a step's time

Estimate = Callable[[StepShape], Memory]


def fitted(
    shape: StepShape, estimate: Estimate, gpu_gib: float, *, layers: int, unit: int = 1
) -> tuple[StepShape, Memory]:
    """The shape with as many kept layers as fit, and logits in chunks where that lets more fit.

    Args:
        shape: the step without kept layers, its logits whole.
        estimate: the memory of a shape.
        gpu_gib: what is there; 0 when that is not known.
        layers: the most that may keep their products, 0 for none.
        unit: as many together do or don't: where layers of several kinds take turns.
    """
    found: list[tuple[tuple[bool, int, int], StepShape, Memory]] = []
    for chunked in _chunked(shape):
        one, memory = _most_layers(chunked, estimate, gpu_gib, layers if gpu_gib > 0 else 0, unit)
        fits = memory.fits(gpu_gib) == "yes"
        found.append(((fits, one.layers_kept, 0 if fits else -memory.needed), one, memory))
        if fits and one.layers_kept == layers:
            break
    _, chosen, memory = max(found, key=lambda entry: entry[0])  # the first, so the largest chunk
    return chosen, memory


def _chunked(shape: StepShape) -> Iterator[StepShape]:
    positions = 0 if shape.positions is None else min(shape.positions, shape.length)
    for chunk in _CHUNKS:
        if chunk < max(positions, 1):
            fewest = -(-positions // _MOST_CHUNKS)
            yield replace(shape, chunk=max(chunk, fewest) if chunk else 0)


def _most_layers(
    shape: StepShape, estimate: Estimate, gpu_gib: float, layers: int, unit: int
) -> tuple[StepShape, Memory]:
    """Bisection: each layer that keeps its products needs more."""
    if layers:
        whole = replace(shape, layers_kept=layers)
        if (memory := estimate(whole)).fits(gpu_gib) == "yes":
            return whole, memory
    best, memory = shape, estimate(shape)
    low, high = 0, layers // unit
    while high - low > 1:
        middle = (low + high) // 2
        trial = replace(shape, layers_kept=middle * unit)
        need = estimate(trial)
        if need.fits(gpu_gib) == "yes":
            low, best, memory = middle, trial, need
        else:
            high = middle
    return best, memory
