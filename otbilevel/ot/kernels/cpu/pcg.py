"""Conjugate gradients on the Laplacian of a stored plan, compiled as one loop: at n = 500 half of an interpreted step is overhead.

L = diag(degree) - V K' diag(weights) K V with V = diag(columns) is preconditioned by its diagonal. `linalg.cg` is the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from otbilevel.linalg.cg import NOISE
from otbilevel.ot.kernels.cpu import active, stored
from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.cpu.exp import SUMS

ENTRIES_PER_ASK = 20_000_000
"""Work between two looks at the clock: some three milliseconds."""


def add_product(plan, weights, x, sums):
    """sums[0] += K' diag(weights) K x for a stored matrix, or for the tuple (indptr, indices, values) of an active set."""
    raise NotImplementedError  # pragma: no cover -- compiled code calls the overload below


@overload(add_product, jit_options={"fastmath": SUMS})
def _add_product(plan, weights, x, sums):  # noqa: ARG001 -- numba wants the same signature throughout
    if isinstance(plan, types.Array):
        return lambda plan, weights, x, sums: stored.laplacian_product(0, len(weights), sums, plan, weights, x)
    return lambda plan, weights, x, sums: active.laplacian_product(0, len(weights), sums, plan[0], plan[1], plan[2], weights, x)


@kernel
def advance(product, degree, inverse_diagonal, x, r, p, rz):
    """One step, given M p of L = diag(degree) - M; overwrites `product`, x, r and p.

    Returns r'z and the L1 norm of r after it. The norm is -1, and nothing moved, where the curvature is not above its rounding.
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
        following += r[j] * inverse_diagonal[j] * r[j]
    beta = following / rz
    for j in range(len(p)):
        p[j] = inverse_diagonal[j] * r[j] + beta * p[j]
    return following, size


@kernel
def steps(most, target, plan, weights, columns, degree, inverse_diagonal, x, r, p, rz, size):
    """Up to `most` steps until the L1 norm of r is at most `target`. Returns their number, r'z and the norm as `advance` does."""
    scaled, sums = np.empty(len(p)), np.empty((1, len(p)))
    done = 0
    while done < most and size > target:
        for j in range(len(p)):
            scaled[j], sums[0, j] = columns[j] * p[j], 0.0
        add_product(plan, weights, scaled, sums)
        for j in range(len(p)):
            sums[0, j] *= columns[j]
        rz, size = advance(sums[0], degree, inverse_diagonal, x, r, p, rz)
        done += 1
    return done, rz, size


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
) -> tuple[np.ndarray, int]:
    """Solve L x = b until the L1 norm of the residual is `tol` times that of b, at most `max_iter` steps, or `interrupt()`.

    `threaded(y)` is K' diag(weights) K y by several threads, None when one is enough. Returns x and the number of steps.
    """
    x, r, p = np.zeros_like(b), b.copy(), inverse_diagonal * b
    rz, size = float(r @ p), float(np.abs(r).sum())
    target, nit, most = tol * size, 0, max(1, ENTRIES_PER_ASK // max(n_entries, 1))
    while size > target and nit < max_iter and not interrupt():
        state = degree, inverse_diagonal, x, r, p, rz
        if threaded is None:
            done, rz, size = steps(min(most, max_iter - nit), target, plan, weights, columns, *state, size)
        else:
            done, (rz, size) = 1, advance(columns * threaded(columns * p), *state)
        nit += done
    return x, nit
