"""The kernels of `cpu` on an active set: the few pairs that carry the mass, in CSR form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.kernels.cpu import active, direct, pcg, vectors
from otbilevel.ot.kernels.cpu.ritz import Subspace
from otbilevel.ot.kernels.cpu.threads import over_rows, team_parts
from otbilevel.ot.kernels.pattern import ActivePlan, ActiveSet

vector_kernels = vectors
scaling_passes = averaged_passes = None  # the host knows every error at once

ENTRY_COST = 6.0
"""Time of a product per entry, relative to that of a dense one."""

FEW_ENTRIES = 3
"""Per row and column: so few that a direct solution is cheap. (A forest has one.)"""
LARGEST_FACTOR = 20_000
"""Rows and columns up to which it is: between random points of many dimensions a tenth of its factor may be dense."""
PATIENCE = 300
"""Steps of conjugate gradients before that."""
LATE = 2.0
"""Residual in units of the one wanted that is too large: the steps were too few, or their curvature drowned in rounding."""


def softmax_rows(
    cost: ActiveSet,
    g: np.ndarray,
    reg: float,
    a: np.ndarray,
    f: np.ndarray | None,  # noqa: ARG001 -- the row maximum is cheap here, a warm start saves nothing
    plan: ActivePlan | None,
    *,
    single: bool,  # noqa: ARG001 -- memory traffic dominates
    relaxation: float,  # noqa: ARG001 -- Newton's method does not relax
    aprox: Aprox = RIGID,
) -> tuple[np.ndarray, ActivePlan | None, np.ndarray, float]:
    n, m = cost.shape
    out = np.empty(n)
    plan = ActivePlan(cost, np.empty(len(cost.values), np.float32)) if plan is None else plan
    sums, _ = over_rows(active.softmax_rows, n, _work(cost.values), (1, m), *cost[:3], g, 1.0 / reg, a, out, plan.values, aprox)
    return out, plan, sums[0], 0.0


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
    pattern, values = plan
    n, m = pattern.shape
    out = u.copy()
    stored = pattern.indptr, pattern.indices, values
    sums, row_error = over_rows(active.scaling_pass, n, _work(values), (1, m), *stored, a, out, v, relaxation, f, 1.0 / reg, aprox)
    return out, sums[0], row_error


def shift_pass(plan: ActivePlan, a: np.ndarray, growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pattern, values = plan
    n, m = pattern.shape
    change = np.empty(n)
    sums, _ = over_rows(active.shift_pass, n, _work(values), (1, m), pattern.indptr, pattern.indices, values, a, growth, change)
    return change, sums[0]


def laplacian_product(plan: ActivePlan, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    pattern, values = plan
    n, m = pattern.shape
    sums, _ = over_rows(active.laplacian_product, n, _work(values), (1, m), pattern.indptr, pattern.indices, values, weights, x)
    return sums[0]


def solve_laplacian(
    plan: ActivePlan,
    *operator: np.ndarray,
    tol: float,
    max_iter: int,
    interrupt: Callable[[], bool],
    memory: Subspace | None = None,
) -> tuple[np.ndarray, int, Subspace]:
    """As in `cpu`."""
    pattern, values = plan
    n_parts = team_parts(pattern.shape[0], _work(values))
    stored = pattern.indptr, pattern.indices, values
    few = len(values) <= FEW_ENTRIES * sum(pattern.shape) and sum(pattern.shape) <= LARGEST_FACTOR
    limit = min(max_iter, PATIENCE) if few else max_iter
    x, nit, memory = pcg.solve(
        stored, ENTRY_COST * len(values), n_parts, *operator, tol=tol, max_iter=limit, interrupt=interrupt, memory=memory
    )
    weights, columns, degree, _, b = operator
    if few and not interrupt():
        residual = b - degree * x + columns * laplacian_product(plan, weights, columns * x)
        if np.abs(residual).sum() > LATE * tol * np.abs(b).sum():
            exact = direct.solve(plan, weights, columns, degree, b)
            x = x if exact is None else exact
    return x, nit, memory


def plan_moments(plan: ActivePlan, weights: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pattern, values = plan
    n, m = pattern.shape
    row_sums = np.empty(n)
    sums, _ = over_rows(
        active.plan_moments, n, _work(values), (2, m), pattern.indptr, pattern.indices, values, weights, v, row_sums
    )
    return row_sums, sums[0], sums[1]


def _work(values: np.ndarray) -> int:
    """The work of a pass in terms of exponentials: up to five for each pair, which is gathered and scattered."""
    return 5 * len(values)
