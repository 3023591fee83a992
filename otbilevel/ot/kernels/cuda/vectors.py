"""Work on vectors, where the host waits once for all numbers that it wants to know."""

from __future__ import annotations

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.kernels.cuda.device import empty, launch, read
from otbilevel.ot.kernels.vectors import balanced, inverse_diagonal, log_ratio

__all__ = ["balanced", "centred", "distance", "extremes", "inverse_diagonal", "log_ratio"]

LARGEST_BLOCK = 1024


def one_block(length: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block for a kernel that runs in a single block, with a thread a number as far as that goes."""
    return (1,), (min(LARGEST_BLOCK, max(64, 32 * -(-length // 32))),)


def extremes(x: Array) -> tuple[float, float]:
    length, out = x.shape[0], empty(2)
    launch("vectors", "vector_extremes", *one_block(length), x, length, out)
    low, high = read(out)
    return low, high


def distance(x: Array, y: Array) -> float:
    length, out = x.shape[0], empty(1)
    launch("vectors", "vector_distance", *one_block(length), x, y, length, out)
    return read(out)[0]


def centred(x: Array, b: Array) -> tuple[Array, float, float]:
    length, out = x.shape[0], empty(2)
    middle = length // 2
    median, d = array_namespace(x).sort(x)[middle : middle + 1], empty(length)
    launch("vectors", "vector_centred", *one_block(length), x, median, b, length, d, out)
    longest, mean = read(out)
    return d, longest, mean
