"""Kernels for NumPy arrays: compiled by numba, rows shared out over threads.

`cost` is an (n, m) array, or the tuple (x, y transposed, kind) of two point clouds, or (in `sparse` and `sparse_cost`) an
`ActiveSet`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.kernels.cpu import active, batches, dense, passes, pcg, sparse, stacks, stored, vectors
from otbilevel.ot.kernels.cpu.ritz import Subspace
from otbilevel.ot.kernels.cpu.threads import over_rows, team_parts
from otbilevel.ot.kernels.pattern import ActiveSet

sparse_kernels = sparse
vector_kernels = vectors
QUEUED_ENTRIES = 2**19  # of a plan whose passes are taken many at a time: some milliseconds
waits = False
batch_kernels = batches
stack_kernels = stacks
interpolates = True

_NOTHING = np.empty((0, 0), np.float32)
_SINGLE, _DOUBLE = np.empty(0, np.float32), np.empty(0)


def extremes(matrix: np.ndarray) -> tuple[float, float]:
    n, m = matrix.shape
    lows, highs = np.full(n, np.inf), np.full(n, -np.inf)
    _, total = over_rows(dense.extremes, n, _products(n * m), (1, 0), matrix, lows, highs)
    if np.isnan(total):  # an entry is, or sums overflowed either way
        return float(matrix.min()), float(matrix.max())
    return float(lows.min()), float(highs.max())


def cost_bounds(cost: Any, shape: tuple[int, int]) -> tuple[float, float]:
    n, m = shape
    lows, highs = np.empty(n), np.empty(n)
    over_rows(dense.cost_bounds, n, n * m, (1, 0), cost, m, lows, highs)
    return float(lows.min()), float(highs.max())


def softmax_rows(
    cost: Any,
    g: np.ndarray,
    reg: float,
    a: np.ndarray,
    f: np.ndarray | None,
    plan: np.ndarray | None,
    *,
    single: bool,
    relaxation: float,
    aprox: Aprox = RIGID,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, float]:
    n, m = len(a), len(g)
    warm = f is not None
    out = np.zeros(n) if f is None else f.copy()
    precision, store = _SINGLE if single else _DOUBLE, plan is not None
    stage = plan if store else _NOTHING
    sums, row_error = over_rows(
        dense.softmax_rows, n, n * m, (1, m), cost, g, 1.0 / reg, a, out, warm, relaxation, precision, store, stage, aprox
    )
    return out, plan, sums[0], row_error


def plan_itemsize(*, single: bool) -> int:
    return 4 if single else 8


def new_plan(shape: tuple[int, int], like: np.ndarray, *, single: bool) -> np.ndarray:  # noqa: ARG001
    return np.empty(shape, np.float32 if single else np.float64)


def scaling_pass(
    plan: np.ndarray,
    a: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    relaxation: float,
    f: np.ndarray,
    reg: float,
    aprox: Aprox = RIGID,
) -> tuple[np.ndarray, np.ndarray, float]:
    n, m = plan.shape
    out = u.copy()
    sums, row_error = over_rows(stored.scaling_pass, n, _products(n * m), (1, m), plan, a, out, v, relaxation, f, 1.0 / reg, aprox)
    return out, sums[0], row_error


def scaling_passes(
    plan: np.ndarray,
    a: np.ndarray,
    u: np.ndarray,
    log_v: np.ndarray,
    b: np.ndarray,
    log_b: np.ndarray,
    *,
    count: int,
    tol: float,
    relaxation: float,
    half_step: tuple[float, float],
    reach: tuple[float, float],
    prices: tuple[tuple[float, float], np.ndarray, np.ndarray, np.ndarray, float] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[float], float, bool]:
    """See `passes`. Returns u, log v, column sums, the next log v, errors, the share of the rows, and whether all was in reach."""
    strengths, *places = prices or ((np.inf, np.inf), log_b, a, b, 1.0)  # of fixed marginals the passes need no more than K
    u, at, log_v, sums, errors = u.copy(), log_v.copy(), log_v.copy(), np.empty_like(log_v), np.empty(count)
    done, row_error = passes.scaling_passes(
        plan, a, b, log_b, places[0], strengths, *places[1:], u, at, log_v, sums, relaxation, tol, half_step, reach, errors
    )
    return u, at, sums, log_v, errors[:done].tolist(), row_error, done == count or (done > 0 and not errors[done - 1] > tol)


def averaged_passes(
    plan: np.ndarray, a: np.ndarray, strength: float, soft: np.ndarray, f: np.ndarray, reg: float, *, tol: float, count: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """See `passes`. Returns f, the step from there, and errors."""
    f, step, errors = f.copy(), np.empty_like(f), np.empty(count)
    done = passes.averaged_passes(plan, a, strength, soft, f, reg, tol, errors, step)
    return f, step, errors[:done].tolist()


def shift_pass(plan: np.ndarray, a: np.ndarray, growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, m = plan.shape
    change = np.empty(n)
    sums, _ = over_rows(stored.shift_pass, n, _products(n * m), (1, m), plan, a, growth, change)
    return change, sums[0]


def sharpen(plan: np.ndarray, a: np.ndarray, v: np.ndarray, squarings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, m = plan.shape
    row_sums, factors = np.empty(n), v.astype(plan.dtype)
    sums, _ = over_rows(stored.sharpen, n, _products(2 * n * m), (1, m), plan, a, factors, squarings, row_sums)
    return plan, row_sums, sums[0]


def laplacian_product(plan: np.ndarray, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    n, m = plan.shape
    return over_rows(stored.laplacian_product, n, _products(n * m), (1, m), plan, weights, x)[0][0]


def plan_moments(plan: np.ndarray, weights: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, m = plan.shape
    row_sums = np.empty(n)
    sums, _ = over_rows(stored.plan_moments, n, _products(n * m), (2, m), plan, weights, v, row_sums)
    return row_sums, sums[0], sums[1]


def solve_laplacian(
    plan: np.ndarray,
    *operator: np.ndarray,
    tol: float,
    max_iter: int,
    interrupt: Callable[[], bool],
    memory: Subspace | None = None,
) -> tuple[np.ndarray, int, Subspace]:
    """`operator` is weights, columns, degree, inverse diagonal, right-hand side, see `pcg`."""
    n, m = plan.shape
    n_parts = team_parts(n, _products(n * m))
    return pcg.solve(plan, n * m, n_parts, *operator, tol=tol, max_iter=max_iter, interrupt=interrupt, memory=memory)


def lazy_moments(cost: Any, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, m = len(a), len(g)
    row_sums = np.empty(n)
    sums, _ = over_rows(dense.lazy_moments, n, n * m, (2, m), cost, f, g, 1.0 / reg, a, row_sums)
    return row_sums, sums[0], sums[1]


def lazy_product(cost: Any, f: np.ndarray, g: np.ndarray, reg: float, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    n, m = len(weights), len(g)
    return over_rows(dense.lazy_product, n, n * m, (1, m), cost, f, g, 1.0 / reg, weights, x)[0][0]


def plan_sums(cost: Any, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    n, m = len(a), len(g)
    row_sums = np.empty(n)
    sums, total_cost = over_rows(dense.plan_sums, n, n * m, (1, m), cost, f, g, 1.0 / reg, a, row_sums)
    return row_sums, sums[0], total_cost


def plan_rows(cost: Any, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray, low: int, high: int) -> np.ndarray:
    m = len(g)
    block = np.empty((high - low, m))
    over_rows(dense.plan_rows, high - low, (high - low) * m, (1, 0), cost, f, g, 1.0 / reg, a, low, block)
    return block


def plan_product(cost: Any, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray, vectors: np.ndarray, axis: int) -> np.ndarray:
    n, m, width = len(a), len(g), vectors.shape[1]
    transpose = axis == 0
    out = np.empty((0 if transpose else n, width))
    columns = np.ascontiguousarray(vectors.T)
    shape = (width, m) if transpose else (1, 0)
    sums, _ = over_rows(dense.plan_product, n, n * m, shape, cost, f, g, 1.0 / reg, a, columns, transpose, out)
    return sums.T if transpose else out


def active_set(cost: Any, plan: np.ndarray, u: np.ndarray, v: np.ndarray, cutoff: float, max_entries: float) -> ActiveSet | None:
    n, m = plan.shape
    counts, bars = np.empty(n, np.int64), cutoff / u
    _, total = over_rows(active.count, n, _products(n * m), (1, 0), plan, v, bars, counts)
    if total > max_entries:
        return None
    pattern = ActiveSet.with_room(counts, m)
    _, misfits = over_rows(active.fill, n, _products(n * m), (1, 0), plan, v, bars, cost, *pattern[:3])
    return _checked(pattern, misfits)


def lazy_active_set(cost: Any, f: np.ndarray, g: np.ndarray, threshold: float, max_entries: float) -> ActiveSet | None:
    n, m = len(f), len(g)
    counts = np.empty(n, np.int64)
    _, total = over_rows(active.lazy_count, n, n * m, (1, 0), cost, f, g, threshold, counts)
    if total > max_entries:
        return None
    pattern = ActiveSet.with_room(counts, m)
    _, misfits = over_rows(active.lazy_fill, n, n * m, (1, 0), cost, f, g, threshold, *pattern[:3])
    return _checked(pattern, misfits)


def _checked(pattern: ActiveSet, misfits: float) -> ActiveSet:
    if misfits:
        msg = "pairs were counted and chosen by different comparisons: the cost or the potentials changed meanwhile"
        raise RuntimeError(msg)
    return pattern


def _products(entries: int) -> int:
    """The work of a pass of products in terms of exponentials: a fifth."""
    return entries // 5
