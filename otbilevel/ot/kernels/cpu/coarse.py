"""A coarse space for conjugate gradients on the Laplacian of a plan: clusters of columns that share rows.

At small reg the graph of the plan falls into clusters with weak ties between them. Jacobi's preconditioner does not see them,
and conjugate gradients pay with hundreds of steps, most of all for costs with ties. Here

    M^-1 = diag(L)^-1 + R' (R L R')^-1 R,    R the sums over clusters,

adds the Laplacian of the graph of clusters, solved directly: 10 to 30 steps are then enough. It may be kept while the plan
changes: any symmetric positive definite matrix is a preconditioner.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from otbilevel.ot.kernels.cpu.compile import inlined, kernel

STRENGTH = 0.03
"""A column joins a cluster when its entry in the row that founds it is at least this share of the largest."""
UNCLAIMED = 0.1
"""A row founds a cluster when columns outside of all clusters hold at least this share of it."""
MOST_CLUSTERS = 2000
"""A limit of memory: 64 megabytes at work."""
WEAKEST_TIE = 1e-10
"""Lifts clusters without ties to others, whose inverse does not exist."""


class Coarse(NamedTuple):
    """`labels` (m,) numbers the clusters, `inverse` is (R L R')^-1."""

    labels: np.ndarray
    inverse: np.ndarray


def nothing(m: int) -> Coarse:
    """No coarse space: Jacobi's preconditioner alone."""
    return Coarse(np.zeros(m, np.int64), np.zeros((1, 1)))


def plan_row(plan, i, buffer):
    """Row i of a stored matrix, or of the tuple (indptr, indices, values) of an active set, written into `buffer`."""
    raise NotImplementedError  # pragma: no cover -- compiled code calls the overload below


@overload(plan_row)
def _plan_row(plan, i, buffer):  # noqa: ARG001 -- numba wants the same signature throughout
    if isinstance(plan, types.Array):
        return lambda plan, i, buffer: plan[i]
    return lambda plan, i, buffer: _sparse_row(plan[0], plan[1], plan[2], i, buffer)


@kernel
def _sparse_row(indptr, indices, values, i, buffer):
    buffer[:] = 0.0
    for k in range(indptr[i], indptr[i + 1]):
        buffer[indices[k]] = values[k]
    return buffer


@inlined
def _found(row, columns, free, labels, label):
    """Give the label to the strong columns of a row that are free."""
    top = 0.0
    for j in range(len(free)):
        top = max(top, row[j] * columns[j] * free[j])
    for j in range(len(free)):
        if free[j] > 0.0 and row[j] * columns[j] >= STRENGTH * top:
            labels[j], free[j] = label, 0.0


@kernel
def find_clusters(plan, n, columns, labels):
    """Write the number of each column's cluster into `labels`; return how many there are."""
    m, count = len(columns), 0
    buffer, free = np.empty(m, np.float32), np.ones(m)
    for i in range(n):
        row = plan_row(plan, i, buffer)
        total = unclaimed = 0.0
        for j in range(m):
            k = row[j] * columns[j]
            total += k
            unclaimed += k * free[j]
        if unclaimed > UNCLAIMED * total:
            _found(row, columns, free, labels, count)
            count += 1
    for j in range(m):
        if free[j] > 0.0:
            labels[j] = count
            count += 1
    return count


@kernel
def sum_clusters(plan, columns, labels, out):
    """out_ik += the entries of row i of K diag(columns) in cluster k."""
    buffer = np.empty(len(columns), np.float32)
    for i in range(len(out)):
        row, sums = plan_row(plan, i, buffer), out[i]
        for j in range(len(columns)):
            sums[labels[j]] += row[j] * columns[j]


def clusters(plan: Any, n: int, columns: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of each column's cluster, and how many there are."""
    labels = np.empty(len(columns), np.int64)
    return labels, find_clusters(plan, n, columns, labels)


def price(n: int, m: int, count: int) -> float:
    """What `build` costs, in entries of a dense product: passes over the plan, a matrix product, and an inverse (measured)."""
    return 10.0 * n * m + 0.5 * n * count**2 + count**3


def build(plan: Any, weights: np.ndarray, columns: np.ndarray, labels: np.ndarray, count: int) -> Coarse | None:
    """The coarse space of these clusters for V K' diag(weights) K V; None when one of them is empty in rounding."""
    sums = np.zeros((len(weights), count))
    sum_clusters(plan, columns, labels, sums)
    ties = sums.T @ (weights[:, None] * sums)
    total = ties.sum(axis=1)
    if not (np.isfinite(total).all() and total.min() > 0):
        return None
    # A Laplacian whose diagonal is computed from the ties is semi-definite in rounding, too. The last term lifts the constants.
    np.fill_diagonal(ties, 0.0)
    matrix = np.diag(ties.sum(axis=1) + WEAKEST_TIE * total) - ties + np.outer(total, total / total.sum())
    scale = 1.0 / np.sqrt(total)
    inverse = np.linalg.inv(scale[:, None] * matrix * scale)
    return Coarse(labels, 0.5 * (inverse + inverse.T) * np.outer(scale, scale))
