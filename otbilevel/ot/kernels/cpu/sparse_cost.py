"""The kernels of `cpu` on the stored pairs of a sparse cost: `cost` is an `ActiveSet` that holds all of them.

What works on a stored K alone is that of an active set (`sparse`); K may have double precision here.
"""

from __future__ import annotations

import numpy as np

from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.kernels.cpu import pairs, sparse, vectors
from otbilevel.ot.kernels.cpu.flow import transport_flow
from otbilevel.ot.kernels.cpu.sparse import (
    laplacian_product,
    plan_moments,
    scaling_pass,
    shift_pass,
    solve_laplacian,
)
from otbilevel.ot.kernels.cpu.threads import over_rows
from otbilevel.ot.kernels.pattern import ActivePlan, ActiveSet

__all__ = [
    "active_set",
    "averaged_passes",
    "laplacian_product",
    "lazy_active_set",
    "new_plan",
    "plan_moments",
    "plan_product",
    "plan_rows",
    "plan_sums",
    "scaling_pass",
    "scaling_passes",
    "sharpen",
    "shift_pass",
    "softmax_rows",
    "solve_laplacian",
    "sparse_kernels",
    "transport_flow",
    "vector_kernels",
]

sparse_kernels = sparse
vector_kernels = vectors
scaling_passes = averaged_passes = None  # the host knows every error at once

WORTHWHILE = 0.5
"""Share of the stored pairs up to which a smaller active set is worth making."""


def new_plan(shape: tuple[int, int], like: np.ndarray, *, single: bool) -> np.ndarray:  # noqa: ARG001
    """No room yet, as only a sweep knows the pattern; its dtype says of which precision it is to be."""
    return np.empty(0, np.float32 if single else np.float64)


def softmax_rows(
    cost: ActiveSet,
    g: np.ndarray,
    reg: float,
    a: np.ndarray,
    f: np.ndarray | None,
    plan: ActivePlan | np.ndarray,
    *,
    single: bool,  # noqa: ARG001 -- memory traffic dominates
    relaxation: float,
    aprox: Aprox = RIGID,
) -> tuple[np.ndarray, ActivePlan, np.ndarray, float]:
    n, m = cost.shape
    warm = f is not None
    out = np.zeros(n) if f is None else f.copy()
    if not isinstance(plan, ActivePlan):
        plan = ActivePlan(cost, np.empty(len(cost.values), plan.dtype))
    sums, row_error = over_rows(
        pairs.softmax_rows, n, _work(cost), (1, m), *cost[:3], g, 1.0 / reg, a, out, warm, relaxation, plan.values, aprox
    )
    return out, plan, sums[0], row_error


def sharpen(plan: ActivePlan, a: np.ndarray, v: np.ndarray, squarings: int) -> tuple[ActivePlan, np.ndarray, np.ndarray]:
    pattern, values = plan
    n, m = pattern.shape
    row_sums = np.empty(n)
    sums, _ = over_rows(
        pairs.sharpen, n, _work(pattern), (1, m), pattern.indptr, pattern.indices, values, a, v, squarings, row_sums
    )
    return plan, row_sums, sums[0]


def plan_sums(cost: ActiveSet, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    n, m = cost.shape
    row_sums = np.empty(n)
    sums, total_cost = over_rows(pairs.plan_sums, n, _work(cost), (1, m), *cost[:3], f, g, 1.0 / reg, a, row_sums)
    return row_sums, sums[0], total_cost


def plan_rows(cost: ActiveSet, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray, low: int, high: int) -> np.ndarray:
    block = np.zeros((high - low, len(g)))
    over_rows(pairs.plan_rows, high - low, _work(cost), (1, 0), *cost[:3], f, g, 1.0 / reg, a, low, block)
    return block


def plan_product(
    cost: ActiveSet, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray, vectors: np.ndarray, axis: int
) -> np.ndarray:
    n, m = cost.shape
    transpose, width = axis == 0, vectors.shape[1]
    out = np.zeros((0 if transpose else n, width))
    shape = (m, width) if transpose else (1, 0)
    rows = np.array(vectors, np.float64)  # writeable and contiguous: kernels see one type
    sums, _ = over_rows(pairs.plan_product, n, _work(cost), shape, *cost[:3], f, g, 1.0 / reg, a, rows, transpose, out)
    return sums if transpose else out


def active_set(
    cost: ActiveSet, plan: ActivePlan, u: np.ndarray, v: np.ndarray, cutoff: float, max_entries: float
) -> ActiveSet | None:
    kept, counts = np.empty(len(cost.values), np.bool_), np.empty(len(u), np.int64)
    n = len(counts)
    _, total = over_rows(pairs.mark, n, _work(cost), (1, 0), cost.indptr, cost.indices, plan.values, v, cutoff / u, kept, counts)
    return _part(cost, kept, counts, total, max_entries)


def lazy_active_set(cost: ActiveSet, f: np.ndarray, g: np.ndarray, threshold: float, max_entries: float) -> ActiveSet | None:
    kept, counts = np.empty(len(cost.values), np.bool_), np.empty(len(f), np.int64)
    _, total = over_rows(pairs.lazy_mark, len(f), _work(cost), (1, 0), *cost[:3], f, g, threshold, kept, counts)
    return _part(cost, kept, counts, total, max_entries)


def _part(cost: ActiveSet, kept: np.ndarray, counts: np.ndarray, total: float, max_entries: float) -> ActiveSet | None:
    if total > min(max_entries, WORTHWHILE * len(kept)):
        return None
    part = ActiveSet.with_room(counts, cost.shape[1])
    over_rows(pairs.gather, len(counts), _work(cost), (1, 0), *cost[:3], kept, *part[:3])
    return part


def _work(cost: ActiveSet) -> int:
    """As in `sparse`."""
    return 5 * len(cost.values)
