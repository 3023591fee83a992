"""The kernels on the stored pairs of a sparse cost in NumPy's own functions: the truth for `cpu.sparse_cost`.

`cost` is an `ActiveSet`, and a stored K an `ActivePlan` in double precision.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow

from otbilevel.ot.kernels import vectors as vector_kernels
from otbilevel.ot.kernels.aprox import RIGID, Aprox, row_masses
from otbilevel.ot.kernels.pattern import ActivePlan, ActiveSet

__all__ = ["vector_kernels"]

sparse_kernels = active_set = lazy_active_set = None
solve_laplacian = scaling_passes = averaged_passes = None


def _rows(cost: ActiveSet) -> np.ndarray:
    """The row of every pair."""
    return np.repeat(np.arange(cost.shape[0]), np.diff(cost.indptr))


def _matrix(cost: ActiveSet, entries: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array((entries, cost.indices.view(np.int32), cost.indptr), shape=cost.shape)


def _entries(cost: ActiveSet, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray) -> np.ndarray:
    """The plan's."""
    i = _rows(cost)
    p: np.ndarray = a[i] * np.exp((f[i] + g[cost.indices] - cost.values) / reg)
    return p


def new_plan(shape: tuple[int, int], like: np.ndarray, *, single: bool) -> np.ndarray:  # noqa: ARG001
    return np.empty(0)


def softmax_rows(
    cost: ActiveSet,
    g: np.ndarray,
    reg: float,
    a: np.ndarray,
    f: np.ndarray | None,
    plan: ActivePlan | np.ndarray,  # noqa: ARG001 -- room is made anew
    *,
    single: bool,  # noqa: ARG001 -- the truth knows one precision
    relaxation: float,
    aprox: Aprox = RIGID,
) -> tuple[np.ndarray, ActivePlan, np.ndarray, float]:
    n, m = cost.shape
    i = _rows(cost)
    exponents = (g[cost.indices] - cost.values) / reg
    top = np.full(n, -np.inf)
    np.maximum.at(top, i, exponents)
    k = np.exp(exponents - top[i])
    total = np.bincount(i, k, n)
    fresh = -reg * (top + np.log(total))
    k = k / total[i]
    row_error = 0.0
    if relaxation != 1.0 and f is not None:
        drift = np.exp((1.0 - relaxation) * (f - fresh) / reg)
        fresh = (1.0 - relaxation) * f + relaxation * fresh
        k = k * drift[i]
        row_error = float(np.sum(a * np.abs(drift - 1.0)))
    return fresh, ActivePlan(cost, k), np.bincount(cost.indices, row_masses(fresh, reg, a, aprox)[i] * k, m), row_error


def scaling_pass(
    plan: ActivePlan,
    a: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    relaxation: float,
    f: np.ndarray,
    reg: float,
    aprox: Aprox = RIGID,
) -> tuple[np.ndarray, np.ndarray, float]:
    k = _matrix(*plan)
    row_sums = k @ v
    u = 1.0 / row_sums if relaxation == 1.0 else u ** (1.0 - relaxation) * row_sums ** (-relaxation)
    return u, (row_masses(f + reg * np.log(u), reg, a, aprox) * u) @ k, float(np.sum(a * np.abs(u * row_sums - 1.0)))


def shift_pass(plan: ActivePlan, a: np.ndarray, growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    k = _matrix(*plan)
    shares = k @ growth
    change = -shares / (1.0 + shares)
    return change, (a * change) @ k


def sharpen(plan: ActivePlan, a: np.ndarray, v: np.ndarray, squarings: int) -> tuple[ActivePlan, np.ndarray, np.ndarray]:
    pattern, values = plan
    i = _rows(pattern)
    powers = values ** (2**squarings) * v[pattern.indices]
    row_sums = np.bincount(i, powers, len(a))
    powers = powers / row_sums[i]
    return ActivePlan(pattern, powers), row_sums, a @ _matrix(pattern, powers)


def laplacian_product(plan: ActivePlan, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    k = _matrix(*plan)
    product: np.ndarray = (weights * (k @ x)) @ k
    return product


def plan_moments(plan: ActivePlan, weights: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    k = _matrix(*plan)
    row_sums = k @ v
    return row_sums, weights @ k, (weights / row_sums) @ _matrix(plan.pattern, plan.values**2)


def plan_sums(cost: ActiveSet, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    p = _entries(cost, f, g, reg, a)
    return np.bincount(_rows(cost), p, len(f)), np.bincount(cost.indices, p, len(g)), float(np.sum(p * cost.values))


def plan_rows(cost: ActiveSet, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray, low: int, high: int) -> np.ndarray:
    block: np.ndarray = _matrix(cost, _entries(cost, f, g, reg, a))[low:high].toarray()
    return block


def plan_product(
    cost: ActiveSet, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray, vectors: np.ndarray, axis: int
) -> np.ndarray:
    plan = _matrix(cost, _entries(cost, f, g, reg, a))
    product: np.ndarray = plan @ vectors if axis == 1 else plan.T @ vectors
    return product


def transport_flow(
    pattern: ActiveSet, supply: np.ndarray, demand: np.ndarray, flow: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move as much of the supply as can be moved to where demand is, on top of a flow >= 0 that there is already.

    Returns the flow through each pair, what is left of the supply, in every row and in every column that it is stuck at, and what
    columns lack. Amounts are rounded down to multiples of 2^-29 of the whole supply or demand: SciPy's flows are 32-bit integers.
    """
    (n, m), total = pattern.shape, max(float(supply.sum()), float(demand.sum()))
    if total == 0.0:
        return flow, np.zeros(n + m), np.zeros(m)
    parts = 2**29
    before, excess, room = (np.floor(np.minimum(x / total, 1.0) * parts).astype(np.int32) for x in (flow, supply, demand))
    i, j = _rows(pattern), pattern.indices.astype(np.int64)
    # SciPy before 1.17 wants 32-bit indices.
    tail = np.concatenate([np.zeros(n), 1 + i, 1 + n + j, 1 + n + np.arange(m)]).astype(np.int32)
    head = np.concatenate([1 + np.arange(n), 1 + n + j, 1 + i, np.full(m, n + m + 1)]).astype(np.int32)
    capacity = np.concatenate([excess, np.full(len(i), parts), before, room]).astype(np.int32)
    graph = sparse.csr_array((capacity, (tail, head)), shape=(n + m + 2, n + m + 2))
    moved = maximum_flow(graph, 0, n + m + 1).flow
    left = excess - moved[[0]].toarray()[0, 1 : n + 1]
    lacking = room + moved[[n + m + 1]].toarray()[0, n + 1 : n + m + 1]
    change = np.asarray(moved[1 + i, 1 + n + j]).ravel()
    unit = total / parts
    return np.maximum(flow + change * unit, 0.0), np.concatenate([left, np.zeros(m)]) * unit, lacking * unit
