"""Conjugate gradients on the Laplacian of a stored plan, compiled as one loop: at n = 500 half of an interpreted step is overhead.

L = diag(degree) - V K' diag(weights) K V with V = diag(columns) is preconditioned by its diagonal, and where that takes
long by a coarse space in addition. `linalg.cg` is the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from otbilevel.linalg.cg import NOISE
from otbilevel.ot.kernels.cpu import active, stored
from otbilevel.ot.kernels.cpu.coarse import FEW_CLUSTERS, MOST_CLUSTERS, Coarse, build, nothing
from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.cpu.exp import SUMS

ENTRIES_PER_ASK = 20_000_000
"""Work between two looks at the clock: some three milliseconds."""
PATIENCE = 40, 240
"""Steps after which a new coarse space pays: a small one, then a large one."""


def add_product(plan, weights, x, sums):
    """sums[0] += K' diag(weights) K x for a stored matrix, or for the tuple (indptr, indices, values) of an active set."""
    raise NotImplementedError  # pragma: no cover -- compiled code calls the overload below


@overload(add_product, jit_options={"fastmath": SUMS})
def _add_product(plan, weights, x, sums):  # noqa: ARG001 -- numba wants the same signature throughout
    if isinstance(plan, types.Array):
        return lambda plan, weights, x, sums: stored.laplacian_product(0, len(weights), sums, plan, weights, x)
    return lambda plan, weights, x, sums: active.laplacian_product(0, len(weights), sums, plan[0], plan[1], plan[2], weights, x)


@kernel
def precondition(r, inverse_diagonal, coarse, out):
    """out <- M^-1 r, see `coarse`."""
    labels, inverse = coarse
    count = len(inverse)
    sums = np.zeros(count)
    for j in range(len(r)):
        sums[labels[j]] += r[j]
    corrections = np.zeros(count)
    for k in range(count):
        for j in range(count):
            corrections[j] += inverse[k, j] * sums[k]
    for j in range(len(r)):
        out[j] = inverse_diagonal[j] * r[j] + corrections[labels[j]]


@kernel
def advance(product, degree, inverse_diagonal, coarse, x, r, p, rz):
    """One step, given N p of L = diag(degree) - N; overwrites `product`, x, r and p.

    Returns r'z and the L1 norm of r after it. The norm is -1 where the iteration must end: the curvature is not above its rounding,
    and nothing moved, or r'z is not positive.
    """
    curvature = bulk = 0.0
    for j in range(len(p)):
        whole = degree[j] * p[j]
        product[j] = whole - product[j]
        bulk += p[j] * whole
        curvature += p[j] * product[j]
    if not NOISE * bulk < curvature < np.inf:
        return rz, -1.0
    alpha = rz / curvature
    size = following = 0.0
    for j in range(len(p)):
        x[j] += alpha * p[j]
        r[j] -= alpha * product[j]
        size += abs(r[j])
    z = product
    precondition(r, inverse_diagonal, coarse, z)
    for j in range(len(p)):
        following += r[j] * z[j]
    beta = following / rz
    for j in range(len(p)):
        p[j] = z[j] + beta * p[j]
    return following, (size if following > 0.0 or size == 0.0 else -1.0)


@kernel
def steps(most, target, plan, weights, columns, degree, inverse_diagonal, coarse, x, r, p, rz, size):
    """Up to `most` steps until the L1 norm of r is at most `target`. Returns their number, r'z and the norm as `advance` does."""
    scaled, sums = np.empty(len(p)), np.empty((1, len(p)))
    done = 0
    while done < most and size > target:
        for j in range(len(p)):
            scaled[j], sums[0, j] = columns[j] * p[j], 0.0
        add_product(plan, weights, scaled, sums)
        for j in range(len(p)):
            sums[0, j] *= columns[j]
        rz, size = advance(sums[0], degree, inverse_diagonal, coarse, x, r, p, rz)
        done += 1
    return done, rz, size


def _due(m: int, count: int) -> list[tuple[int, int]]:
    """After how many steps to try a coarse space of how many clusters, when the present one has `count`."""
    few = min(FEW_CLUSTERS, 2 * m // 3)
    return [(PATIENCE[0], few), (PATIENCE[1], MOST_CLUSTERS)] if count <= few else [(PATIENCE[0], MOST_CLUSTERS)]


def solve(
    plan: Any,
    n_entries: int,
    threaded: Callable[[np.ndarray], np.ndarray] | None,
    weights: np.ndarray,
    columns: np.ndarray,
    degree: np.ndarray,
    inverse_diagonal: np.ndarray,
    b: np.ndarray,
    *,
    tol: float,
    max_iter: int,
    interrupt: Callable[[], bool],
    coarse: Coarse | None = None,
) -> tuple[np.ndarray, int, Coarse]:
    """Solve L x = b until the L1 norm of the residual is `tol` times that of b, at most `max_iter` steps, or `interrupt()`.

    `threaded(y)` is K' diag(weights) K y by several threads, None when one is enough. `coarse` comes from an earlier solve;
    one that takes longer than `PATIENCE` makes a new one and goes on with that. Returns x, the number of steps, and
    the coarse space for the next solve.
    """
    coarse = coarse or nothing(len(b))
    due = _due(len(b), len(coarse.inverse))
    x, r, p = np.zeros_like(b), b.copy(), np.empty_like(b)
    size = float(np.abs(r).sum())
    target, nit, ask = tol * size, 0, max(1, ENTRIES_PER_ASK // max(n_entries, 1))
    restart, rz = True, 0.0
    while size > target and nit < max_iter and not interrupt():
        if due and nit >= due[0][0]:
            coarse, restart = build(plan, weights, columns, due.pop(0)[1]) or coarse, True
        if restart:
            precondition(r, inverse_diagonal, coarse, p)
            rz, restart = float(r @ p), False
        state = degree, inverse_diagonal, tuple(coarse), x, r, p, rz
        if threaded is None:
            most = min(ask, (due[0][0] if due else max_iter) - nit, max_iter - nit)
            done, rz, size = steps(most, target, plan, weights, columns, *state, size)
        else:
            done, (rz, size) = 1, advance(columns * threaded(columns * p), *state)
        nit += done
    return x, nit, coarse
