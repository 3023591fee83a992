"""Conjugate gradients on the Laplacian of a stored plan, compiled as one loop: at n = 500 half of an interpreted step is overhead.

L = diag(degree) - V K' diag(weights) K V with V = diag(columns) is preconditioned by its diagonal and by what earlier steps have
found out about its smallest eigenvalues (`ritz`). `linalg.cg` is the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from otbilevel.linalg.cg import NOISE
from otbilevel.ot.kernels.cpu import active, ritz, stored, team
from otbilevel.ot.kernels.cpu.compile import ARITHMETIC, kernel
from otbilevel.ot.kernels.cpu.threads import Team, shares

STEPS_WORTH = 20_000_000
"""Work between two looks at the clock, in entries of a dense product: some three milliseconds."""
CYCLE = 150
"""Steps after which a solve starts anew with what it has learnt."""
RECORDED = 2**23
"""Numbers kept of the steps of a cycle: 32 megabytes."""
FEWEST_STEPS = 16
"""Steps from which something is learnt."""


def product(state, bounds, plan, weights, x, sums, totals):
    """sums[t] <- the part from row bounds[t] of K' diag(weights) K x and `team.PADDING` numbers, all parts by the team of `state`.

    K is a stored matrix, or the tuple (indptr, indices, values) of an active set.
    """
    raise NotImplementedError  # pragma: no cover -- compiled code calls the overload below


@overload(product, jit_options=ARITHMETIC)
def _product(state, bounds, plan, weights, x, sums, totals):  # noqa: ARG001 -- numba wants the same signature throughout
    def dense(state, bounds, plan, weights, x, sums, totals):
        team.lead(state, stored.laplacian_product, bounds, sums, totals, (plan, weights, x))

    def sparse(state, bounds, plan, weights, x, sums, totals):
        team.lead(state, active.laplacian_product, bounds, sums, totals, (plan[0], plan[1], plan[2], weights, x))

    return dense if isinstance(plan, types.Array) else sparse


class Record(NamedTuple):
    """What is kept of the steps of a solve: as many as there is room for.

    Attributes
    ----------
    basis : (k, m) float32 array
        The preconditioned residuals z, divided by sqrt(r'z).
    alpha, beta : (k,) arrays
        The coefficients of the steps.
    """

    basis: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray


@kernel
def precondition(r, inverse_diagonal, subspace, out):
    """out <- (diag(inverse_diagonal) + W' diag(weights) W) r, where `subspace` is W and the weights."""
    vectors, weights = subspace
    for j in range(len(r)):
        out[j] = inverse_diagonal[j] * r[j]
    for k in range(len(weights)):
        share = 0.0
        for j in range(len(r)):
            share += vectors[k, j] * r[j]
        share *= weights[k]
        for j in range(len(r)):
            out[j] += share * vectors[k, j]


@kernel
def begin(r, inverse_diagonal, subspace, p, record):
    """p <- preconditioned r, the first direction. Returns r'p."""
    precondition(r, inverse_diagonal, subspace, p)
    rz = 0.0
    for j in range(len(p)):
        rz += r[j] * p[j]
    scale = 1.0 / np.sqrt(rz) if rz > 0.0 else 0.0
    basis, _, _ = record
    for j in range(len(p)):
        basis[0, j] = scale * p[j]  # infinite where a column underflowed: nothing is then learnt
    return rz


@kernel
def advance(product, degree, inverse_diagonal, subspace, x, r, p, rz, record, done):
    """Step number `done`, given N p of L = diag(degree) - N; overwrites `product`, x, r and p.

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
    precondition(r, inverse_diagonal, subspace, z)
    for j in range(len(p)):
        following += r[j] * z[j]
    beta = following / rz
    for j in range(len(p)):
        p[j] = z[j] + beta * p[j]
    basis, alphas, betas = record
    if done < len(basis):
        alphas[done], betas[done] = alpha, beta
    if done + 1 < len(basis) and following > 0.0:
        scale = 1.0 / np.sqrt(following)
        for j in range(len(p)):
            basis[done + 1, j] = scale * z[j]
    return following, (size if following > 0.0 or size == 0.0 else -1.0)


@kernel
def steps(
    state, bounds, first, last, target, plan, weights, columns, degree, inverse_diagonal, subspace, x, r, p, rz, record, size
):
    """Steps number `first` up to `last` until the L1 norm of r is at most `target`. Returns the next, r'z and the norm."""
    parts, scaled = len(bounds) - 1, np.empty(len(p))
    sums, totals = np.empty((parts, len(p) + team.PADDING)), np.empty(parts)
    done = first
    while done < last and size > target:
        for j in range(len(p)):
            scaled[j] = columns[j] * p[j]
        product(state, bounds, plan, weights, scaled, sums, totals)
        whole = sums[0, : len(p)]
        for t in range(1, parts):
            for j in range(len(p)):
                whole[j] += sums[t, j]
        for j in range(len(p)):
            whole[j] *= columns[j]
        rz, size = advance(whole, degree, inverse_diagonal, subspace, x, r, p, rz, record, done)
        done += 1
    return done, rz, size


def solve(
    plan: Any,
    step_cost: float,
    n_parts: int,
    weights: np.ndarray,
    columns: np.ndarray,
    degree: np.ndarray,
    inverse_diagonal: np.ndarray,
    b: np.ndarray,
    *,
    tol: float,
    max_iter: int,
    interrupt: Callable[[], bool],
    memory: ritz.Subspace | None = None,
) -> tuple[np.ndarray, int, ritz.Subspace]:
    """Solve L x = b until the L1 norm of the residual is `tol` times that of b, at most `max_iter` steps, or `interrupt()`.

    `step_cost` is that of a product in entries of a dense one, and `n_parts` into how many parts it is shared out. Returns x, the
    number of steps, and the memory for the next solve.
    """
    m, bounds = len(b), shares(len(weights), n_parts)
    subspace = ritz.nothing(m) if memory is None else memory
    x, r, p = np.zeros_like(b), b.copy(), np.empty_like(b)
    size, nit, moving = float(np.abs(r).sum()), 0, True
    target, room = tol * size, max(1, min(CYCLE, RECORDED // m))
    record = Record(np.empty((room, m), np.float32), np.empty(room), np.empty(room))
    while size > target and moving and nit < max_iter and not interrupt():
        rz, done, last = begin(r, inverse_diagonal, tuple(subspace), p, tuple(record)), 0, min(CYCLE, max_iter - nit)
        if not 0.0 < rz < np.inf:
            break
        at_once = max(1, int(STEPS_WORTH / (step_cost + 2 * subspace.vectors.size)))
        while moving and size > target and done < last and not interrupt():
            state = degree, inverse_diagonal, tuple(subspace), x, r, p, rz, tuple(record)
            limit = min(done + at_once, last)
            with Team(n_parts) as shared:
                done, rz, left = steps(shared, bounds, done, limit, target, plan, weights, columns, *state, size)
            moving = left >= 0.0
            size = left if moving else size
        nit += done
        if min(done, room) >= FEWEST_STEPS:
            subspace = ritz.extended(subspace, *record, min(done if moving else done - 1, room))
    return x, nit, subspace
