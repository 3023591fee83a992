"""Conjugate gradients on the Laplacian of a stored plan, compiled as one loop: at n = 500 half of an interpreted step is overhead.

L = diag(degree) - V K' diag(weights) K V with V = diag(columns) is preconditioned by its diagonal, and where that takes
long by a coarse space in addition. `linalg.cg` is the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from otbilevel.linalg.cg import NOISE
from otbilevel.ot.kernels.cpu import active, stored
from otbilevel.ot.kernels.cpu.coarse import MOST_CLUSTERS, Coarse, build, clusters, nothing, price
from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.cpu.exp import SUMS

STEPS_WORTH = 20_000_000
"""Work between two looks at the clock, in entries of a dense product: some three milliseconds."""
PATIENCE = 40
"""Steps that are quick enough without a new coarse space."""


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


@dataclass
class Memory:
    """What solves leave to later ones.

    Attributes
    ----------
    coarse : Coarse
        The coarse space.
    spent : float
        What steps beyond the first `PATIENCE` of each solve have cost since it was made, in entries of a dense product.
    """

    coarse: Coarse
    spent: float = 0.0


def solve(
    plan: Any,
    step_cost: float,
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
    memory: Memory | None = None,
) -> tuple[np.ndarray, int, Memory]:
    """Solve L x = b until the L1 norm of the residual is `tol` times that of b, at most `max_iter` steps, or `interrupt()`.

    `step_cost` is that of a product in entries of a dense one. `threaded(y)` is K' diag(weights) K y by several threads, None
    when one is enough. A new coarse space is made as soon as slow steps have cost as much as it will. Returns x, the number
    of steps, and the memory for the next solve.
    """
    n, m = len(weights), len(b)
    memory = memory or Memory(nothing(m))
    x, r, p = np.zeros_like(b), b.copy(), np.empty_like(b)
    size, rz = float(np.abs(r).sum()), 0.0
    target, nit, ask = tol * size, 0, max(1, int(STEPS_WORTH / (step_cost + len(memory.coarse.inverse) ** 2)))
    found, cost, restart = None, math.inf, True
    while size > target and nit < max_iter and not interrupt():
        if nit >= PATIENCE and found is None:
            found = clusters(plan, n, columns)
            cost = price(n, m, found[1]) if 1 < found[1] <= MOST_CLUSTERS else math.inf
        if found is not None and memory.spent >= cost:
            memory = Memory(build(plan, weights, columns, *found) or memory.coarse)
            cost, restart = math.inf, True
        if restart:
            precondition(r, inverse_diagonal, tuple(memory.coarse), p)
            rz, restart = float(r @ p), False
        state = degree, inverse_diagonal, tuple(memory.coarse), x, r, p, rz
        if threaded is None:
            most = min(ask, max_iter - nit, PATIENCE - nit if found is None else max_iter)
            done, rz, size = steps(most, target, plan, weights, columns, *state, size)
        else:
            done, (rz, size) = 1, advance(columns * threaded(columns * p), *state)
        nit += done
        memory.spent += done * step_cost if nit > PATIENCE else 0.0
    return x, nit, memory
