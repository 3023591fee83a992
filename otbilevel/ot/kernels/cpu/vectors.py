"""Compiled work on vectors of length n or m: at n = 500 one of these takes 0.5 to 4 microseconds, NumPy 5 to 10."""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.vectors import LEAST_DIAGONAL


@kernel
def extremes(x):
    """The smallest and the largest number; NaN when one is."""
    low, high, missing = x[0], x[0], False
    for j in range(len(x)):
        low, high = min(low, x[j]), max(high, x[j])
        missing |= x[j] != x[j]
    return (np.nan, np.nan) if missing else (low, high)


@kernel
def distance(x, y):
    """sum |x - y|."""
    total = 0.0
    for j in range(len(x)):
        total += abs(x[j] - y[j])
    return total


@kernel
def log_ratio(log_b, sums, smallest, most):
    """log(b / max(sums, smallest)), at most `most`."""
    out = np.empty_like(log_b)
    for j in range(len(out)):  # in this order of arguments `max` and `min` keep NaN
        out[j] = min(log_b[j] - np.log(max(sums[j], smallest)), most)
    return out


@kernel
def balanced(x, y, weights):
    """x - y minus the multiple of `weights` that makes the sum 0."""
    total = share = 0.0
    for j in range(len(x)):
        total += x[j] - y[j]
        share += weights[j]
    out, factor = np.empty_like(x), total / share
    for j in range(len(x)):
        out[j] = x[j] - y[j] - factor * weights[j]
    return out


def centred(x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float, float]:
    """d = x minus its (upper) median, max |d| and sum b |d|; NaN for both when one is."""
    half = len(x) // 2
    longest, mean = _deviations(d := x - np.partition(x, half)[half], b)
    return d, longest, mean


@kernel
def _deviations(d, b):
    longest = mean = 0.0
    for j in range(len(d)):
        longest = max(longest, abs(d[j]))
        mean += b[j] * abs(d[j])
    return (longest, mean) if mean == mean else (np.nan, np.nan)  # noqa: PLR0124


@kernel
def inverse_diagonal(degree, squares, floor):
    """1 / max(degree - squares, floor degree), and 1 where that is next to nothing."""
    out = np.empty_like(degree)
    for j in range(len(out)):  # in this order of arguments `max` keeps NaN
        diagonal = max(degree[j] - squares[j], floor * degree[j])
        out[j] = 1.0 if diagonal <= LEAST_DIAGONAL else 1.0 / diagonal
    return out
