"""Compiled work on vectors of length n or m: at n = 500 a pass over K takes less time than five interpreted operations."""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import kernel


@kernel
def extent(x):
    """The smallest and the largest number; NaN when one is."""
    low, high, total = x[0], x[0], 0.0
    for j in range(len(x)):
        low, high = min(low, x[j]), max(high, x[j])
        total += x[j]
    return (low, high) if total == total else (np.nan, np.nan)  # noqa: PLR0124


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
    for j in range(len(out)):
        out[j] = min(log_b[j] - np.log(max(sums[j], smallest)), most)
    return out


@kernel
def balanced(x, y, weights):
    """x - y minus the multiple of `weights` that makes the sum 0."""
    total = share = 0.0
    for j in range(len(x)):
        total += x[j] - y[j]
        share += weights[j]
    out = np.empty_like(x)
    for j in range(len(x)):
        out[j] = x[j] - y[j] - total / share * weights[j]
    return out


@kernel
def centred(x, b):
    """d = x minus its (upper) median, max |d| and sum b |d|; NaN for both when one is."""
    middle = np.partition(x, len(x) // 2)[len(x) // 2]
    d, largest, mean = np.empty_like(x), 0.0, 0.0
    for j in range(len(x)):
        d[j] = x[j] - middle
        largest = max(largest, abs(d[j]))
        mean += b[j] * abs(d[j])
    return d, (largest if mean == mean else np.nan), mean  # noqa: PLR0124


@kernel
def inverse_diagonal(degree, squares, smallest):
    """1 / max(degree - squares, smallest degree), and 1 where the degree is 0."""
    out = np.empty_like(degree)
    for j in range(len(out)):
        diagonal = max(degree[j] - squares[j], smallest * degree[j])
        out[j] = 1.0 / diagonal if diagonal > 0 else 1.0
    return out
