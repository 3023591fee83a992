"""Rows of the cost, for kernels that do not care where it comes from: a stored matrix, or two point clouds."""

import numpy as np
from numba import njit, types
from numba.extending import overload

from otbilevel.ot.kernels.cpu.compile import ARITHMETIC

SQEUCLIDEAN, EUCLIDEAN, CITYBLOCK, COSINE = range(4)


def cost_row(cost, i, buffer):
    """Row i of the cost: a view of a stored matrix, or `buffer` filled from the points."""
    raise NotImplementedError  # pragma: no cover -- compiled code calls the overload below


@overload(cost_row, jit_options=ARITHMETIC)
def _cost_row(cost, i, buffer):  # noqa: ARG001 -- numba wants the same signature throughout
    if isinstance(cost, types.Array):
        return lambda cost, i, buffer: cost[i]
    return lambda cost, i, buffer: _points_row(cost, i, buffer)


@njit(**ARITHMETIC)
def _points_row(cost, i, buffer):
    """`cost` is (x (n, d), y transposed (d, m), kind); cosine takes points of unit length."""
    x, yt, kind = cost
    m = len(buffer)
    buffer[:] = 1.0 if kind == COSINE else 0.0
    for k in range(len(yt)):
        xk = np.float64(x[i, k])
        if kind == COSINE:
            for j in range(m):
                buffer[j] -= xk * yt[k, j]
        elif kind == CITYBLOCK:
            for j in range(m):
                buffer[j] += abs(xk - yt[k, j])
        else:
            for j in range(m):
                z = xk - yt[k, j]
                buffer[j] += z * z
    if kind == EUCLIDEAN:
        for j in range(m):
            buffer[j] = np.sqrt(buffer[j])
    return buffer
